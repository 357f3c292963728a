package broker

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// row is what the store keeps of a request for those who look at it. It decides nothing.
type row struct {
	Request   brokerapi.Request `json:"request"`
	Requester string            `json:"requester"` // pseudonym
	Same      []string          `json:"same,omitempty"`
	People    bool              `json:"people,omitempty"` // it waits for approvals
	Envelopes []envelopeOf      `json:"envelopes,omitempty"`
	Entries   []int64           `json:"entries"`
}

// envelopeOf names an approval, or a refusal, of a request.
type envelopeOf struct{ Envelope, Credential string }

// insert adds the row of a new request, and has its body say what it waits for.
func (d *decision) insert(body *brokerapi.Request, c identity.Caller, requester string) {
	r := d.Requests[body.ID]
	kept := &row{Request: *body, Requester: requester, Same: r.Same, Entries: r.Entries}
	if r.State == brokerapi.Pending {
		d.fill(r, kept)
	}
	*body = kept.Request
	d.put(kept, d.b.callerOf(c), nil)
}

// put writes a row.
func (d *decision) put(r *row, caller string, signature []byte) {
	data, err := json.Marshal(r)
	if err != nil {
		slog.Error("cannot encode a request", "request", r.Request.ID, "error", err)
		return
	}
	digest := ""
	if r.Request.Artifact != nil {
		digest = r.Request.Artifact.Digest
	}
	written := store.Request{
		ID: r.Request.ID, Created: r.Request.Created, Changed: r.Request.Changed, Key: r.Request.Key,
		State: string(r.Request.State), Requester: caller, Rule: r.Request.Rule, Digest: digest,
		Repository: r.Request.Repository, Body: data, Signature: signature,
	}
	d.batch.Requests = append(d.batch.Requests, written)
	if r.Request.State == brokerapi.Signing { // it is changed again in a moment
		d.b.rows[written.ID] = &written
	} else {
		delete(d.b.rows, written.ID)
	}
}

// kept returns the row of a request as this batch leaves it.
func (d *decision) kept(id string) (*store.Request, error) {
	for _, r := range slices.Backward(d.batch.Requests) {
		if r.ID == id {
			return &r, nil
		}
	}
	if r := d.b.rows[id]; r != nil {
		return r, nil
	}
	return d.b.options.Store.Request(context.Background(), id)
}

// update changes the row of a request. A row that cannot be read does not matter: it decides nothing.
func (d *decision) update(id string, signature []byte, change func(*row)) {
	old, err := d.kept(id)
	if err != nil {
		slog.Warn("cannot read a request to change it", "request", id, "error", err)
		return
	}
	var r row
	if err := json.Unmarshal(old.Body, &r); err != nil {
		slog.Warn("cannot read a request to change it", "request", id, "error", err)
		return
	}
	if signature == nil {
		signature = old.Signature
	}
	change(&r)
	if now := d.Requests[id]; now != nil {
		r.Entries = now.Entries
	}
	r.Request.Changed = d.now
	d.put(&r, old.Requester, signature)
}

// finish has a row say how a request has ended.
func (d *decision) finish(id string, as brokerapi.State, why string) {
	index := d.Size - 1
	d.update(id, nil, func(r *row) {
		r.Request.State, r.Request.Reason = as, why
		r.Entries = append(r.Entries, index)
	})
}
