package proof_test

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// vectorsPath is the file of the vectors: cases for all who implement the format.
const vectorsPath = "../../docs/vectors/approvals.json"

// vector is a bundle, what it is verified against, and the outcome.
type vector struct {
	Name      string          `json:"name"`
	Refused   string          `json:"refused,omitempty"` // words of the error; "" if it is accepted
	Now       int64           `json:"now"`               // Unix time
	Signature vectorSignature `json:"signature"`
	Demand    vectorDemand    `json:"demand"`
	Bundle    []byte          `json:"bundle"`
}

type vectorSignature struct {
	Digest      string            `json:"digest"`
	Leaf        string            `json:"leaf"`
	Payload     string            `json:"payload"`
	Signature   string            `json:"signature"`
	Annotations map[string]string `json:"annotations"`
	Expiry      int64             `json:"expiry"`
	MediaType   string            `json:"media_type"`
	Size        int64             `json:"size"`
}

type vectorDemand struct {
	Groups      []vectorGroup     `json:"groups"`
	Credentials [][]byte          `json:"credentials"`
	Names       map[string]string `json:"names"` // of people by their ids
	Log         []string          `json:"log"`
	Witnesses   []string          `json:"witnesses"`
	Cosigned    int               `json:"cosigned"`
	MaxAge      int64             `json:"max_age"` // seconds
}

type vectorGroup struct {
	Name        string          `json:"name"`
	Members     []string        `json:"members"`
	Quorum      int             `json:"quorum"`
	Kinds       []approval.Kind `json:"kinds"`
	Attested    bool            `json:"attested"`
	DeviceBound bool            `json:"device_bound"`
}

// newVector returns the vector of a bundle in a scene.
func newVector(s *scene, name, refused string, bundle []byte) vector {
	v := vector{Name: name, Refused: refused, Now: s.log.Now.Unix(), Bundle: bundle,
		Signature: vectorSignature{s.wanted.Digest, s.wanted.Leaf, s.wanted.Payload, s.wanted.Signature,
			s.wanted.Annotations, s.wanted.Expiry, s.wanted.MediaType, s.wanted.Size},
		Demand: vectorDemand{Names: s.demand.Names, Cosigned: s.demand.Cosigned,
			MaxAge: int64(s.demand.MaxAge / time.Second)}}
	for _, g := range s.demand.Groups {
		v.Demand.Groups = append(v.Demand.Groups, vectorGroup{g.Name, g.Members, g.Quorum, g.Kinds, g.Attested,
			g.DeviceBound})
	}
	for _, id := range slices.Sorted(maps.Keys(s.demand.Credentials)) {
		v.Demand.Credentials = append(v.Demand.Credentials, s.demand.Credentials[id])
	}
	for _, l := range s.demand.Log {
		v.Demand.Log = append(v.Demand.Log, l.String())
	}
	for _, w := range s.demand.Witnesses {
		v.Demand.Witnesses = append(v.Demand.Witnesses, w.String())
	}
	return v
}

// verify verifies the bundle of a vector.
func (v *vector) verify(t *testing.T) error {
	t.Helper()
	d := &proof.Demand{Credentials: map[string][]byte{}, Names: v.Demand.Names, Cosigned: v.Demand.Cosigned,
		MaxAge: time.Duration(v.Demand.MaxAge) * time.Second}
	for _, g := range v.Demand.Groups {
		d.Groups = append(d.Groups, proof.Group{Name: g.Name, Members: g.Members, Quorum: g.Quorum, Kinds: g.Kinds,
			Attested: g.Attested, DeviceBound: g.DeviceBound})
	}
	for _, document := range v.Demand.Credentials {
		d.Credentials[approval.Hash(document)] = document
	}
	for _, text := range v.Demand.Log {
		verifier, err := translog.ParseVerifier(text)
		if err != nil {
			t.Fatal(err)
		}
		d.Log = append(d.Log, verifier)
	}
	for _, text := range v.Demand.Witnesses {
		witness, err := translog.ParseWitness(text)
		if err != nil {
			t.Fatal(err)
		}
		d.Witnesses = append(d.Witnesses, witness)
	}
	s := v.Signature
	_, err := proof.Verify(v.Bundle, proof.Signature{Digest: s.Digest, Leaf: s.Leaf, Payload: s.Payload,
		Signature: s.Signature, Annotations: s.Annotations, Expiry: s.Expiry, MediaType: s.MediaType, Size: s.Size}, d,
		time.Unix(v.Now, 0))
	return err
}

// attacksOfVectors are the attacks that are vectors.
var attacksOfVectors = []string{"another image", "another signature", "other annotations", "a removed approver",
	"wrong kind", "one person in two groups", "too old", "another log", "an approval less", "no intent entry",
	"the proof of another entry", "a fork", "two approvals of one person", "approval after the intent",
	"a withdrawn approval", "signed after the approvals expired", "a retry without a signature",
	"the requester's own approval", "a signature of another key", "an ssh signature of another approval",
	"a passkey's signature of another approval", "a key's signature of another approval",
	"a passkey's signature with another counter", "an artifact that nobody agreed to", "another key of the log",
	"one cosignature of two"}

// historiesOfVectors are the histories that are vectors, each with its last signature.
var historiesOfVectors = []string{"one signature", "signed again", "several artifacts and uses",
	"withdrawn and approved anew", "of one artifact with two annotations"}

// makeVectors makes all vectors anew.
func makeVectors(t *testing.T) (all []vector) {
	t.Helper()
	for _, name := range historiesOfVectors {
		h := histories[slices.IndexFunc(histories, func(h history) bool { return h.name == name })]
		s := newScene(t)
		r, signatures := h.make(s)
		s.wanted = signatures[len(signatures)-1]
		all = append(all, newVector(s, name, "", prooftest.Encode(t, r.Bundle())))
	}
	all = append(all, kindVectors(t)...)
	attacks := slices.Concat(wrongDemands, forgedBundles, wickedLogs, forgedApprovals, witnessed)
	for _, name := range attacksOfVectors {
		a := attacks[slices.IndexFunc(attacks, func(a attack) bool { return a.name == name })]
		s := newScene(t)
		data := prooftest.Encode(t, a.make(s)) // before the demand is read: an attack can change it
		all = append(all, newVector(s, a.name, a.words, data))
	}
	s := newScene(t)
	data := append(prooftest.Encode(t, s.good().Bundle()), '\n')
	return append(all, newVector(s, "white space", "cannot read the bundle", data))
}

// kindVectors returns vectors of approvals by keys of all kinds, which witnesses have cosigned.
func kindVectors(t *testing.T) []vector {
	t.Helper()
	s := newScene(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	people := []*prooftest.Person{s.alice, s.bob, s.carol, s.dave, prooftest.KeyPerson(t, "rsa", key),
		prooftest.KeyPerson(t, "ed25519", prooftest.Ed25519(7)),
		prooftest.SSHPerson(t, "ssh-p256", prooftest.Key(elliptic.P256(), 8))}
	stranger := prooftest.SSHPerson(t, "stranger", prooftest.Ed25519(9))
	r := s.request(nil)
	approve(r, append(people, stranger)...)
	r.Sign(s.wanted, nil)
	for range 5 {
		s.log.Append(entry.Event{Type: entry.Blocked, Key: "other"})
	}
	s.demand = prooftest.Demand(s.log, len(people), people...)
	trust(s, 2, north, south)
	b := r.Bundle()
	b.Checkpoint = south.Cosign(north.Cosign(b.Checkpoint, s.log.Now), s.log.Now)
	data := prooftest.Encode(t, b)
	all := []vector{newVector(s, "all kinds and two witnesses", "", data)}
	g := &s.demand.Groups[0]
	g.Quorum, g.Members = 1, []string{s.carol.ID}
	g.Attested, g.DeviceBound = true, true
	all = append(all, newVector(s, "an attested passkey", "", data))
	two := *g // alice counts for the second, so that bob can for the first
	two.Name, two.Members, two.Quorum = "security", []string{s.alice.ID}, 1
	g.Members = []string{s.alice.ID, s.bob.ID}
	s.demand.Groups = append(s.demand.Groups, two)
	return append(all, newVector(s, "two groups", "", data))
}

// TestVectors verifies the vectors. With UPDATE_VECTORS=1 it makes them anew.
func TestVectors(t *testing.T) {
	t.Parallel()
	if os.Getenv("UPDATE_VECTORS") == "1" {
		data, err := json.MarshalIndent(makeVectors(t), "", " ")
		if err == nil {
			err = os.WriteFile(vectorsPath, append(data, '\n'), 0o644) //nolint:gosec // for all to read
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	accepted := 0
	vectors := readVectors(t)
	for _, v := range vectors {
		err := v.verify(t)
		switch {
		case v.Refused != "":
			denies(t, v.Name, err, v.Refused)
		case err != nil:
			t.Errorf("%s: %v", v.Name, err)
		default:
			accepted++
		}
	}
	if accepted < 5 || len(vectors)-accepted < 15 {
		t.Errorf("%d of %d vectors are accepted", accepted, len(vectors))
	}
}

func readVectors(t *testing.T) (vectors []vector) {
	t.Helper()
	data, err := os.ReadFile(vectorsPath)
	if err == nil {
		err = json.Unmarshal(data, &vectors)
	}
	if err != nil {
		t.Fatal(err)
	}
	return vectors
}

// TestPython has another verifier, of another language and library, accept and refuse the same.
func TestPython(t *testing.T) {
	t.Parallel()
	if exec.Command("python3", "-c", "import cryptography").Run() != nil {
		softhsmtest.Missing(t, "python3-cryptography")
	}
	script, err := filepath.Abs("../../docs/verify-bundle.py")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("python3", script, vectorsPath).CombinedOutput() //nolint:gosec // our own script
	if err != nil || strings.Count(string(out), "\n") != len(readVectors(t)) {
		t.Errorf("%v: %s", err, out)
	}
}
