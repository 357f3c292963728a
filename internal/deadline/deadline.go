// Package deadline lets the caller go on when a call into a module, or any other wait, does not come back.
//
// C code that hangs can't be interrupted, only abandoned. Run does a job in a goroutine of its own; each wait in it is
// a Step with a limit. When a step passes its limit, Run returns the step's error at once and leaves the job behind. So
// a whole job costs one switch of goroutines, however many calls it makes.
package deadline

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// grace is how long an interrupted job may take to put things away.
const grace = 3 * time.Second

type watcher struct{ late chan error }

type watched struct{}

// Run does a job and returns its error, or that of a step that took too long, or, when ctx ends and the job does not
// soon after, that it was interrupted. A panic becomes an error.
func Run(ctx context.Context, job func(context.Context) error) error {
	w := &watcher{late: make(chan error, 1)}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				slog.Error("panic", "what", fmt.Sprint(r), "stack", string(debug.Stack()))
				done <- failure.New(failure.Internal, "internal error: %v", r).
					WithHint("set NOTATION_HSM_LOG=/path/to/log, run it again, and report it with the log")
			}
		}()
		done <- job(context.WithValue(ctx, watched{}, w))
	}()
	var giveUp <-chan time.Time
	interrupted := ctx.Done()
	for {
		select {
		case err := <-done:
			return err
		case err := <-w.late:
			return err
		case <-interrupted:
			interrupted, giveUp = nil, time.After(grace)
		case <-giveUp:
			return Interrupted("waiting")
		}
	}
}

// Step does one wait of a job. After limit, Run returns what late returns, which is called once. A step outside of any
// Run is a job of its own.
func Step(ctx context.Context, limit time.Duration, late func() error, wait func() error) error {
	w, ok := ctx.Value(watched{}).(*watcher)
	if !ok {
		return Run(ctx, func(ctx context.Context) error { return Step(ctx, limit, late, wait) })
	}
	timer := time.AfterFunc(limit, func() {
		select {
		case w.late <- late():
		default: // another step was late before
		}
	})
	defer timer.Stop()
	return wait()
}

// Interrupted is the failure of a job that the user has ended while it was doing what.
func Interrupted(what string) error {
	return failure.New(failure.Internal, "interrupted while %s", what).WithHint("run it again")
}
