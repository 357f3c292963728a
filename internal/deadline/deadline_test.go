package deadline

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var errExceeded = errors.New("exceeded")

func exceeded() error { return errExceeded }

// TestExceeded abandons a job in the step that exceeds its limit. The clock is synctest's: it advances when all
// goroutines wait.
func TestExceeded(t *testing.T) {
	t.Parallel()
	for name, job := range map[string]func(ctx context.Context, hang func() error) error{
		"the first step": func(ctx context.Context, hang func() error) error {
			return Step(ctx, time.Minute, exceeded, hang)
		},
		"a later step": func(ctx context.Context, hang func() error) error {
			for range 3 {
				if err := Step(ctx, time.Minute, exceeded, func() error { return nil }); err != nil {
					return err
				}
			}
			return Step(ctx, time.Minute, exceeded, hang)
		},
		"a step within a step": func(ctx context.Context, hang func() error) error {
			return Step(ctx, time.Hour, func() error { return errors.New("the outer step") }, func() error {
				return Step(ctx, time.Minute, exceeded, hang)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				end := make(chan struct{})
				hang := func() error { <-end; return errors.New("it ended") }
				start := time.Now()
				err := Run(t.Context(), func(ctx context.Context) error { return job(ctx, hang) })
				if !errors.Is(err, errExceeded) || time.Since(start) != time.Minute {
					t.Errorf("%v after %s", err, time.Since(start))
				}
				close(end)
			})
		})
	}
}

// TestExceededAlone abandons a step outside of Run.
func TestExceededAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		if err := Step(t.Context(), time.Minute, exceeded, func() error { <-end; return nil }); !errors.Is(err, errExceeded) {
			t.Error(err)
		}
		close(end)
	})
}

// TestInTime returns the error of the job when no step exceeds its limit, however long all take together.
func TestInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		failed := errors.New("failed")
		err := Run(t.Context(), func(ctx context.Context) error {
			for range 3 {
				err := Step(ctx, time.Minute, exceeded, func() error { time.Sleep(50 * time.Second); return nil })
				if err != nil {
					return err
				}
			}
			time.Sleep(time.Hour) // no step
			return failed
		})
		if !errors.Is(err, failed) {
			t.Error(err)
		}
	})
}

// TestPanic returns a panic of the job as an error.
func TestPanic(t *testing.T) {
	t.Parallel()
	err := Run(t.Context(), func(context.Context) error { panic("no") })
	if err == nil || !strings.Contains(err.Error(), "internal error: no") {
		t.Error(err)
	}
}

// TestInterrupted waits for a job that cleans up after an interruption, and abandons one that does not return.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cleaned := errors.New("cleaned up")
		err := Run(ctx, func(context.Context) error {
			cancel()
			time.Sleep(grace - time.Millisecond)
			return cleaned
		})
		if !errors.Is(err, cleaned) {
			t.Errorf("the job was not waited for: %v", err)
		}
		end := make(chan struct{})
		start := time.Now()
		err = Run(ctx, func(context.Context) error { <-end; return nil })
		if err == nil || !strings.Contains(err.Error(), "interrupted") || time.Since(start) != grace {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		close(end)
	})
}

// TestJob leaves a job behind when its context ends, outside of Run, and not inside of it.
func TestJob(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	err := Job(ctx, func(context.Context) error {
		cancel()
		<-ended
		return nil
	})
	close(ended)
	if err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("a job whose context has ended returned %v", err)
	}
	err = Run(t.Context(), func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		return Job(ctx, func(context.Context) error {
			cancel()
			return errExceeded
		})
	})
	if !errors.Is(err, errExceeded) {
		t.Errorf("a job inside of Run returned %v", err)
	}
}

// TestWatch reports a step that exceeds its limit, while the job waits for it.
func TestWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reported := make(chan error, 1)
		ctx := Watch(t.Context(), func(err error) { reported <- err })
		err := Step(ctx, time.Minute, exceeded, func() error {
			if err := <-reported; !errors.Is(err, errExceeded) {
				t.Errorf("reported: %v", err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
