package main

import (
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// approved measures what it costs to verify a bundle of approvals: one image, under two trust directories of which one
// demands that two of three people approved its signature. The log has a thousand entries.
func (b *bench) approved(f fixture, ours, registry string) {
	forger, err := oci.NewForger("release", "")
	if err != nil {
		f.Fatal(err)
	}
	log := prooftest.NewLog(f)
	log.Now = time.Now().Add(-time.Hour)
	for i := range 1000 {
		log.Append(entry.Event{Type: entry.Blocked, Key: fmt.Sprint("other-", i)})
	}
	people := []*prooftest.Person{prooftest.KeyPerson(f, "ann", prooftest.Key(elliptic.P256(), 1)),
		prooftest.SSHPerson(f, "ben", prooftest.Ed25519(2)), prooftest.KeyPerson(f, "cem", prooftest.Key(elliptic.P384(), 3))}
	repository := registry + "/approved"
	image := b.pushApproved(f, repository, forger, log, people)
	command := func(demand bool) contender {
		return contender{command: []string{ours, "verify", "--plain-http", "--trust-dir",
			b.trustDir(f, repository, forger, log, people, demand), image}}
	}
	r := b.race(50, command(true), command(false))
	b.add(row{
		name: "`hsm-image verify` with a bundle of approvals, ms", ours: spread(r[0].milliseconds),
		other: "without: " + spread(r[1].milliseconds),
	}.ratio(r[0].milliseconds.ratio(r[1].milliseconds), "without", atMost(1.2)))
}

// pushApproved pushes an image with a signature and the bundle of its approvals, and returns its name.
func (b *bench) pushApproved(f fixture, repository string, forger *oci.Forger, log *prooftest.Log,
	people []*prooftest.Person) string {
	name := repository + ":v1"
	if _, err := oci.PushImage(b.ctx, name, "approved"); err != nil {
		f.Fatal(err)
	}
	var image ocispec.Descriptor
	var envelope []byte
	if _, err := oci.PushSignature(b.ctx, name, jws.MediaTypeEnvelope, func(d ocispec.Descriptor) (_ []byte, err error) {
		image = d
		envelope, err = forger.Sign(jws.MediaTypeEnvelope, d, nil)
		return envelope, err
	}); err != nil {
		f.Fatal(err)
	}
	s := proof.Signature{Digest: image.Digest.String(), MediaType: image.MediaType, Size: image.Size,
		Leaf: fmt.Sprintf("sha256:%x", sha256.Sum256(forger.Certificate.Raw))}
	var err error
	if s.Payload, s.Signature, err = proof.OfEnvelope(jws.MediaTypeEnvelope, envelope); err != nil {
		f.Fatal(err)
	}
	request := log.NewRequest("release", s.Leaf, []string{s.Digest}, func(st *approval.Statement, _ *entry.Event) {
		st.Predicate.Targets[0].MediaType, st.Predicate.Targets[0].Size = s.MediaType, s.Size
	})
	for _, p := range people[:2] {
		request.Decide(p, approval.Approve, 0)
	}
	request.Sign(s, nil)
	if err := oci.PushBundle(b.ctx, name, prooftest.Encode(f, request.Bundle()), s.Payload); err != nil {
		f.Fatal(err)
	}
	return repository + "@" + s.Digest
}

// trustDir exports a trust manifest in which the forger may sign. With demand, two of the people have to approve.
func (b *bench) trustDir(f fixture, repository string, forger *oci.Forger, log *prooftest.Log,
	people []*prooftest.Person, demand bool) (to string) {
	folder := f.TempDir()
	path, to := filepath.Join(folder, "trust.yaml"), filepath.Join(folder, "notation")
	check := func(_ any, err error) {
		if err != nil {
			f.Fatal(err)
		}
	}
	check(trust.Init(b.ctx, path))
	write(f, filepath.Join(folder, "cert.pem"), string(forger.PEM()))
	cert, err := trust.FromFile(filepath.Join(folder, "cert.pem"), "")
	check(nil, err)
	check(trust.Add(b.ctx, path, trust.Grant{Name: "release", Scopes: []string{repository}, Cert: cert}))
	if demand {
		var exported []any
		group := trust.ApprovalGroup{Name: "release-managers", Quorum: 2, Kinds: []string{"key", "ssh"}}
		for _, p := range people {
			exported = append(exported, map[string]any{"name": p.Name, "id": p.ID, "credentials": [][]byte{p.Document()}})
			group.Members = append(group.Members, p.Name)
		}
		data, err := json.Marshal(exported)
		check(nil, err)
		approvers, err := trust.ParseApprovers(data)
		check(nil, err)
		check(nil, trust.AddApprovers(b.ctx, path, approvers, false))
		check(nil, trust.AddApprovals(b.ctx, path, trust.Approvals{Scope: repository, Groups: []trust.ApprovalGroup{group},
			Log: []string{log.Verifier().String()}}, false))
	}
	check(trust.Export(b.ctx, path, to))
	return to
}
