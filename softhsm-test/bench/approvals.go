package main

import (
	"crypto/elliptic"
	"crypto/sha256"
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
	"github.com/notation-hsm/notation-hsm/internal/trust/trusttest"
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
	manifest := trusttest.Manifest(f, repository, forger.PEM(), people...)
	export := func() contender {
		to := filepath.Join(f.TempDir(), "notation")
		if _, err := trust.Export(b.ctx, manifest, to); err != nil {
			f.Fatal(err)
		}
		return contender{command: []string{ours, "verify", "--plain-http", "--trust-dir", to, image}}
	}
	without := export()
	trusttest.Require(f, manifest, repository, log, 2, people...)
	r := b.race(50, export(), without)
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
