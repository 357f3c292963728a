package api

import (
	"context"
	"net/http"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

func (a *API) getEvidence(r *http.Request) (*brokerapi.Evidence, int, error) {
	caller, _ := callerIn(r.Context())
	evidence, err := a.options.Broker.Evidence(r.Context(), caller, r.PathValue("id"))
	if err == nil && evidence.Approvals == nil {
		evidence.Approvals = [][]byte{} // JSON has null for nil
	}
	return evidence, http.StatusOK, err
}

func (a *API) getBundle(r *http.Request) (*brokerapi.Bundle, int, error) {
	caller, _ := callerIn(r.Context())
	bundle, err := a.options.Broker.Bundle(r.Context(), caller, r.PathValue("id"))
	return &brokerapi.Bundle{Bundle: bundle}, http.StatusOK, err
}

func (a *API) postApproval(r *http.Request) (*brokerapi.Request, int, error) {
	var body brokerapi.SignedApproval
	if err := httpapi.ReadJSON(r, &body); err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), changeTime)
	defer cancel()
	caller, _ := callerIn(ctx)
	decided, err := a.options.Broker.Approve(ctx, caller, r.PathValue("id"), body.Envelope)
	return a.link(decided), http.StatusCreated, err
}

// getApprovers lists the people of the policy. Others than they and administrators need not know what they sign with.
func (a *API) getApprovers(r *http.Request) (*brokerapi.Approvers, int, error) {
	after, limit, err := page(r.URL.Query(), "after")
	if err != nil {
		return nil, 0, err
	}
	if err := a.maySeeApprovers(r); err != nil {
		return nil, 0, err
	}
	people, err := a.options.Broker.Approvers(r.Context(), after, limit)
	return people, http.StatusOK, err
}

// maySeeApprovers fails with Denied unless the caller is an administrator or a person of the policy.
func (a *API) maySeeApprovers(r *http.Request) error {
	if caller, _ := callerIn(r.Context()); caller.Admin || a.options.Broker.Person(caller) != "" {
		return nil
	}
	return failure.New(failure.Denied, "cannot list the approvers: the caller is none of them").
		WithHint("sign in as an approver, or call as an administrator")
}

// getCredentials returns the documents of credentials.
func (a *API) getCredentials(r *http.Request) (*brokerapi.Export, int, error) {
	values := r.URL.Query()
	after, limit, err := page(values, "after")
	if err != nil {
		return nil, 0, err
	}
	if removed := values.Get("removed"); values.Has("removed") && removed != "true" {
		return nil, 0, failure.New(failure.Invalid, "removed is %.20q", removed).WithHint("use true, or leave it out")
	}
	if err := a.maySeeApprovers(r); err != nil {
		return nil, 0, err
	}
	export, err := a.options.Broker.Export(r.Context(), after, limit, values.Has("removed"))
	return export, http.StatusOK, err
}

func (a *API) postInvitation(r *http.Request) (*brokerapi.Invitation, int, error) {
	ctx, cancel := context.WithTimeout(r.Context(), changeTime)
	defer cancel()
	caller, _ := callerIn(ctx)
	token, expires, err := a.options.Broker.Invite(ctx, caller, r.PathValue("name"))
	if err != nil {
		return nil, 0, err
	}
	return &brokerapi.Invitation{URL: a.options.PublicURL + brokerapi.EnrolPath(token), Expires: expires},
		http.StatusCreated, nil
}

// forget erases the name of a person who has left.
func (a *API) forget(r *http.Request) (*brokerapi.Forgotten, int, error) {
	caller, _ := callerIn(r.Context())
	done, err := a.options.Broker.Forget(r.Context(), caller, r.PathValue("name"))
	return done, http.StatusOK, err
}

func (a *API) removeCredential(r *http.Request) (*brokerapi.Request, int, error) {
	return a.propose(r, broker.Change{What: broker.ChangeRemove, Credential: r.PathValue("id")})
}

// postCredential proposes a key of a person. A login document shows that the person has the key.
func (a *API) postCredential(r *http.Request) (*brokerapi.Request, int, error) {
	if err := a.attempt(r); err != nil {
		return nil, 0, err
	}
	var body brokerapi.NewCredential
	if err := httpapi.ReadJSON(r, &body); err != nil {
		return nil, 0, err
	}
	if utf8.RuneCountInString(body.Person) > maxName {
		return nil, 0, failure.New(failure.Invalid, "person has more than %d characters", maxName).
			WithHint("see the description of the API")
	}
	envelope, login, err := readLogin(body.Possession, body.Kind, body.Public)
	if err == nil {
		err = a.useLogin(r.Context(), envelope, login)
	}
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), changeTime)
	defer cancel()
	caller, _ := callerIn(ctx)
	made, err := a.options.Broker.Enrol(ctx, caller, body.Person,
		approval.Credential{Kind: approval.Kind(body.Kind), Public: body.Public}, "")
	return a.link(made), http.StatusCreated, err
}
