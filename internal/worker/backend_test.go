package worker

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// The variables of the processes of tests, which settings put into their environment.
const (
	keyVariable   = "WORKER_TEST_KEY"   // PKCS #8 in base64: each process has the same key
	dirVariable   = "WORKER_TEST_DIR"   // where orders and the log are
	usageVariable = "WORKER_TEST_USAGE" // of the key; sign if it is not set
)

func TestMain(m *testing.M) {
	Main(func() keystore.Backend { return newFaulty() })
	if os.Getenv("WORKER_TEST_PARENT") != "" {
		parent()
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// faulty is the backend of the processes of tests: a module in memory that obeys orders. An order is a file with the
// name of an operation and of a fault, such as "Sign.crash". It is carried out by the next call of the operation, once;
// but "Start.exit" by each.
type faulty struct {
	*keystoretest.Module
	dir string
}

// fatal ends a process whose preparation fails.
type fatal struct{ testing.TB }

func (fatal) Helper()           {}
func (fatal) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func newFaulty() faulty {
	f := faulty{Module: keystoretest.New("signing"), dir: os.Getenv(dirVariable)}
	f.log("start")
	der, err := base64.StdEncoding.DecodeString(os.Getenv(keyVariable))
	if err != nil {
		panic(err)
	}
	if len(der) > 0 {
		private, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			panic(err)
		}
		usage := key.Sign
		if other := os.Getenv(usageVariable); other != "" {
			usage = key.Usage(other)
		}
		f.Key(fatal{}, "signing", "release", private.(crypto.Signer), usage)
	}
	environment := strings.Join(append(os.Environ(), os.Args...), "\n")
	_ = os.WriteFile(filepath.Join(f.dir, "environment"), []byte(environment), 0o600)
	_ = f.obey(context.Background(), "Start")
	return f
}

// log appends a line to the log of all processes.
func (f faulty) log(line string) {
	log, err := os.OpenFile(filepath.Join(f.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer log.Close()
	fmt.Fprintln(log, line)
}

// obey carries out an order for an operation.
func (f faulty) obey(ctx context.Context, operation string) error {
	ordered := func(fault string) bool { return os.Remove(filepath.Join(f.dir, operation+"."+fault)) == nil }
	switch {
	case ordered("crash"):
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case f.stands(operation + ".exit"): // always
		os.Exit(3)
	case ordered("helper"): // that the module has started, and that keeps all that it has inherited
		helper := exec.Command("sleep", "600") //nolint:noctx // it outlives the call
		for fd := range uintptr(100) {
			link, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
			if strings.HasPrefix(link, "socket:") {
				helper.ExtraFiles = append(helper.ExtraFiles, os.NewFile(fd, link))
			}
		}
		helper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		f.log(fmt.Sprint("helper: ", helper.Start()))
		_ = os.WriteFile(filepath.Join(f.dir, "helper"), fmt.Append(nil, helper.Process.Pid), 0o600)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case ordered("leave"): // the process group
		group, _ := syscall.Getpgid(os.Getppid())
		f.log(fmt.Sprint("left: ", syscall.Setpgid(0, group)))
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		select {}
	case ordered("freeze"):
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		select {}
	case ordered("hang"): // as a module does, in a step with a limit
		return deadline.Step(ctx, 50*time.Millisecond, func() error {
			return failure.New(failure.Timeout, "the module did not answer within 50ms while %s", operation)
		}, func() error { select {} })
	case ordered("wait"): // until the order is given that it returns
		for !ordered("return") {
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

func (f faulty) Open(ctx context.Context, s *config.Settings) (keystore.Store, error) {
	if err := f.obey(ctx, "Open"); err != nil {
		return nil, err
	}
	store, err := f.Module.Open(ctx, s)
	if err != nil {
		return nil, err
	}
	return &faultyStore{Store: store, faulty: f}, nil
}

func (f faulty) Generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error) {
	if err := f.obey(ctx, "Generate"); err != nil {
		return key.Info{}, err
	}
	return f.Module.Generate(ctx, s, r)
}

func (f faulty) Close() error {
	f.log(fmt.Sprintf("closed with %d stores", f.OpenStores()))
	return f.Module.Close()
}

// stands reports whether an order stands, which is not carried out once alone.
func (f faulty) stands(order string) bool {
	_, err := os.Stat(filepath.Join(f.dir, order))
	return err == nil
}

type faultyStore struct {
	keystore.Store
	faulty faulty
}

// Login logs that a PIN is tried.
func (s *faultyStore) Login(ctx context.Context) error {
	return s.Store.Login(pin.WithAsker(ctx, func(_ context.Context, token string) (*pin.Secret, error) {
		secret, err := pin.Read(ctx, fromParent, token)
		if err == nil {
			s.faulty.log("PIN")
			err = s.faulty.obey(ctx, "Login")
		}
		return secret, err
	}))
}

func (s *faultyStore) Key(ctx context.Context, public crypto.PublicKey) (keystore.Key, error) {
	k, err := s.Store.Key(ctx, public)
	if err != nil {
		return nil, err
	}
	return &faultyKey{Key: k, faulty: s.faulty}, nil
}

func (s *faultyStore) Keys(ctx context.Context) ([]keystore.Key, error) {
	keystore.ReportProgress(ctx, "listing keys", 1, 2)
	if err := s.faulty.obey(ctx, "Keys"); err != nil {
		return nil, err
	}
	keys, err := s.Store.Keys(ctx)
	for i, k := range keys {
		keys[i] = &faultyKey{Key: k, faulty: s.faulty}
	}
	return keys, err
}

func (s *faultyStore) Import(ctx context.Context, k keystore.Key, chain []*x509.Certificate) (int, error) {
	return s.Store.Import(ctx, k.(*faultyKey).Key, chain)
}

func (s *faultyStore) Delete(ctx context.Context, k keystore.Key, certificates []*x509.Certificate) error {
	if err := s.faulty.obey(ctx, "Delete"); err != nil {
		return err
	}
	return s.Store.Delete(ctx, k.(*faultyKey).Key, certificates)
}

func (s *faultyStore) Wrap(ctx context.Context, k keystore.Key, reference config.URI) (key.Wrapped, error) {
	return s.Store.Wrap(ctx, k.(*faultyKey).Key, reference)
}

type faultyKey struct {
	keystore.Key
	faulty faulty
}

func (k *faultyKey) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.faulty.obey(ctx, "Sign"); err != nil {
		return nil, err
	}
	return k.Key.Sign(ctx, digest, opts)
}

// A fixture is a Backend with one module, whose processes have a key "release" on a token "signing".
type fixture struct {
	backend  *Backend
	settings config.Settings
	private  crypto.Signer
	dir      string
}

// newFixture returns a Backend with short limits. The module's timeout has no effect on the module in memory; it bounds
// how long the Backend waits before it asks the process whether it still serves.
func newFixture(t testing.TB) *fixture {
	t.Helper()
	spec, err := key.ParseSpec("EC-256")
	if err != nil {
		t.Fatal(err)
	}
	private, err := keystoretest.NewKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := &fixture{
		backend: New(keystoretest.New()), private: private, dir: dir,
		settings: config.Settings{
			Key: config.URI{Token: "signing", Object: "release"}, ModulePath: keystoretest.Path, PIN: keystoretest.PIN,
			Timeout: time.Minute,
			Env:     map[string]string{keyVariable: base64.StdEncoding.EncodeToString(der), dirVariable: dir},
		},
	}
	f.backend.limits.pause, f.backend.limits.rest = time.Millisecond, time.Hour
	t.Cleanup(func() { _ = f.backend.Close() })
	return f
}

// order gives an order to the next call of an operation.
func (f *fixture) order(t testing.TB, orders ...string) {
	t.Helper()
	for _, order := range orders {
		if err := os.WriteFile(filepath.Join(f.dir, order), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// obeyed reports whether an order was carried out.
func (f *fixture) obeyed(order string) bool {
	_, err := os.Stat(filepath.Join(f.dir, order))
	return os.IsNotExist(err)
}

// logged returns how many lines of the log begin with a text.
func (f *fixture) logged(text string) int {
	log, _ := os.ReadFile(filepath.Join(f.dir, "log"))
	return strings.Count("\n"+string(log), "\n"+text)
}

// open opens the key.
func (f *fixture) open(t testing.TB) (keystore.Store, keystore.Key) {
	t.Helper()
	store, err := f.backend.Open(t.Context(), &f.settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	k, err := store.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return store, k
}
