package nethsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

const (
	adminPassphrase    = "admin passphrase"
	operatorPassphrase = "operator passphrase"
)

// TestMain sets what the pin-sources of the tests name, which then run in parallel.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{
		"TEST_ADMIN": adminPassphrase, "TEST_OPERATOR": operatorPassphrase, "TEST_ROOT": "root passphrase",
		"TEST_BACKUP": "backup passphrase", "TEST_WRONG": "not this one", "TEST_SHORT": "short",
	} {
		os.Setenv(name, value)
	}
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the failures of instances are many
	os.Exit(m.Run())
}

var (
	signSpec    = key.Specs[3] // EC-256
	decryptSpec = key.Specs[0] // RSA-2048
)

// rsaKey is the RSA key of all tests, because generating one takes long.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return private
})

// start starts a cluster of one or more instances and returns the settings for a key on it.
func start(t *testing.T, instances int) ([]*nethsmtest.Server, *config.Settings) {
	t.Helper()
	first := nethsmtest.Start(t, nethsmtest.RSAKeys(rsaKey()), nethsmtest.RateLimit(0))
	first.Provision(adminPassphrase, operatorPassphrase)
	servers := []*nethsmtest.Server{first}
	for range instances - 1 {
		servers = append(servers, first.Instance())
	}
	s := &config.Settings{
		Key: config.URI{NetHSM: true, Object: "release"}, PINSource: "env:TEST_OPERATOR", Timeout: time.Hour,
		NetHSM: &config.NetHSM{User: nethsmtest.OperatorUser, Administrator: nethsmtest.AdminUser,
			AdministratorPINSource: "env:TEST_ADMIN"},
	}
	for _, server := range servers {
		s.NetHSM.Instances = append(s.NetHSM.Instances, "https://"+server.Address)
		s.NetHSM.Fingerprints = append(s.NetHSM.Fingerprints, sha256.Sum256(server.Certificate().Raw))
	}
	return servers, s
}

// warnTo returns a backend that hardly pauses between rounds.
func warnTo(warnings io.Writer) *Backend {
	b := New(warnings)
	b.firstPause = time.Millisecond
	return b
}

// expireAt returns a backend whose tries time out as soon as the fault has met them, so that no test waits.
func expireAt(fault *nethsmtest.Fault) *Backend {
	b := warnTo(io.Discard)
	b.withTimeout = func(ctx context.Context, _ time.Duration) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancelCause(ctx)
		before := fault.Hits()
		go func() {
			for fault.Hits() == before && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			cancel(context.DeadlineExceeded)
		}()
		return ctx, func() { cancel(nil) }
	}
	return b
}

// open opens a store of a backend of its own.
func open(t *testing.T, s *config.Settings) *Store {
	t.Helper()
	return openWith(t, warnTo(io.Discard), s)
}

func openWith(t *testing.T, b *Backend, s *config.Settings) *Store {
	t.Helper()
	store, err := b.open(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

// generate generates a key with a backend of its own.
func generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error) {
	return warnTo(io.Discard).Generate(ctx, s, r)
}

// ecKey stores an EC key "release" on the NetHSM without a request.
func ecKey(t *testing.T, server *nethsmtest.Server) *ecdsa.PrivateKey {
	t.Helper()
	private := newECKey(t)
	server.AddKey("release", private)
	return private
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

// sign signs a message with the key of the settings and verifies the signature, if the public half is given.
func sign(ctx context.Context, store *Store, public *ecdsa.PublicKey) error {
	var given crypto.PublicKey
	if public != nil {
		given = public
	}
	k, err := store.Key(ctx, given)
	if err != nil {
		return err
	}
	message := []byte("payload")
	signature, err := k.SignMessage(ctx, message, crypto.SHA256)
	if digest := sha256.Sum256(message); err == nil && public != nil && !ecdsa.VerifyASN1(public, digest[:], signature) {
		return errors.New("the signature does not verify")
	}
	return err
}

// paths returns the paths of the requests of a method, or of any when it is "".
func paths(method string, servers ...*nethsmtest.Server) (found []string) {
	for _, server := range servers {
		for _, r := range server.Requests() {
			if method == "" || r.Method == method {
				found = append(found, r.Path)
			}
		}
	}
	return found
}

func selfSigned(t *testing.T, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	subject, err := certs.ParseSubject("CN=release,O=Example,C=CH,ST=Zurich")
	if err != nil {
		t.Fatal(err)
	}
	der, err := certs.SelfSign(signer, subject, 30)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// waitFor waits until a condition holds, for as long as the test may take.
func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for !condition() {
		if t.Context().Err() != nil {
			t.Fatal("the condition does not hold")
		}
		time.Sleep(time.Millisecond)
	}
}

// buffer is a bytes.Buffer for many goroutines.
type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}
