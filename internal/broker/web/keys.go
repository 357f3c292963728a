package web

import (
	"context"
	"crypto/x509"
	"net/http"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// keyView is a key of the policy.
type keyView struct {
	Name    string
	Formats []string
	Blocked bool
	Failure string            // why the module does not have it now
	Leaf    *x509.Certificate // nil if it has none
	Rules   []ruleList
}

// ruleList are the rules of an action.
type ruleList struct {
	Action string
	Rules  []*policy.Rule
}

// keyTime is how long the modules may take to show all keys.
const keyTime = 5 * time.Second

// maxAsked is the number of keys that are asked for at once.
const maxAsked = 8

// keys lists the keys of the policy.
func (w *Web) keys(r *http.Request, _ *who) (*view, error) {
	current, err := w.inForce()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), keyTime)
	defer cancel()
	all := current.policy.Keys()
	views := make([]*keyView, len(all))
	places := make(chan struct{}, maxAsked)
	var group sync.WaitGroup
	for i, k := range all {
		group.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			views[i] = w.keyView(ctx, current.policy, k)
		})
	}
	group.Wait()
	return &view{Template: "keys", Title: "Keys", Section: "keys", Data: views}, nil
}

// keyView returns what is shown of a key.
func (w *Web) keyView(ctx context.Context, p *policy.Policy, k *policy.Key) *keyView {
	v := &keyView{Name: k.Name, Blocked: w.options.Broker.Blocked(k.Name)}
	for _, f := range k.Formats {
		v.Formats = append(v.Formats, string(f))
	}
	for _, action := range policy.Actions {
		v.Rules = append(v.Rules, ruleList{string(action), p.Rules(action, k.Name)})
	}
	_, chain, err := w.options.Keys.Describe(ctx, k.Name)
	switch {
	case ctx.Err() != nil:
		v.Failure = "its module did not answer in time"
	case err != nil:
		v.Failure = failure.From(err).What
	case len(chain) > 0:
		v.Leaf = chain[0]
	}
	return v
}

// change is a change of a key that a person is about to propose.
type change struct {
	Key, What string
	Rules     []*policy.Rule
	Done      string
}

// readChange returns the change that a path names. It fails with NotFound.
func (w *Web) readChange(r *http.Request) (*change, error) {
	current, err := w.inForce()
	if err != nil {
		return nil, err
	}
	c := &change{Key: r.PathValue("key"), What: r.PathValue("change")}
	if current.policy.Key(c.Key) == nil || c.What != broker.ChangeBlock && c.What != broker.ChangeUnblock {
		return nil, failure.New(failure.NotFound, "the policy has no key %.60q", visible(c.Key)).
			WithHint("choose one of the list")
	}
	c.Rules = current.policy.Rules(policy.Action(c.What), c.Key)
	return c, nil
}

// confirmKey asks whether a key shall be blocked or unblocked.
func (w *Web) confirmKey(r *http.Request, _ *who) (*view, error) {
	c, err := w.readChange(r)
	if err != nil {
		return nil, err
	}
	title := map[string]string{broker.ChangeBlock: "Block the key ", broker.ChangeUnblock: "Unblock the key "}[c.What]
	return &view{Template: "confirm-key", Title: title + c.Key, Section: "keys", Data: c}, nil
}

// changeKey makes the request to block or unblock a key.
func (w *Web) changeKey(_ http.ResponseWriter, r *http.Request, p *who) (*view, error) {
	c, err := w.readChange(r)
	if err != nil {
		return nil, err
	}
	return w.propose(r.Context(), p, broker.Change{What: c.What, Key: c.Key})
}

// proposeTime is how long a change waits for a checkpoint of the log that covers it.
const proposeTime = 30 * time.Second

// propose makes a request for a change, and goes on to it.
func (w *Web) propose(ctx context.Context, p *who, c broker.Change) (*view, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	made, err := w.options.Broker.Propose(ctx, p.caller(), c)
	if err != nil {
		return nil, err
	}
	return &view{Location: brokerapi.PagePath(made.ID) + "?done=proposed"}, nil
}

// policyPage shows the policy in force.
func (w *Web) policyPage(*http.Request, *who) (*view, error) {
	return &view{Template: "policy", Title: "Policy", Section: "keys", Data: w.options.Broker.Policy()}, nil
}
