package chaos

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
)

func hash(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// mint returns a token of a job of a repository.
func (w *world) mint(repository string) string {
	return w.issuer.Mint(w.t, identitytest.GitHub(audience, "example/"+repository, "refs/tags/v1"))
}

const mediaType = "application/vnd.oci.image.manifest.v1+json"

// toSign returns what Notation has signed for an artifact. Others return other bytes, of earlier signing times.
func toSign(digest string, other int) brokerapi.SignatureRequest {
	header := `{"alg":"ES256","crit":["io.cncf.notary.signingScheme"],` +
		`"cty":"application/vnd.cncf.notary.payload.v1+json",` +
		`"io.cncf.notary.signingScheme":"notary.x509","io.cncf.notary.signingTime":"` +
		time.Now().UTC().Add(-time.Duration(other)*time.Second).Format(time.RFC3339) + `"}`
	body := `{"targetArtifact":{"digest":"` + digest + `","mediaType":"` + mediaType + `","size":500}}`
	encode := base64.RawURLEncoding.EncodeToString
	return brokerapi.SignatureRequest{Payload: []byte(encode([]byte(header)) + "." + encode([]byte(body))),
		Algorithm: "ECDSA-SHA-256"}
}

// sign asks a replica for a signature.
func (w *world) sign(ctx context.Context, o op, token string, s brokerapi.SignatureRequest) *op {
	o.payload = hash(s.Payload)
	var got struct {
		brokerapi.Signature
		ID    string          `json:"id"` // of a request that waits, instead of a signature
		State brokerapi.State `json:"state"`
	}
	return w.anyone().record(ctx, &o, token, http.MethodPost, brokerapi.SignaturesPath(o.key), s, &got, func() {
		if got.ID != "" {
			o.waits, o.state = got.ID, got.State
			return
		}
		o.signature = hash(got.Signature.Signature)
		if o.kind == signs {
			o.request = got.Request
		} else if got.Request != o.request {
			w.t.Errorf("a signature is of request %s: %s", got.Request, &o)
		}
		if !brokerapi.Verify(w.keys[o.key].Public(), s.Payload, got.Signature.Signature, crypto.SHA256) {
			w.t.Errorf("the signature does not verify: %s", &o)
		}
	})
}

// create makes a request. It returns what it is once it is known.
func (w *world) create(ctx context.Context, r *replica, token, digest string) (*op, *brokerapi.Request) {
	var made brokerapi.Request
	o := &op{kind: creates, replica: r, key: "release"}
	body := brokerapi.NewRequest{Key: "release", Artifact: brokerapi.Target{Format: "notation", MediaType: mediaType,
		Size: 500, Digest: digest}}
	w.anyone().record(ctx, o, token, http.MethodPost, brokerapi.RequestsPath, body, &made, func() { o.request = made.ID })
	return o, &made
}

// read reads a request, as its requester.
func (w *world) read(ctx context.Context, o op, token string) {
	var found brokerapi.Request
	w.anyone().record(ctx, &o, token, http.MethodGet, brokerapi.RequestPath(o.request), nil, &found, func() {
		o.state = found.State
		for _, a := range found.Approvals {
			for _, p := range w.people {
				if a.Counts && a.Person == p.name {
					o.votes |= 1 << p.number
				}
			}
		}
	})
}

// decide gives a replica what a person has signed.
func (w *world) decide(ctx context.Context, o op, p *person, envelope []byte) *op {
	o.person, o.envelope = p.number, hash(envelope)
	return p.caller.record(ctx, &o, "", http.MethodPost, brokerapi.ApprovalsPath(o.request),
		brokerapi.SignedApproval{Envelope: envelope}, nil, nil)
}

// cancel cancels a request, as its requester.
func (w *world) cancel(ctx context.Context, o op, token string) *op {
	return w.anyone().record(ctx, &o, token, http.MethodPost, brokerapi.CancelPath(o.request), nil, nil, nil)
}

// change blocks or unblocks a key, as an operator.
func (w *world) change(ctx context.Context, o op, operator *caller) *op {
	return operator.record(ctx, &o, "", http.MethodPost, brokerapi.KeyPath(o.key)+"/"+string(o.kind), nil, nil, nil)
}

// learnPeople finds out as whom the broker knows each person, and their credentials.
func (w *world) learnPeople() {
	w.t.Helper()
	var made *op
	w.until("there is a request", func() bool {
		made, _ = w.create(w.t.Context(), w.replicas[0], w.mint("release"), hash([]byte("first")))
		return made.outcome == succeeded
	})
	for _, p := range w.people {
		var e brokerapi.Evidence
		w.until(p.name+" sees it", func() bool {
			path := brokerapi.EvidencePath(made.request)
			return p.caller.do(w.t.Context(), w.replicas[0], "", http.MethodGet, path, nil, &e).outcome() == succeeded
		})
		p.approver = e.You
		for id, document := range e.Credentials {
			if c, err := approval.DecodeCredential(document); err == nil && c.Approver == e.You {
				p.credential = id
			}
		}
		if p.approver == "" || p.credential == "" {
			w.t.Fatalf("%s has no credential in %d", p.name, len(e.Credentials))
		}
	}
}
