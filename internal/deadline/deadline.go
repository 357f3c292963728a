// Package deadline abandons jobs whose steps exceed a deadline.
//
// A call into C code that does not return cannot be interrupted. So Run runs a job in its own goroutine, and each wait
// of the job is a Step with a limit. When a step exceeds its limit, Run returns the error of that step at once and
// leaves the goroutine behind. A job costs one goroutine, however many steps it has.
package deadline

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// grace is how long a job may clean up after its context has ended.
const grace = 3 * time.Second

// A run is one call of Run, as its steps know it from the context.
type run struct {
	exceeded chan error
	report   func(error) // is called instead, by the steps of Watch
}

type contextKey struct{}

// Run runs a job and returns its error. It returns earlier when a step of the job exceeds its limit, with the error of
// that step, and when ctx has ended and the job has not returned within 3 s. A panic of the job is returned as an
// error.
func Run(ctx context.Context, job func(context.Context) error) error { return start(ctx, grace, job) }

// Job runs a job as a part of the Run that ctx comes from. Outside of Run, the job gets a goroutine of its own, and Job
// returns as soon as ctx ends: the job then goes on by itself, with its steps still limited, and cleans up. So one
// caller of a service can leave while others go on.
func Job(ctx context.Context, job func(context.Context) error) error {
	if _, ok := ctx.Value(contextKey{}).(*run); ok {
		return job(ctx)
	}
	return start(ctx, 0, job)
}

// start runs a job in a goroutine, and abandons it when ctx has ended and grace has passed.
func start(ctx context.Context, grace time.Duration, job func(context.Context) error) error {
	r := &run{exceeded: make(chan error, 1)}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if cause := recover(); cause != nil {
				slog.Error("panic", "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
				done <- failure.New(failure.Internal, "internal error: %v", cause).
					WithHint("set NOTATION_HSM_LOG=/path/to/log, run it again, and report it with the log")
			}
		}()
		done <- job(context.WithValue(ctx, contextKey{}, r))
	}()
	var abandon <-chan time.Time
	interrupted := ctx.Done()
	for {
		select {
		case err := <-done:
			return err
		case err := <-r.exceeded:
			return err
		case <-interrupted:
			if grace == 0 {
				return Interrupted("waiting")
			}
			interrupted, abandon = nil, time.After(grace)
		case <-abandon:
			return Interrupted("waiting")
		}
	}
}

// Step runs one wait of a job and returns its error. If the wait exceeds the limit, Run returns the error of exceeded,
// which is called once, in another goroutine. A step outside of Run is a job by itself.
func Step(ctx context.Context, limit time.Duration, exceeded func() error, wait func() error) error {
	r, ok := ctx.Value(contextKey{}).(*run)
	if !ok {
		return Run(ctx, func(ctx context.Context) error { return Step(ctx, limit, exceeded, wait) })
	}
	timer := time.AfterFunc(limit, func() {
		if r.report != nil {
			r.report(exceeded())
			return
		}
		select {
		case r.exceeded <- exceeded():
		default: // another step of the job has exceeded its limit before
		}
	})
	defer timer.Stop()
	return wait()
}

// Watch returns a context for a job that the caller runs itself. exceeded gets the error of each step that exceeds its
// limit, in another goroutine; the job goes on waiting.
func Watch(ctx context.Context, exceeded func(error)) context.Context {
	return context.WithValue(ctx, contextKey{}, &run{report: exceeded})
}

// Interrupted returns the failure of a job whose context has ended. activity says what the job was doing, such as
// "signing".
func Interrupted(activity string) error {
	return failure.New(failure.Internal, "interrupted while %s", activity).WithHint("run it again")
}
