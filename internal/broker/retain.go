package broker

import (
	"log/slog"
	"time"
)

// retainEvery is how often what is kept no longer is deleted.
const retainEvery = 24 * time.Hour

// retain has the store delete requests that are older than is kept, until the broker ends. Entries of the log stay.
func (b *Broker) retain() {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for next := time.Duration(0); ; {
		if now := b.clock.clock.Boot(); b.Leads() && now >= next {
			next = now + retainEvery
			var before time.Time
			if b.options.Keep != nil {
				before = b.options.Keep(b.time())
			}
			if err := b.options.Store.Retain(b.running, before); err != nil && b.running.Err() == nil {
				slog.Error("cannot delete old requests", "error", err)
				next = now + retainEvery/24
			}
		}
		select {
		case <-tick.C:
		case <-b.running.Done():
			return
		}
	}
}
