package chaos

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// kind is what a call asks for.
type kind string

const (
	signs     kind = "sign"     // bytes by a rule that asks nobody
	uses      kind = "use"      // bytes by a request that people agreed to
	creates   kind = "create"   // a request
	reads     kind = "read"     // a request
	approves  kind = "approve"  // it
	withdraws kind = "withdraw" // an approval of it
	rejects   kind = "reject"   // it
	cancels   kind = "cancel"   // it
	blocks    kind = "block"    // a key
	unblocks  kind = "unblock"  // a key
)

// op is a call with what its client knows of it.
type op struct {
	kind    kind
	replica *replica
	call    time.Duration // by the clock of the run
	ret     time.Duration
	outcome outcome
	failed  error // why it did not succeed

	request  string // ID of the request that it is about
	person   int    // who decides
	envelope string // sha256:HEX of what a person has signed
	payload  string // sha256:HEX of the bytes that are to be signed
	key      string

	state     brokerapi.State // that a read has found, or of the request that a signature waits for
	votes     uint8           // the people whose approvals count, by a read of an open request
	signature string          // sha256:HEX
	waits     string          // ID of the request that a signature waits for
	short     bool            // the request has a short life
	until     time.Duration   // and its end
	probe     bool            // it was made to see whether the replica works
}

func (o *op) String() string {
	text := fmt.Sprintf("%8.3f-%8.3f %s %s %s", o.call.Seconds(), o.ret.Seconds(), o.replica.name, o.kind, o.outcome)
	for _, part := range []string{o.request, o.envelope, o.payload, o.signature, string(o.state), o.waits} {
		if part != "" {
			text += " " + part[max(0, len(part)-26):]
		}
	}
	if o.kind == approves || o.kind == withdraws || o.kind == rejects {
		text += fmt.Sprintf(" by %d", o.person)
	}
	if o.kind == reads {
		text += fmt.Sprintf(" votes %03b", o.votes)
	}
	if o.failed != nil {
		text += ": " + o.failed.Error()
	}
	return text
}

// history is all calls.
type history struct {
	mu  sync.Mutex
	all []*op
}

func (h *history) add(o *op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, o)
}

// ops returns the calls that have ended.
func (h *history) ops() []*op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*op{}, h.all...)
}

// callTimeout is how long a client waits for an answer.
const callTimeout = 6 * time.Second

// record makes a call and adds it to the history. learn tells what a successful answer says.
func (c *caller) record(ctx context.Context, o *op, token, method, path string, body, into any, learn func()) *op {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o.call = c.w.now()
	a := c.do(ctx, o.replica, token, method, path, body, into)
	o.ret = c.w.now()
	o.outcome, o.failed = a.outcome(), a.failure()
	if o.outcome == succeeded && learn != nil {
		learn()
	}
	c.w.history.add(o)
	return o
}
