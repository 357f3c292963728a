package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Run serves callers until ctx ends, one of them stops the agent, or no key was used for the idle time. Then it lets
// requests in flight finish for a short while, and ends the login. Nothing else ends it: SIGHUP, the lock of a session
// and a suspend lock it.
func (a *Agent) Run(ctx context.Context, listener net.Listener) error {
	defer context.AfterFunc(ctx, a.stop)()
	ctx = a.running
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	a.uses.begin()
	a.uses.end(false)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-hangups:
				a.lockFor("a signal")
			case <-ctx.Done():
				return
			}
		}
	})
	go a.followLogins(ctx) // it may wait for a bus that does not answer
	if a.options.Idle > 0 {
		group.Go(func() {
			if a.uses.wait(ctx, a.options.Idle) {
				slog.Info("no key was used", "for", a.options.Idle)
				a.stop()
			}
		})
	}
	err := a.Serve(ctx, listener)
	a.stop()
	group.Wait()
	return errors.Join(err, a.Close())
}

// lockFor locks the agent for a reason, which is logged.
func (a *Agent) lockFor(reason string) {
	slog.Info("the agent is locked", "by", reason)
	if err := a.Lock(); err != nil {
		slog.Warn("cannot lock in order", "error", err)
	}
}
