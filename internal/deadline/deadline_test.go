package deadline

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

var errLate = errors.New("late")

func late() error { return errLate }

func TestRun(t *testing.T) {
	ctx := context.Background()
	forever := make(chan struct{})
	hang := func() error { <-forever; return errors.New("it ended") }
	defer close(forever)
	for name, job := range map[string]func(context.Context) error{
		"a late step": func(ctx context.Context) error { return Step(ctx, time.Millisecond, late, hang) },
		"a late step after others": func(ctx context.Context) error {
			for range 3 {
				if err := Step(ctx, time.Hour, late, func() error { return nil }); err != nil {
					return err
				}
			}
			return Step(ctx, time.Millisecond, late, hang)
		},
		"the job's own error": func(ctx context.Context) error {
			return Step(ctx, time.Hour, late, func() error { return errLate })
		},
	} {
		if err := Run(ctx, job); !errors.Is(err, errLate) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Step(ctx, time.Millisecond, late, hang); !errors.Is(err, errLate) {
		t.Errorf("a step on its own: %v", err)
	}
	if err := Run(ctx, func(context.Context) error { panic("no") }); err == nil ||
		!strings.Contains(err.Error(), "internal error: no") {
		t.Errorf("a panic: %v", err)
	}
}

// TestInterrupt waits for a job that ends by itself after an interruption, and not for one that does not.
func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	put := false
	if err := Run(ctx, func(context.Context) error {
		time.Sleep(
			20 * time.Millisecond)
		put = true
		return errLate
	}); !errors.Is(err, errLate) || !put {
		t.Errorf("it was not waited for: %v", err)
	}
	start := time.Now()
	if err := Run(ctx, func(context.Context) error { select {} }); err == nil ||
		!strings.Contains(err.Error(), "interrupted") || time.Since(start) > 2*grace {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}
