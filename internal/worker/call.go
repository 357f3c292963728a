package worker

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// maxSteps is how many waits for the module a call makes at most that is no job: to open a session again, log in, find
// the key and use it.
const maxSteps = 4

// A call is a call of a process that has not been answered.
type call struct {
	kind   kind
	ctx    context.Context
	owner  owner
	lane   bool // it is answered on a lane
	result chan callResult
	report chan progress // what the caller is to report next; nil reports nothing
	state  atomic.Int32  // waiting, finished or abandoned
	asks   atomic.Bool   // it waits for a PIN
	asked  atomic.Int32  // how often it asked for a PIN

	// Guarded by the process's lock.
	due      time.Time // when the process is asked whether it still serves
	extended int       // how often it was due

	// Guarded by the lock of pins.
	login *tokenPIN // whose PIN the call has got, until the login has ended
	over  bool      // it gets no more
}

// owner is what a call is made for.
type owner struct {
	settings *config.Settings
	soPIN    string // the source of the security officer's PIN, which the call asks for instead of the user's
}

type callResult struct {
	body []byte
	err  error
}

const (
	waiting int32 = iota
	finished
	abandoned
)

// finish hands the result to the caller. It returns false if the caller has left.
func (c *call) finish(body []byte, err error) bool {
	if !c.state.CompareAndSwap(waiting, finished) {
		return false
	}
	c.result <- callResult{body, err}
	return true
}

// abandon reports whether the caller leaves before there is a result.
func (c *call) abandon() bool { return c.state.CompareAndSwap(waiting, abandoned) }

// job reports whether the call may take any number of steps, each of which the process watches.
func (c *call) job() bool {
	switch c.kind {
	case opFindKeys, opCertificates, opGenerate, opImportWrapping, opImportChain, opDeleteKey, opDiscard, opUnwrap:
		return true
	}
	return false
}

// limit is the time after which the process is asked whether it still serves.
func (c *call) limit(margin time.Duration) time.Duration {
	if c.kind == opPing {
		return margin
	}
	return c.owner.settings.Timeout + margin
}

// counts reports whether the answer of the call shows that the module works: more than that it opens.
func (c *call) counts() bool {
	switch c.kind {
	case opPing, opOpenStore, opCloseStore, opLogin, opFindKey, opFindKeys, opListTokens:
		return false
	}
	return true
}

// interrupted returns the failure of a call whose context has ended.
func interrupted(ctx context.Context, k kind) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return failure.New(failure.Timeout, "the deadline passed while %s: %w", k.activity(), context.Cause(ctx)).
			WithHint("run it again, with more time")
	}
	f := failure.From(deadline.Interrupted(k.activity()))
	f.Err = context.Cause(ctx)
	return f
}

// encode returns arguments in JSON.
func encode(a arguments) []byte {
	body, _ := json.Marshal(a) // settings, names and bytes always marshal
	return body
}

// decode reads results.
func decode(body []byte) (r results, err error) {
	if err := json.Unmarshal(body, &r); err != nil {
		return r, errAnswer()
	}
	return r, nil
}
