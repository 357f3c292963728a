// Package feed delivers the entries of a log to other systems, such as a SIEM: to a file, to a syslog server, or to a
// webhook. It reads what the log has stored and published, in a goroutine of its own, so a system that is down delays
// its own feed alone.
package feed

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Config names where entries are delivered: one of File, Syslog and Webhook.
type Config struct {
	File    string `yaml:"file"`    // absolute path: a line per entry is appended
	Syslog  string `yaml:"syslog"`  // udp://HOST:514, tcp://HOST:514 or tls://HOST:6514, messages as RFC 5424 has them
	Webhook string `yaml:"webhook"` // https URL, or http on loopback: Standard Webhooks
	Secret  string `yaml:"secret"`  // file of the webhook's secret: whsec_ and base64
	CA      string `yaml:"ca"`      // PEM file of certificate authorities of tls or https (default: the system's)
	Format  string `yaml:"format"`  // json (default) or cef
}

// Name returns what the feed is called in logs and metrics: where it delivers to, without what may be a secret.
func (c Config) Name() string {
	if u, err := url.Parse(c.Webhook); err == nil && u.Host != "" {
		return u.Scheme + "://" + u.Host
	}
	return c.File + c.Syslog
}

// Log is the log that a feed reads.
type Log struct {
	Origin string // its name
	// Size returns the number of entries that can be delivered: those that the newest checkpoint covers.
	Size func(ctx context.Context) (int64, error)
	// Entries calls each with the entries from first to end, without end, in order.
	Entries func(ctx context.Context, first, end int64, each func(index int64, entry []byte) error) error
}

// record is an entry with its index.
type record struct {
	index int64
	entry []byte
}

// A sink delivers records in order. When it fails, it may have delivered some; all are delivered again.
type sink interface {
	send(ctx context.Context, records []record) error
}

// Feed delivers entries of one log to one place.
type Feed struct {
	name     string
	log      Log
	sink     sink
	position atomic.Int64
	wake     chan struct{}
	backoff  func(failures int) time.Duration
}

const (
	batchEntries = 256
	batchBytes   = 1 << 20
	sendTimeout  = 30 * time.Second
	pollInterval = 5 * time.Second // when nobody calls Notify
	maxBackoff   = time.Minute
)

// New returns the feed of a config. version is that of the broker, which CEF names. It fails with Invalid for a config
// that cannot work.
func New(c Config, log Log, version string) (*Feed, error) {
	invalid := func(format string, args ...any) error {
		return failure.New(failure.Invalid, "cannot set up a feed of the log: "+format, args...).
			WithHint("give one of file, syslog and webhook, as docs/log.md says")
	}
	targets := 0
	for _, target := range []string{c.File, c.Syslog, c.Webhook} {
		if target != "" {
			targets++
		}
	}
	if targets != 1 {
		return nil, invalid("it names %d of file, syslog and webhook", targets)
	}
	f := formatter{log: log.Origin, version: version}
	switch c.Format {
	case "", "json":
	case "cef":
		f.cef = true
	default:
		return nil, invalid("the format %q is not json or cef", c.Format)
	}
	if c.Secret != "" && c.Webhook == "" {
		return nil, invalid("secret is for a webhook alone")
	}
	feed := &Feed{name: c.Name(), log: log, wake: make(chan struct{}, 1), backoff: backoff}
	var err error
	switch {
	case c.File != "":
		if !filepath.IsAbs(c.File) {
			return nil, invalid("the path %s is not absolute", c.File)
		}
		feed.sink = &file{path: c.File, format: f}
	case c.Syslog != "":
		feed.sink, err = newSyslog(c, f)
	default:
		feed.sink, err = newWebhook(c, f)
	}
	if err != nil {
		return nil, invalid("%w", err)
	}
	return feed, nil
}

// Name returns where the feed delivers to.
func (f *Feed) Name() string { return f.name }

// Position returns the index of the first entry that was not delivered yet. The log's size less it is the lag.
func (f *Feed) Position() int64 { return f.position.Load() }

// Notify tells the feed that the log may have grown. It does not wait.
func (f *Feed) Notify() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run delivers entries from the index position on, until ctx ends, whose error it returns. Each entry is delivered at
// least once, and in order: what fails is tried again, after at most a minute. save keeps the position for the next
// start; when it fails, entries may be delivered again.
func (f *Feed) Run(ctx context.Context, position int64, save func(ctx context.Context, position int64) error) error {
	f.position.Store(position)
	failures := 0
	for {
		next, err := f.deliver(ctx, f.position.Load())
		if err == nil && next > f.position.Load() {
			f.position.Store(next)
			err = save(ctx, next)
		} else if err == nil {
			f.sleep(ctx, pollInterval, true)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch {
		case err != nil:
			failures++
			slog.WarnContext(ctx, "cannot deliver entries of the log", "feed", f.name, "position", f.position.Load(),
				"failures", failures, "error", err)
			f.sleep(ctx, f.backoff(failures), false)
		case failures > 0:
			slog.InfoContext(ctx, "delivers entries of the log again", "feed", f.name, "position", f.position.Load())
			failures = 0
		}
	}
}

// backoff returns how long to wait after a number of failures in a row.
func backoff(failures int) time.Duration { return min(time.Second<<min(failures-1, 10), maxBackoff) }

// sleep waits, until ctx ends, or until Notify is called if wakes.
func (f *Feed) sleep(ctx context.Context, d time.Duration, wakes bool) {
	wake := f.wake
	if !wakes {
		wake = nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-wake:
	}
}

var errFull = errors.New("the batch is full")

// deliver delivers a batch of entries from an index on, and returns the index after the last one.
func (f *Feed) deliver(ctx context.Context, from int64) (next int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	size, err := f.log.Size(ctx)
	if err != nil || size <= from {
		return from, err
	}
	var records []record
	total := 0
	next = from
	err = f.log.Entries(ctx, from, min(size, from+batchEntries), func(index int64, entry []byte) error {
		if index != next {
			return failure.New(failure.Internal, "the log has no entry %d", next)
		}
		if total > 0 && total+len(entry) > batchBytes {
			return errFull
		}
		records = append(records, record{index, append([]byte(nil), entry...)})
		total += len(entry)
		next++
		return nil
	})
	if err != nil && !errors.Is(err, errFull) {
		return from, err
	}
	if len(records) == 0 {
		return from, failure.New(failure.Internal, "the log has no entry %d", from)
	}
	return next, f.sink.send(ctx, records)
}
