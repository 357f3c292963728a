package publisher

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// world is a repository in a real registry, with keys in memory, and a broker that notes what it signs.
type world struct {
	t       testing.TB
	name    string
	targets *tuf.Signer
	keys    map[string]*ecdsa.PrivateKey // by name in the policy
	root    []byte
	reader  *tags.Repository

	mu     sync.Mutex
	signed []string // KEY NAME-OF-ARTIFACT of each signature
	refuse error    // why nothing is signed
	waits  bool     // a rule has approvals
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

func sign(private *ecdsa.PrivateKey, data []byte) ([]byte, error) {
	sum := sha256.Sum256(data)
	return ecdsa.SignASN1(rand.Reader, private, sum[:])
}

func signer(t testing.TB, private *ecdsa.PrivateKey) *tuf.Signer {
	t.Helper()
	s, err := tuf.NewSignerOf(private.Public(), func(_ context.Context, data []byte, _ crypto.SignerOpts) ([]byte, error) {
		return sign(private, data)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newWorld publishes the first metadata of a repository.
func newWorld(t testing.TB, name string) *world {
	t.Helper()
	w := &world{t: t, name: name, targets: signer(t, newKey(t)),
		keys: map[string]*ecdsa.PrivateKey{"snap": newKey(t), "time": newKey(t)}}
	root := signer(t, newKey(t))
	one := func(s *tuf.Signer) tuf.RoleKeys { return tuf.RoleKeys{Keys: []*tuf.Key{s.Key}, Threshold: 1} }
	snapshot, timestamp := signer(t, w.keys["snap"]), signer(t, w.keys["time"])
	first, err := tuf.NewRoot(one(root), one(w.targets), one(snapshot), one(timestamp))
	w.must(err)
	w.must(first.Sign(t.Context(), []*tuf.Signer{root}))
	w.root, err = first.Encode()
	w.must(err)
	registries := registry.New(registry.Options{PlainHTTP: true, Limits: tufstore.Round})
	t.Cleanup(registries.Close)
	w.reader = &tags.Repository{Name: name, Registries: registries, Root: w.root, Dir: t.TempDir()}
	w.must(w.reader.Init(t.Context(), first, []*tuf.Signer{w.targets, snapshot, timestamp}))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// propose has the targets key sign a tag.
func (w *world) propose(tag string) {
	w.t.Helper()
	_, err := w.reader.Change(w.t.Context(), tuf.Change{Set: []tuf.Target{{Tag: tag, Digest: digest.FromString(tag),
		Size: 1}}}, []*tuf.Signer{w.targets}, 0)
	w.must(err)
}

// tag returns whether a tag is published.
func (w *world) tag(tag string) bool {
	w.t.Helper()
	v, _, err := w.reader.View(w.t.Context(), false)
	w.must(err)
	_, err = v.Resolve(w.t.Context(), tag)
	return err == nil
}

// Sign signs as a broker does, for the publisher of the repository alone.
func (w *world) Sign(_ context.Context, caller identity.Caller, key string, r brokerapi.SignatureRequest) (
	*broker.Outcome, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	artifact, err := payload.Read(r.Payload)
	if err != nil {
		return nil, err
	}
	switch {
	case caller.Issuer != "publisher" || caller.Subject != w.name || r.Algorithm != "ECDSA-SHA-256" ||
		artifact.Format != payload.TUF:
		w.t.Errorf("%+v asks for %s of %+v", caller, r.Algorithm, artifact)
	case w.refuse != nil:
		return nil, w.refuse
	case w.waits:
		return &broker.Outcome{Request: &brokerapi.Request{Rule: "people"}}, nil
	}
	w.signed = append(w.signed, key+" "+artifact.Name)
	signature, err := sign(w.keys[key], r.Payload)
	return &broker.Outcome{Signature: &brokerapi.Signature{Signature: signature}}, err
}

// publisher returns a publisher of the world's repository and others, which reaches it at an address.
func (w *world) publisher(address string, others ...Repository) *Publisher {
	w.t.Helper()
	registries, err := repository.New(repository.Config{Registries: []repository.Registry{
		{Host: address, PlainHTTP: true}}})
	w.must(err)
	p := New(Options{Registries: registries, Dir: w.t.TempDir(), Sign: w.Sign, Registerer: prometheus.NewRegistry(),
		Repositories: append(others, Repository{Name: address + "/team/app", Root: w.root, Snapshot: "snap",
			Timestamp: "time"}),
		Public: func(_ context.Context, key string) (crypto.PublicKey, error) { return w.keys[key].Public(), nil }})
	p.interval = 10 * time.Millisecond
	return p
}

// metric returns the value of a metric of a repository, whose other label has a value.
func (w *world) metric(p *Publisher, name, repository, value string) float64 {
	w.t.Helper()
	families, err := p.options.Registerer.(*prometheus.Registry).Gather()
	w.must(err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if l := m.GetLabel(); family.GetName() == name && l[0].GetValue() == repository && l[1].GetValue() == value {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() // of which it is one
			}
		}
	}
	w.t.Fatalf("there is no %s of %s and %s", name, repository, value)
	return 0
}

// rounds returns how often a repository had a result.
func (w *world) rounds(p *Publisher, repository, result string) float64 {
	w.t.Helper()
	return w.metric(p, "hsm_broker_tag_rounds_total", repository, result)
}

// expires returns when the timestamp of a repository expires.
func (w *world) expires(p *Publisher, repository string) float64 {
	w.t.Helper()
	return w.metric(p, "hsm_broker_tag_expiry_timestamp_seconds", repository, "timestamp")
}

// TestPublish publishes what is proposed, and signs nothing when nothing is.
func TestPublish(t *testing.T) {
	address := oci.StartRegistry(t)
	w := newWorld(t, address+"/team/app")
	p := w.publisher(address)
	if report, err := p.round(t.Context(), p.repositories[0]); err != nil || report.Published || len(w.signed) > 0 {
		t.Fatalf("%+v, %v, %v", report, err, w.signed)
	}
	w.propose("v1")
	report, err := p.round(t.Context(), p.repositories[0])
	if err != nil || !report.Published || report.Proposals != 1 || len(report.Kept) > 0 || !w.tag("v1") ||
		strings.Join(w.signed, ",") != "snap snapshot,time timestamp" {
		t.Fatalf("%+v, %v, %v", report, err, w.signed)
	}
	p.metrics.count(w.name, report, nil)
	if got := w.expires(p, w.name); got !=
		float64(report.Expiry.Timestamp.Unix()) || report.Expiry.Timestamp.IsZero() || w.rounds(p, w.name, "published") != 1 {
		t.Errorf("%v, %v", got, report)
	}
}

// TestIdle reads what is published once while nothing is proposed, and again after a while.
func TestIdle(t *testing.T) {
	address := oci.StartRegistry(t)
	w := newWorld(t, address+"/team/app")
	target, err := url.Parse("http://" + address)
	w.must(err)
	var reads atomic.Int32
	forward := httputil.NewSingleHostReverseProxy(target)
	proxy := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && path.Base(r.URL.Path) == tufstore.Tag {
			reads.Add(1)
		}
		forward.ServeHTTP(out, r)
	}))
	t.Cleanup(proxy.Close)
	through := strings.TrimPrefix(proxy.URL, "http://")
	w.name = through + "/team/app"
	p := w.publisher(through)
	r := p.repositories[0]
	idle := func(want int32) {
		t.Helper()
		for range 3 {
			if report, err := p.round(t.Context(), r); err != nil || report.Published || report.Expiry.Timestamp.IsZero() {
				t.Fatalf("%+v, %v", report, err)
			}
		}
		if n := reads.Swap(0); n != want {
			t.Errorf("what is published was read %d times, not %d", n, want)
		}
	}
	idle(1)
	r.read = r.read.Add(-reread)
	idle(1)
	w.propose("v1")
	if report, err := p.round(t.Context(), r); err != nil || !report.Published || !w.tag("v1") {
		t.Errorf("%+v, %v", report, err)
	}
	reads.Store(0)
	idle(0)
}

// TestSameKey asks for one signature of each role if one key is both.
func TestSameKey(t *testing.T) {
	w := &world{t: t, name: "registry.example.com/app", keys: map[string]*ecdsa.PrivateKey{"one": newKey(t)}}
	p := w.publisher("127.0.0.1:1")
	all, err := p.signers(t.Context(), &followed{Repository: Repository{Snapshot: "one", Timestamp: "one"}})
	if err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

// TestRefused publishes nothing while the broker refuses or has the publisher wait, and goes on by itself.
func TestRefused(t *testing.T) {
	address := oci.StartRegistry(t)
	w := newWorld(t, address+"/team/app")
	p := w.publisher(address)
	var logged bytes.Buffer
	old := slog.Default()
	t.Cleanup(func() { slog.SetDefault(old) })
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
	w.propose("v1")
	r := p.repositories[0]
	for _, c := range []struct {
		refuse error
		waits  bool
		want   string
	}{
		{refuse: failure.New(failure.Denied, `the key "snap" is blocked since today`).WithHint("ask"),
			want: "is blocked since today"},
		{waits: true, want: `the rule \"people\" of key \"snap\" has the publisher wait`},
	} {
		w.refuse, w.waits = c.refuse, c.waits
		logged.Reset()
		for range 3 {
			report, err := p.round(t.Context(), r)
			if !failure.Is(err, failure.Denied) || w.tag("v1") {
				t.Fatalf("%+v, %v", report, err)
			}
			r.tell(report, err)
		}
		if text := logged.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, c.want) ||
			!strings.Contains(text, "hint=") {
			t.Errorf("logged is\n%s", text)
		}
	}
	w.refuse, w.waits = nil, false
	logged.Reset()
	report, err := p.round(t.Context(), r)
	if r.tell(report, err); err != nil || !w.tag("v1") || !strings.Contains(logged.String(), "published tags") {
		t.Errorf("%v\n%s", err, logged.String())
	}
	if r.told != "" {
		t.Errorf("%q is still told", r.told)
	}
}

// TestRun goes on with a repository while others fail, and ends with its context.
func TestRun(t *testing.T) {
	address := oci.StartRegistry(t)
	w := newWorld(t, address+"/team/app")
	p := w.publisher(address,
		Repository{Name: "other.example.com/app", Root: w.root, Snapshot: "snap", Timestamp: "time"},
		Repository{Name: address + "/none", Root: w.root, Snapshot: "snap", Timestamp: "time"})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.Run(ctx)
	}()
	for _, tag := range []string{"v1", "v2"} {
		for w.propose(tag); !w.tag(tag); {
			time.Sleep(10 * time.Millisecond)
		}
	}
	for w.rounds(p, "other.example.com/app", "failed") == 0 || w.rounds(p, address+"/none", "failed") == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-ended
	if got := w.expires(p, "other.example.com/app"); got != 0 {
		t.Errorf("a repository that was never read expires at %v", got)
	}
}

// TestDroppedWrites fails when a registry accepts what is published and does not serve it.
func TestDroppedWrites(t *testing.T) {
	address := oci.StartRegistry(t)
	w := newWorld(t, address+"/team/app")
	target, err := url.Parse("http://" + address)
	w.must(err)
	var drops atomic.Bool
	forward := httputil.NewSingleHostReverseProxy(target)
	proxy := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if drops.Load() && r.Method == http.MethodPut && path.Base(r.URL.Path) == tufstore.Tag {
			out.WriteHeader(http.StatusCreated)
			return
		}
		forward.ServeHTTP(out, r)
	}))
	t.Cleanup(proxy.Close)
	through := strings.TrimPrefix(proxy.URL, "http://")
	w.propose("v1")
	w.name = through + "/team/app"
	p := w.publisher(through)
	drops.Store(true)
	if _, err := p.round(t.Context(), p.repositories[0]); !failure.Is(err, failure.Conflict) ||
		!strings.Contains(err.Error(), "does not serve what was published") {
		t.Errorf("%v", err)
	}
	drops.Store(false)
	if _, err := p.round(t.Context(), p.repositories[0]); err != nil || !w.tag("v1") {
		t.Error(err)
	}
}

// TestKeysChange reads the keys again after a failure: the policy may have others.
func TestKeysChange(t *testing.T) {
	address := oci.StartRegistry(t)
	w := newWorld(t, address+"/team/app")
	p := w.publisher(address)
	r := p.repositories[0]
	right := w.keys["snap"]
	w.keys["snap"] = newKey(t)
	w.propose("v1")
	if _, err := p.round(t.Context(), r); !failure.Is(err, failure.Denied) {
		t.Error(err)
	}
	w.keys["snap"] = right
	if _, err := p.round(t.Context(), r); err != nil || !w.tag("v1") {
		t.Error(err)
	}
}
