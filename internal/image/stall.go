package image

import (
	"context"
	"errors"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// stall is how long a transfer may make no progress. A registry that assembles a large layer is silent for a while.
var stall = 5 * time.Minute

// A stallTimer ends a job that transfers data to or from a registry when the transfer makes no progress.
type stallTimer struct {
	timer *time.Timer
	late  func()
}

// progress restarts the timer: data has moved.
func (t *stallTimer) progress() { t.timer.Reset(stall) }

// suspend stops the timer for work on this machine, which may take as long as it needs.
func (t *stallTimer) suspend() { t.timer.Stop() }

// watch starts a timer for one step of a transfer. The function that it returns stops it.
func (t *stallTimer) watch() func() bool { return time.AfterFunc(stall, t.late).Stop }

// withStallTimer runs a job with a timer. what describes the job for error messages. It fails with Timeout when the
// timer ended the job.
func withStallTimer(ctx context.Context, what string, job func(context.Context, *stallTimer) error) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := failure.New(failure.Timeout, "%s: no data has moved for %s", what, stall).
		WithHint("check the network and the registry, and run it again")
	late := func() { cancel(stalled) }
	t := &stallTimer{time.AfterFunc(stall, late), late}
	defer t.suspend()
	err := job(inner, t)
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(inner), stalled):
		return stalled
	case ctx.Err() != nil:
		return failure.New(failure.Internal, "interrupted: %s", what).WithHint("run it again")
	}
	return err
}
