package notice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/webhook"
)

const (
	pollInterval  = 2 * time.Second // between looks at the store
	batchRows     = 100             // rows that are read at once
	sendTimeout   = 30 * time.Second
	stopTimeout   = 5 * time.Second  // of a delivery, once the broker stops
	markTimeout   = 10 * time.Second // of the mark of a delivery, also when the broker stops
	firstBackoff  = time.Minute      // longer than sendTimeout: a notice that is being sent is not due
	maxBackoff    = time.Hour
	maxPause      = time.Minute // of a channel after several failures
	giveUpAfter   = 7 * 24 * time.Hour
	sweepInterval = time.Hour
)

// Run delivers notices until ctx ends. Each channel has a goroutine, so that one that fails or hangs delays no other.
func (n *Notices) Run(ctx context.Context) {
	var group sync.WaitGroup
	for _, c := range n.channels {
		group.Go(func() {
			for ctx.Err() == nil {
				n.wait(ctx, n.drain(ctx, c))
			}
		})
	}
	for ctx.Err() == nil {
		n.sweep(ctx)
		n.wait(ctx, sweepInterval)
	}
	group.Wait()
}

// drain delivers notices of a channel that are due, and returns how long to wait before it is called again.
func (n *Notices) drain(ctx context.Context, c *channel) time.Duration {
	rows, err := n.store.Notices(ctx, c.name, n.now(), batchRows)
	if err != nil {
		if ctx.Err() == nil {
			slog.Error("cannot read notices", "channel", c.name, "error", err)
		}
		return pollInterval
	}
	for i := range rows {
		if pause := n.deliver(ctx, c, &rows[i]); pause > 0 || ctx.Err() != nil {
			return pause
		}
	}
	if len(rows) == batchRows {
		return 0
	}
	return pollInterval
}

// deliver makes an attempt to deliver a notice, and returns how long the channel pauses.
//
// The attempt is claimed first: the notice becomes due at the time of the next one. So no other sender makes this
// attempt, and nothing more is written when it fails.
func (n *Notices) deliver(ctx context.Context, c *channel, row *store.Notice) time.Duration {
	now, attempt := n.now(), row.Attempts+1
	if now.Sub(row.Created) >= giveUpAfter {
		n.abandon(ctx, row, fmt.Errorf("it was not delivered within %s", giveUpAfter))
		return 0
	}
	err := n.store.Postpone(ctx, row.ID, now.Add(backoff(attempt)), attempt)
	if failure.Is(err, failure.Conflict) {
		return 0
	}
	if err != nil {
		if ctx.Err() == nil {
			slog.Error("cannot claim a notice", "channel", c.name, "notice", row.ID, "error", err)
		}
		return pollInterval
	}
	err = n.send(ctx, c, row)
	if err == nil {
		n.mark(ctx, row)
		n.metrics.delivered.WithLabelValues(c.name).Inc()
		if c.failures > 0 {
			slog.Info("notices are delivered again", "channel", c.name)
		}
		c.failures = 0
		return 0
	}
	if ctx.Err() != nil { // the broker stops
		return 0
	}
	n.metrics.failed.WithLabelValues(c.name).Inc()
	var never *neverError
	if errors.As(err, &never) {
		n.abandon(ctx, row, err)
		return 0
	}
	slog.Warn("cannot deliver a notice", "channel", c.name, "notice", row.ID, "attempts", attempt,
		"error", clean(err.Error(), maxValue))
	var one *recipientError
	if errors.As(err, &one) {
		return 0
	}
	c.failures++
	return pauseAfter(c.failures, err)
}

// send has a channel deliver a notice. When the broker stops, what has begun may still end in order, so that it is not
// delivered again.
func (n *Notices) send(ctx context.Context, c *channel, row *store.Notice) error {
	sending, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		n.wait(sending, stopTimeout)
		cancel()
	})()
	return c.sender.send(sending, row)
}

// neverError is the failure of a notice that no later attempt delivers.
type neverError struct{ error }

// recipientError is a failure that concerns one recipient, and not the channel.
type recipientError struct{ error }

// backoff returns the time from an attempt to the next one.
func backoff(attempt int) time.Duration { return min(firstBackoff<<min(attempt-1, 10), maxBackoff) }

// pauseAfter returns how long a channel pauses after a number of failures in a row: longer if the receiver asks for it.
func pauseAfter(failures int, err error) time.Duration {
	pause := min(time.Second<<min(failures-1, 10), maxPause)
	var status *webhook.StatusError
	if errors.As(err, &status) {
		pause = max(pause, min(status.RetryAfter, maxBackoff))
		if status.Code == http.StatusGone { // Standard Webhooks: it does not want any more
			pause = maxBackoff
		}
	}
	return pause
}

// mark ends a notice that was delivered. It tries until the store works or ctx ends, so that the notice is not
// delivered again.
func (n *Notices) mark(ctx context.Context, row *store.Notice) {
	for {
		marking, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
		err := n.store.Noticed(marking, row.ID, n.now())
		cancel()
		if err == nil {
			return
		}
		slog.Error("cannot mark a notice as delivered", "channel", row.Channel, "notice", row.ID, "error", err)
		if ctx.Err() != nil {
			return
		}
		n.wait(ctx, pollInterval)
	}
}

// abandon ends a notice that is not delivered.
func (n *Notices) abandon(ctx context.Context, row *store.Notice, why error) {
	slog.Error("a notice is given up", "channel", row.Channel, "notice", row.ID, "attempts", row.Attempts, "reason", why)
	n.metrics.abandoned.WithLabelValues(row.Channel).Inc()
	n.mark(ctx, row)
}

// sweep gives up old notices of channels that the config does not have any more. Those of others are due within an hour
// of their last attempt, so none of them is overdue for that long.
func (n *Notices) sweep(ctx context.Context) {
	for ctx.Err() == nil {
		rows, err := n.store.Notices(ctx, "", n.now().Add(-giveUpAfter), batchRows)
		if err != nil {
			if ctx.Err() == nil {
				slog.Error("cannot read notices", "error", err)
			}
			return
		}
		for i := range rows {
			n.abandon(ctx, &rows[i], errors.New("its channel was removed, or did not work through its notices"))
		}
		if len(rows) < batchRows {
			return
		}
	}
}
