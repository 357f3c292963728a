package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/webhook"
)

const (
	sendTimeout = 30 * time.Second
	maxBackoff  = time.Minute
	maxPause    = time.Hour // that the receiver can ask for
)

// deliver posts alerts to the webhook in their order, until it fails. Each leaves the state once the webhook has it: a
// monitor that ends before posts it again, with the same ID.
func (m *Monitor) deliver(ctx context.Context) error {
	for len(m.kept.Outbox) > 0 && ctx.Err() == nil && m.receiver != nil && !m.now().Before(m.nextTry) {
		a := m.kept.Outbox[0]
		sending, cancel := context.WithTimeout(ctx, sendTimeout)
		err := m.receiver.Send(sending, webhook.Message{ID: a.ID, Media: "application/json",
			Agent: "hsm-broker/" + m.options.Version, Body: a.message()})
		cancel()
		if err != nil {
			m.failures++
			m.nextTry = m.now().Add(pauseAfter(m.failures, err))
			if ctx.Err() == nil {
				slog.Warn("cannot deliver an alert", "id", a.ID, "waiting", len(m.kept.Outbox), "error", clean(err.Error()))
				m.metrics.undelivered.Inc()
			}
			return nil
		}
		m.failures = 0
		m.kept.Outbox = m.kept.Outbox[1:]
		m.show()
		if err := m.save(); err != nil {
			return err
		}
	}
	return nil
}

// pauseAfter returns how long to wait after a number of failures in a row: longer if the receiver asks for it.
func pauseAfter(failures int, err error) time.Duration {
	pause := min(time.Second<<min(failures-1, 10), maxBackoff)
	var status *webhook.StatusError
	if errors.As(err, &status) {
		pause = max(pause, min(status.RetryAfter, maxPause))
		if status.Code == http.StatusGone { // Standard Webhooks: it does not want any more
			pause = maxPause
		}
	}
	return pause
}

func moreAlike(count int) string { return fmt.Sprintf(", and %d more like this one", count) }
