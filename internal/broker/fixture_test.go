package broker

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

const testPolicy = `
version: 1
keys:
  release:
    key: pkcs11:token=test;object=release
    formats: [notation]
    use:
    - name: nightly
      when: caller.subject == "ci" && artifact.repository == ""
      limit: 1000 per hour
    - name: slow
      when: caller.subject == "slow"
      time-lock: 1h
    - name: people
      when: caller.subject == "people"
      approvals: [{group: managers, quorum: 2}]
    block: [{name: anyone, when: caller.subject == "admin"}]
    unblock: [{name: anyone, when: caller.subject == "admin"}]
    modify: [{name: admins, when: caller.subject == "admin"}]
groups:
  managers: [alice, bob]
`

// fixture is a broker with a key in memory and a store on the disk.
type fixture struct {
	*Broker
	t           testing.TB
	dir         string
	store       store.Store
	clock       *testClock
	keys        *testKeys
	policy      string
	config      string
	log         *ecdsa.PrivateKey
	limits      identity.Limits
	unpublished int64
	snapshots   int64       // entries between them
	noLog       atomic.Bool // the log's key is unavailable
	people      map[string]*ecdsa.PrivateKey
	notices     func(Notice) []store.Notice
	witnesses   []*translog.WitnessClient
	keep        func(time.Time) time.Time
}

// testClock is a clock that a test sets.
type testClock struct {
	mu   sync.Mutex
	wall time.Time
	boot time.Duration
}

func (c *testClock) clock() Clock {
	return Clock{Wall: func() time.Time {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.wall
	}, Boot: func() time.Duration {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.boot
	}}
}

// pass lets time pass; jump has the wall clock jump besides.
func (c *testClock) pass(d, jump time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.boot = c.wall.Add(d+jump), c.boot+d
}

func (c *testClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall
}

// testKeys are keys in memory.
type testKeys struct {
	chain   []*x509.Certificate // may be empty
	private *ecdsa.PrivateKey
	uses    atomic.Int64
	before  func() error // is called before a signature
}

func (k *testKeys) Describe(context.Context, string) (crypto.PublicKey, []*x509.Certificate, error) {
	return k.private.Public(), k.chain, nil
}

func (k *testKeys) Sign(_ context.Context, _ string, data []byte, _ string) ([]byte, error) {
	k.uses.Add(1)
	if k.before != nil {
		if err := k.before(); err != nil {
			return nil, err
		}
	}
	hash := sha256.Sum256(data)
	return ecdsa.SignASN1(rand.Reader, k.private, hash[:])
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), unpublished: 1000, policy: testPolicy, config: `{}`,
		clock: &testClock{wall: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), boot: time.Hour},
		keys:  &testKeys{private: generate(t)}, log: generate(t)}
	return f
}

func generate(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

func (f *fixture) database() string       { return filepath.Join(f.dir, "broker.db") }
func (f *fixture) checkpointFile() string { return filepath.Join(f.dir, "checkpoint") }

// start opens the broker.
func (f *fixture) start() {
	f.t.Helper()
	if err := f.open(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) open() error {
	s, err := sqlite.Open(f.t.Context(), f.database())
	if err != nil {
		return err
	}
	f.store = s
	f.Broker, err = Open(f.t.Context(), f.options(s))
	if err != nil {
		s.Close()
		return err
	}
	f.t.Cleanup(f.stop)
	return nil
}

func (f *fixture) options(s store.Store) Options {
	return Options{
		Store: s, Policy: []byte(f.policy), Config: []byte(f.config), Keys: f.keys, Clock: f.clock.clock(), Limits: f.limits,
		snapshotEvery: f.snapshots, witnessEvery: 10 * time.Millisecond, First: f.first(),
		PublicURL: "https://broker.example.com", Notices: f.notices, Keep: f.keep,
		Check: func(_ context.Context, _, _, mediaType string, size int64) (*repository.Claims, error) {
			return &repository.Claims{MediaType: mediaType, ManifestSize: size}, nil
		},
		Log: Log{Origin: "broker.example.com/log", Public: f.log.Public(), File: f.checkpointFile(),
			MaxUnpublished: time.Hour, MaxUnpublishedEntries: f.unpublished, Witnesses: f.witnesses,
			Sign: func(_ context.Context, c translog.Checkpoint) ([]byte, error) {
				if f.noLog.Load() {
					return nil, failure.New(failure.Unavailable, "the log's key is away")
				}
				return c.Sign(f.log)
			}},
	}
}

// stop ends the broker in order.
func (f *fixture) stop() {
	if f.Broker != nil {
		_ = f.Close()
		_ = f.store.Close()
		f.Broker = nil
	}
}

func caller(subject string) identity.Caller {
	return identity.Caller{Issuer: "https://issuer.example.com", Subject: subject, Claims: map[string]any{"sub": subject},
		Admin: subject == "admin"}
}

// image returns what Notation has signed for image number n, at the broker's time.
func (f *fixture) image(n int) brokerapi.SignatureRequest { return imageAt(n, f.clock.now()) }

func imageAt(n int, at time.Time) brokerapi.SignatureRequest {
	header := `{"alg":"ES256","crit":["io.cncf.notary.signingScheme"],"cty":"application/vnd.cncf.notary.payload.v1+json",` +
		`"io.cncf.notary.signingScheme":"notary.x509","io.cncf.notary.signingTime":"` + at.UTC().Format(time.RFC3339) + `"}`
	body := fmt.Sprintf(`{"targetArtifact":{"digest":"sha256:%064x",`+
		`"mediaType":"application/vnd.oci.image.manifest.v1+json","size":500}}`, n)
	encode := base64.RawURLEncoding.EncodeToString
	return brokerapi.SignatureRequest{Payload: []byte(encode([]byte(header)) + "." + encode([]byte(body))),
		Algorithm: "ECDSA-SHA-256"}
}

// signs signs image number n and verifies the signature.
func (f *fixture) signs(subject string, n int) *brokerapi.Signature {
	f.t.Helper()
	r := f.image(n)
	outcome, err := f.Sign(f.t.Context(), caller(subject), "release", r)
	if err != nil {
		f.t.Fatal(err)
	}
	if outcome.Signature == nil {
		f.t.Fatalf("the request waits: %+v", outcome.Request)
	}
	if !brokerapi.Verify(f.keys.private.Public(), r.Payload, outcome.Signature.Signature, crypto.SHA256) {
		f.t.Fatal("the signature does not verify")
	}
	return outcome.Signature
}

// failsWith checks the kind of a failure and a part of its text.
func failsWith(t testing.TB, err error, kind failure.Kind, text string) {
	t.Helper()
	if err == nil || failure.From(err).Kind != kind || !strings.Contains(err.Error(), text) {
		t.Fatalf("want %s with %q, got %v", kind, text, err)
	}
}

// events returns the types of the entries of the log, in order. It audits the log.
func (f *fixture) events() (types []string) {
	f.t.Helper()
	size, err := f.store.Size(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	audit := NewAudit()
	err = f.store.Entries(f.t.Context(), 0, size, func(index int64, entry []byte) error {
		e, err := decodeEvent(entry)
		if err == nil {
			types = append(types, e.Type)
			err = audit.Entry(index, entry)
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return types
}
