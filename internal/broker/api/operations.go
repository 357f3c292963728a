package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// brokerToken is the token that callers see: they are not told which module has a key.
const brokerToken = "broker:"

func (a *API) getKeys(r *http.Request) (*brokerapi.Keys, int, error) {
	all := &brokerapi.Keys{Token: brokerToken, Keys: []brokerapi.Key{}}
	for _, k := range a.options.Broker.Keys() {
		described, err := a.describe(r, k)
		if err != nil {
			continue // a key that is away hides no other
		}
		all.Keys = append(all.Keys, *described)
	}
	return all, http.StatusOK, nil
}

func (a *API) getKey(r *http.Request) (*brokerapi.Key, int, error) {
	k := a.options.Broker.Key(r.PathValue("key"))
	if k == nil {
		return nil, 0, failure.New(failure.NotFound, "the broker has no key %.100q", r.PathValue("key")).
			WithHint("name a key of the policy: GET /v1/keys lists them")
	}
	described, err := a.describe(r, k)
	return described, http.StatusOK, err
}

// describe returns what callers are told of a key of the policy.
func (a *API) describe(r *http.Request, k *policy.Key) (*brokerapi.Key, error) {
	public, chain, err := a.options.Keys.Describe(r.Context(), k.Name)
	if err != nil {
		return nil, err
	}
	described, err := held.Describe(k.Name, key.Info{}, public, chain)
	if err != nil {
		return nil, err
	}
	described.URI, described.Token, described.Label = brokerToken+k.Name, brokerToken, k.Name
	described.Formats, described.State = k.Formats, "ready"
	if a.options.Broker.Blocked(k.Name) {
		described.State = "blocked"
	}
	return described, nil
}

// postSignature answers 201 with a signature, or 202 with the request that waits.
func (a *API) postSignature(w http.ResponseWriter, r *http.Request) {
	defer a.signing.Add(-1)
	if a.signing.Add(1) > maxSigning {
		httpapi.WriteProblem(w, r, failure.New(failure.Throttled, "the broker has too many requests for signatures at once").
			WithHint("try again in a second"))
		return
	}
	var body brokerapi.SignatureRequest
	if err := httpapi.ReadJSON(r, &body); err != nil {
		httpapi.WriteProblem(w, r, err)
		return
	}
	caller, _ := callerIn(r.Context())
	outcome, err := a.options.Broker.Sign(r.Context(), caller, r.PathValue("key"), body)
	switch {
	case err != nil:
		httpapi.WriteProblem(w, r, err)
	case outcome.Signature != nil:
		httpapi.WriteJSON(w, "application/json", http.StatusCreated, outcome.Signature)
	default:
		a.link(outcome.Request)
		w.Header().Set("Location", brokerapi.RequestPath(outcome.Request.ID))
		httpapi.WriteJSON(w, "application/json", http.StatusAccepted, outcome.Request)
	}
}

// link sets the URL of the page of a request.
func (a *API) link(r *brokerapi.Request) *brokerapi.Request {
	if r != nil {
		r.URL = a.options.PublicURL + brokerapi.PagePath(r.ID)
	}
	return r
}

func (a *API) postRequest(r *http.Request) (*brokerapi.Request, int, error) {
	var body brokerapi.NewRequest
	if err := httpapi.ReadJSON(r, &body); err != nil {
		return nil, 0, err
	}
	if err := checkWish(body); err != nil {
		return nil, 0, err
	}
	caller, _ := callerIn(r.Context())
	made, err := a.options.Broker.Create(r.Context(), caller, body)
	return a.link(made), http.StatusCreated, err
}

// What can take long is bounded, so that other requests always find a place.
const (
	maxPolls   = httpapi.MaxRequests / 3                 // requests that wait for a change at once
	maxSigning = httpapi.MaxRequests - maxPolls - others // requests for signatures at once
	others     = 32
)

// How many requests, or people, are on a page.
const (
	defaultPage = 20
	maxPage     = 100
)

// maxName is the largest number of characters in the name of a key or a person, and in the ID of a request.
const maxName = 100

// maxRepository is the largest number of characters in the name of a repository.
const maxRepository = 512

func (a *API) getRequests(r *http.Request) (*brokerapi.Requests, int, error) {
	values := r.URL.Query()
	before, limit, err := page(values, "before")
	if err != nil {
		return nil, 0, err
	}
	q := broker.Query{State: values.Get("state"), Key: values.Get("key"), Before: before, Limit: limit,
		Repository: values.Get("repository"), Digest: values.Get("digest"), Mine: values.Get("mine") == "true"}
	wrong, hint := "", "see the description of the API"
	switch {
	case q.State != "" && !slices.Contains(brokerapi.States, brokerapi.State(q.State)):
		wrong, hint = "state", fmt.Sprintf("use one of %v", brokerapi.States)
	case utf8.RuneCountInString(q.Key) > maxName:
		wrong = "key"
	case utf8.RuneCountInString(q.Repository) > maxRepository:
		wrong = "repository"
	case q.Digest != "" && !digestFormat.MatchString(q.Digest):
		wrong = "digest"
	case values.Has("mine") && !q.Mine && values.Get("mine") != "false":
		wrong = "mine"
	}
	if wrong != "" {
		return nil, 0, failure.New(failure.Invalid, "cannot list requests: %s is %.30q", wrong,
			values.Get(wrong)).WithHint(hint)
	}
	if q.Mine && q.State+q.Repository+q.Digest != "" { // its page would be cut before these apply
		return nil, 0, failure.New(failure.Invalid, "cannot list requests: mine goes with key, before and limit alone").
			WithHint("leave out state, repository and digest")
	}
	caller, _ := callerIn(r.Context())
	found, err := a.options.Broker.Requests(r.Context(), caller, q)
	if err != nil {
		return nil, 0, err
	}
	for i := range found.Requests {
		a.link(&found.Requests[i])
	}
	return found, http.StatusOK, nil
}

// page reads the query parameters of a list: after which element its page begins, in the parameter of a name, and how
// many elements it has at most.
func page(values url.Values, name string) (begin string, limit int, err error) {
	begin, limit = values.Get(name), defaultPage
	if utf8.RuneCountInString(begin) > maxName {
		return "", 0, failure.New(failure.Invalid, "%s has more than %d characters", name, maxName).
			WithHint("see the description of the API")
	}
	if values.Has("limit") {
		limit, err = number("limit", values.Get("limit"), maxPage)
	}
	return begin, limit, err
}

// number reads a query parameter: a number from 1 to the largest.
func number(name, text string, largest int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > largest || strconv.Itoa(n) != text {
		return 0, failure.New(failure.Invalid, "%s is %.20q", name, text).
			WithHint("use a number from 1 to " + strconv.Itoa(largest))
	}
	return n, nil
}

func (a *API) getRequest(r *http.Request) (*brokerapi.Request, int, error) {
	var wait time.Duration
	if values := r.URL.Query(); values.Has("wait") {
		n, err := number("wait", values.Get("wait"), brokerapi.MaxWait)
		if err != nil {
			return nil, 0, err
		}
		wait = time.Duration(n) * time.Second
		defer a.polls.Add(-1)
		if a.polls.Add(1) > maxPolls {
			return nil, 0, failure.New(failure.Throttled, "the broker has too many requests at once that wait").
				WithHint("try again in a second")
		}
	}
	caller, _ := callerIn(r.Context())
	found, err := a.options.Broker.Wait(r.Context(), caller, r.PathValue("id"), wait)
	return a.link(found), http.StatusOK, err
}

func (a *API) cancelRequest(r *http.Request) (*brokerapi.Request, int, error) {
	caller, _ := callerIn(r.Context())
	ended, err := a.options.Broker.Cancel(r.Context(), caller, r.PathValue("id"))
	return a.link(ended), http.StatusOK, err
}

func (a *API) getPolicy(*http.Request) (*brokerapi.Policy, int, error) {
	return a.options.Broker.Policy(), http.StatusOK, nil
}

func (a *API) postPolicy(r *http.Request) (*brokerapi.Request, int, error) {
	var body brokerapi.NewPolicy
	if err := httpapi.ReadJSON(r, &body); err != nil {
		return nil, 0, err
	}
	return a.propose(r, broker.Change{What: broker.ChangePolicy, Policy: []byte(body.Policy)})
}

// change returns an operation that proposes a change.
func (a *API) change(what string) func(*http.Request) (*brokerapi.Request, int, error) {
	return func(r *http.Request) (*brokerapi.Request, int, error) {
		return a.propose(r, broker.Change{What: what, Key: r.PathValue("key")})
	}
}

// changeTime is how long a change waits for a checkpoint of the log that covers it.
const changeTime = 30 * time.Second

// propose proposes a change. A change that no checkpoint covers in time counts once one does.
func (a *API) propose(r *http.Request, c broker.Change) (*brokerapi.Request, int, error) {
	ctx, cancel := context.WithTimeout(r.Context(), changeTime)
	defer cancel()
	caller, _ := callerIn(ctx)
	made, err := a.options.Broker.Propose(ctx, caller, c)
	return a.link(made), http.StatusCreated, err
}

func (a *API) getVersion(*http.Request) (*brokerapi.Version, int, error) {
	return &brokerapi.Version{Version: a.options.Version, API: brokerapi.APIVersion}, http.StatusOK, nil
}

func (a *API) getHealth(*http.Request) (*brokerapi.Version, int, error) {
	return a.getVersion(nil)
}
