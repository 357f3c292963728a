package monitor

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
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

const realPolicy = `
version: 1
people:
  alice: []
  bob: []
keys:
  release:
    key: pkcs11:token=test;object=release
    formats: [notation]
    use:
    - {name: alone, when: caller.subject == "ci"}
    - name: people
      when: caller.subject == "pipeline"
      approvals: [{group: managers, quorum: 2}]
    block: [{name: anyone, when: caller.subject == "admin"}]
    unblock: [{name: anyone, when: caller.subject == "admin"}]
    modify: [{name: anyone, when: caller.subject == "admin"}]
groups:
  managers: [alice, bob]
`

// realBroker is a broker with keys in memory.
type realBroker struct {
	*broker.Broker

	t      testing.TB
	dir    string
	store  store.Store
	key    *ecdsa.PrivateKey
	log    *ecdsa.PrivateKey
	people map[string]*ecdsa.PrivateKey
}

func newRealBroker(t testing.TB) *realBroker {
	t.Helper()
	b := &realBroker{t: t, dir: t.TempDir(), key: newKey(t), log: newKey(t), people: map[string]*ecdsa.PrivateKey{}}
	for _, name := range []string{"alice", "bob"} {
		b.people[name] = newKey(t)
	}
	b.start()
	t.Cleanup(b.stop)
	return b
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Describe returns the public key.
func (b *realBroker) Describe(context.Context, string) (crypto.PublicKey, []*x509.Certificate, error) {
	return b.key.Public(), nil, nil
}

// use signs with the key.
type use struct{ *realBroker }

// Sign signs bytes.
func (u use) Sign(_ context.Context, _ string, data []byte, _ string) ([]byte, error) {
	hash := sha256.Sum256(data)
	return ecdsa.SignASN1(rand.Reader, u.key, hash[:])
}

func (b *realBroker) start() {
	b.t.Helper()
	var err error
	if b.store, err = sqlite.Open(b.t.Context(), filepath.Join(b.dir, "broker.db")); err != nil {
		b.t.Fatal(err)
	}
	var first []broker.FirstApprover
	for _, name := range []string{"alice", "bob"} {
		public, err := x509.MarshalPKIXPublicKey(b.people[name].Public())
		if err != nil {
			b.t.Fatal(err)
		}
		first = append(first, broker.FirstApprover{Name: name, Credential: &approval.Credential{Kind: approval.Key,
			Public: public}})
	}
	b.Broker, err = broker.Open(b.t.Context(), broker.Options{Store: b.store, Policy: []byte(realPolicy),
		Config: []byte("{}"), Keys: use{b}, First: first, PublicURL: "https://broker.example.com",
		Log: broker.Log{Origin: origin, Public: b.log.Public(), File: filepath.Join(b.dir, "checkpoint"),
			MaxUnpublished: time.Hour, MaxUnpublishedEntries: 1000,
			Sign: func(_ context.Context, c translog.Checkpoint) ([]byte, error) { return c.Sign(b.log) }}})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *realBroker) stop() {
	_ = b.Close()
	_ = b.store.Close()
}

func caller(subject string) identity.Caller {
	return identity.Caller{Issuer: "https://issuer.example.com", Subject: subject,
		Claims: map[string]any{"sub": subject}, Admin: subject == "admin"}
}

// signs asks for a signature of image number n, signed at a time.
func (b *realBroker) signs(subject string, n int, at time.Time) *broker.Outcome {
	b.t.Helper()
	header := `{"alg":"ES256","crit":["io.cncf.notary.signingScheme"],"cty":` +
		`"application/vnd.cncf.notary.payload.v1+json","io.cncf.notary.signingScheme":"notary.x509",` +
		`"io.cncf.notary.signingTime":"` + at.UTC().Format(time.RFC3339) + `"}`
	body := fmt.Sprintf(`{"targetArtifact":{"digest":"sha256:%064x",`+
		`"mediaType":"application/vnd.oci.image.manifest.v1+json","size":500}}`, n)
	encode := base64.RawURLEncoding.EncodeToString
	o, err := b.Sign(b.t.Context(), caller(subject), "release", brokerapi.SignatureRequest{
		Payload: []byte(encode([]byte(header)) + "." + encode([]byte(body))), Algorithm: "ECDSA-SHA-256"})
	if err != nil {
		b.t.Fatal(err)
	}
	return o
}

// approves has a person approve a request.
func (b *realBroker) approves(name, id string) {
	b.t.Helper()
	ctx, person := b.t.Context(), identity.Approver(name)
	e, err := b.Evidence(ctx, person, id)
	if err != nil {
		b.t.Fatal(err)
	}
	a := &approval.Approval{Approver: e.You, Decision: approval.Approve, Statement: approval.Hash(e.Statement),
		Time: time.Now()}
	_, _ = rand.Read(a.Random[:])
	document, err := a.Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	all, err := b.CredentialsOf(ctx, name)
	if err != nil || len(all) != 1 {
		b.t.Fatal(all, err)
	}
	for credential := range all {
		signed, err := approval.SignKey(document, credential, b.people[name])
		if err != nil {
			b.t.Fatal(err)
		}
		data, err := signed.Encode()
		if err != nil {
			b.t.Fatal(err)
		}
		if _, err := b.Approve(ctx, person, id, data); err != nil {
			b.t.Fatal(err)
		}
	}
}

// published waits until a checkpoint covers all entries.
func (b *realBroker) published() {
	b.t.Helper()
	for {
		size, err := b.store.Size(b.t.Context())
		if err != nil {
			b.t.Fatal(err)
		}
		if b.Published() == size {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestBroker follows a real broker: what people agreed to is no alert, and what nobody agreed to is.
func TestBroker(t *testing.T) {
	t.Parallel()
	b := newRealBroker(t)
	hash := sha256.Sum256([]byte(realPolicy))
	c, err := ParseConfig("monitor.yaml", []byte(fmt.Sprintf("version: 1\nstate: %s\n"+
		"webhook: {url: http://127.0.0.1:9/}\npolicies: [\"sha256:%x\"]\nkeys: {release: {approvals: 2}}\noff: [credentials]\n", t.TempDir(), hash)))
	if err != nil {
		t.Fatal(err)
	}
	v, err := translog.NewVerifier(origin, b.log.Public())
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, clock: time.Now(), options: Options{Config: c, Verifiers: []*translog.Verifier{v},
		Files: func(ctx context.Context, path string) ([]byte, error) { return b.Log().File(ctx, path) }}}
	w.restart()
	t.Cleanup(func() { w.Close() })
	sees := func(want ...string) []*Alert {
		t.Helper()
		b.published()
		w.clock = time.Now()
		return w.sees(want...)
	}
	sees()
	now := time.Now()
	waits := b.signs("pipeline", 1, now).Request
	b.approves("alice", waits.ID)
	b.approves("bob", waits.ID)
	sees()
	if b.signs("pipeline", 1, now).Signature == nil {
		t.Fatal("the request waits")
	}
	if b.signs("pipeline", 1, now.Add(time.Second)).Signature == nil { // a retry, with another signing time
		t.Fatal("the request waits")
	}
	sees()
	b.stop()
	b.start()
	w.restart()
	if b.signs("ci", 2, now).Signature == nil {
		t.Fatal("the request waits")
	}
	if a := sees(Approvals)[0]; !strings.Contains(a.What, "0 of 2") {
		t.Error(a.What)
	}
	block := broker.Change{What: broker.ChangeBlock, Key: "release"}
	if _, err := b.Propose(t.Context(), caller("admin"), block); err != nil {
		t.Fatal(err)
	}
	sees(Blocks)
	if w.kept.Facts.Unknown != 0 {
		t.Error("a broker logs entries of types that the monitor does not know")
	}
}
