package broker

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	"github.com/notation-hsm/notation-hsm/internal/translog/witnesstest"
)

// demands returns a demand for people of the fixture.
func (f *fixture) demands(quorum int, names ...string) *proof.Demand {
	f.t.Helper()
	v, err := translog.NewVerifier(f.origin(), f.log.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	g := proof.Group{Name: "managers", Quorum: quorum, Kinds: []approval.Kind{approval.Key}}
	d := &proof.Demand{Credentials: map[string][]byte{}, Log: []*translog.Verifier{v}}
	for _, name := range names {
		g.Members = append(g.Members, f.personID(name))
		id := f.credentialOf(name)
		if d.Credentials[id], err = f.Document(f.t.Context(), id); err != nil {
			f.t.Fatal(err)
		}
	}
	d.Groups = []proof.Group{g}
	return d
}

// TestBundle verifies the bundle that the broker makes, for the first signature and for one that is made again.
func TestBundle(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.keys.chain = []*x509.Certificate{{Raw: []byte("leaf")}}
	f.start()
	r := f.waits("pipeline", 1)
	f.approves(r.ID, "alice", "bob")
	if _, err := f.decide("alice", r.ID, approval.Withdraw); err != nil {
		t.Fatal(err)
	}
	f.approves(r.ID, "alice", "dave")
	var signatures []proof.Signature
	for range 2 {
		payload := f.image(1).Payload
		made := f.signs("pipeline", 1)
		signatures = append(signatures, proof.Signature{Digest: fmt.Sprintf("sha256:%064x", 1), Leaf: hashOf([]byte("leaf")),
			Payload: hashOf(payload), Signature: hashOf(made.Signature), Size: 500,
			MediaType: "application/vnd.oci.image.manifest.v1+json"})
		f.later(time.Minute)
	}
	bundle, err := f.Bundle(t.Context(), caller("pipeline"), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	demand := f.demands(3, "alice", "bob", "dave")
	for i, s := range signatures {
		shown, err := proof.Verify(bundle, s, demand, f.clock.now())
		if err != nil || shown.Request != r.ID || len(shown.Approvers) != 3 {
			t.Errorf("signature %d: %+v, %v", i, shown, err)
		}
	}
	if _, err := proof.Verify(bundle, signatures[0], f.demands(2, "alice", "carol"), f.clock.now()); !failure.Is(err,
		failure.Denied) {
		t.Error(err)
	}
	if now, err := f.Request(t.Context(), caller("pipeline"), r.ID); err != nil || now.State != brokerapi.Signed {
		t.Errorf("%+v, %v", now, err)
	}
}

// TestBundleWithoutWitness has the only witness refuse: the bundle is late, whoever asks is told why, and then it comes
// without a cosignature.
func TestBundleWithoutWitness(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.keys.chain = []*x509.Certificate{{Raw: []byte("leaf")}}
	server := witnesstest.New(t, "a.example.com")
	server.Answer(func(to http.ResponseWriter, _ *http.Request) { http.NotFound(to, nil) })
	named, err := translog.ParseWitness(server.Key)
	if err != nil {
		t.Fatal(err)
	}
	client, err := translog.NewWitnessClient(named, server.Server.URL)
	if err != nil {
		t.Fatal(err)
	}
	f.witnesses = []*translog.WitnessClient{client}
	f.start()
	r := f.waits("pipeline", 1)
	f.approves(r.ID, "alice", "bob", "dave")
	f.signs("pipeline", 1)
	if _, err := f.Bundle(t.Context(), caller("pipeline"), r.ID); !failure.Is(err, failure.Unavailable) ||
		!strings.Contains(err.Error(), "that a witness has cosigned") {
		t.Errorf("before a witness has cosigned: %v", err)
	}
	f.later(witnessPatience)
	for f.Published() < f.durable.Load() {
		time.Sleep(time.Millisecond)
	}
	if _, err := f.Bundle(t.Context(), caller("pipeline"), r.ID); err != nil {
		t.Error(err)
	}
}
