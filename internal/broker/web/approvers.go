package web

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/url"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// approversView is a page of approvers.
type approversView struct {
	Approvers []brokerapi.Approver
	Next      string // URL of the next page
}

// approvers lists the people whom the policy names.
func (w *Web) approvers(r *http.Request, _ *who) (*view, error) {
	after := r.URL.Query().Get("after")
	if len(after) > maxSearch {
		return nil, failure.New(failure.Invalid, "the page does not exist").WithHint("begin at the first page")
	}
	page, err := w.options.Broker.Approvers(r.Context(), after, perPage)
	if err != nil {
		return nil, err
	}
	v := &approversView{Approvers: page.Approvers}
	if page.After != "" {
		v.Next = "/approvers?after=" + url.QueryEscape(page.After)
	}
	return &view{Template: "approvers", Title: "Approvers", Section: "approvers", Data: v}, nil
}

// invitation is a one-time link.
type invitation struct {
	Person  string
	URL     string
	Expires time.Time
	You     bool // the person invites themself
}

// invite shows a link by which a person can enrol a passkey. It is shown once.
func (w *Web) invite(_ http.ResponseWriter, r *http.Request, p *who) (*view, error) {
	person := r.PathValue("name")
	token, expires, err := w.options.Broker.Invite(r.Context(), p.caller(), person)
	if err != nil {
		return nil, err
	}
	link := w.options.PublicURL + brokerapi.EnrolPath(token)
	return &view{Template: "invited", Title: "Invitation of " + visible(person), Section: "approvers",
		Data: &invitation{Person: person, URL: link, Expires: expires, You: person == p.Person}}, nil
}

// removal is a credential that a person is about to have removed.
type removal struct {
	credentialView
	Rules []*policy.Rule
	Own   bool // the person has signed in with it
}

// readRemoval returns the credential that a path names. It fails with NotFound.
func (w *Web) readRemoval(r *http.Request, p *who) (*removal, error) {
	id := r.PathValue("id")
	c, person, err := w.options.Broker.Credential(r.Context(), id)
	if err != nil {
		return nil, err
	}
	current, err := w.inForce()
	if err != nil {
		return nil, err
	}
	return &removal{credentialView{c, id, labelOf(c), person}, current.policy.Rules(policy.Modify, ""),
		id == p.Credential}, nil
}

// confirmRemove asks whether a credential shall be removed.
func (w *Web) confirmRemove(r *http.Request, p *who) (*view, error) {
	found, err := w.readRemoval(r, p)
	if err != nil {
		return nil, err
	}
	return &view{Template: "confirm-remove", Title: "Remove a credential of " + visible(found.Person),
		Section: "approvers", Data: found}, nil
}

// removeCredential makes the request to remove a credential.
func (w *Web) removeCredential(_ http.ResponseWriter, r *http.Request, p *who) (*view, error) {
	found, err := w.readRemoval(r, p)
	if err != nil {
		return nil, err
	}
	return w.propose(r.Context(), p, broker.Change{What: broker.ChangeRemove, Credential: found.ID})
}

// labelOf returns a fingerprint of a credential, as the tools of its kind write it: the SHA-256 of an SSH key, and of
// the SubjectPublicKeyInfo of a key in a module; the credential ID of a passkey.
func labelOf(c *approval.Credential) string {
	hash := sha256.Sum256(c.Public)
	switch {
	case c.Passkey != nil:
		return base64.RawURLEncoding.EncodeToString(c.Passkey.ID)
	case c.Kind == approval.SSH:
		return "SHA256:" + base64.RawStdEncoding.EncodeToString(hash[:])
	}
	return "sha256:" + hex.EncodeToString(hash[:])
}
