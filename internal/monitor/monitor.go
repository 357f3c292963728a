package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	"github.com/notation-hsm/notation-hsm/internal/webhook"
)

// Options are which log is followed, and how.
type Options struct {
	Config    *Config
	Files     translog.Files       // of the log
	Verifiers []*translog.Verifier // of its keys, also those of other epochs
	Views     []View
	Version   string // of this program
	// Registerer gets metrics; nil for none.
	Registerer prometheus.Registerer
}

// View is another place where checkpoints of the log are found: another vantage point, a mirror, or a file.
type View struct {
	Name   string
	Newest func(ctx context.Context) ([]byte, error) // returns a signed checkpoint
	Files  translog.Files                            // nil if it has a checkpoint alone
}

// Monitor follows a log. It is used by one goroutine.
type Monitor struct {
	options  Options
	config   *Config
	dir      string
	unlock   func()
	kept     *kept
	newest   translog.Checkpoint // kept.Checkpoint
	receiver *webhook.Receiver   // nil without a webhook
	metrics  *metrics
	once     bool
	found    int             // alerts of this run
	standing map[string]bool // alerts of earlier runs whose causes were found again
	behind   map[string]int  // looks in a row that found fewer entries than a checkpoint, by who showed it
	failures int             // of the webhook, in a row
	nextTry  time.Time       // of the webhook
	lastErr  error           // of the last look

	now  func() time.Time
	wait func(ctx context.Context, d time.Duration)
}

const (
	maxOutbox    = 1000            // alerts that wait for the webhook before no more entries are read
	maxAlike     = 8               // alerts of one class and key in a bundle
	saveEvery    = 64              // bundles
	fetchTimeout = 2 * time.Minute // of a bundle with its tiles
	patience     = 2               // looks that find fewer entries than before until there is an alert: a cache can lag
)

// Open returns the monitor of a log, which goes on where it was. It holds the lock of its folder until Close, and fails
// with Timeout when another monitor has it.
func Open(ctx context.Context, o Options) (*Monitor, error) {
	m := &Monitor{options: o, config: o.Config, dir: o.Config.State, behind: map[string]int{},
		standing: map[string]bool{}, now: time.Now, wait: wait}
	if m.dir == "" {
		return nil, failure.New(failure.Invalid, "the monitor has no folder for its state").
			WithHint("set state in the config")
	}
	if c := o.Config.Webhook; c.URL != "" {
		var err error
		if m.receiver, err = webhook.New(c.URL, c.Secret, c.CA); err != nil {
			return nil, failure.New(failure.Invalid, "cannot use the webhook: %w", err).
				WithHint("correct webhook in the config")
		}
	}
	locking, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	unlock, err := state.Lock(locking, m.dir)
	if err != nil {
		return nil, err
	}
	m.unlock = unlock
	if m.kept, err = load(m.dir, m.now().UTC()); err == nil && m.kept.Checkpoint != nil {
		if m.newest, err = translog.Open(m.kept.Checkpoint, o.Verifiers); err != nil {
			err = failure.New(failure.Denied, "the checkpoint that the monitor keeps is not of this log: %w", err).
				WithHint("give the keys of the log that it has followed, or another folder for another log")
		}
	}
	if err != nil {
		unlock()
		return nil, err
	}
	if n := len(m.kept.Outbox); n > 0 && m.receiver == nil {
		slog.Warn("alerts are dropped: the config has no webhook any more", "alerts", n)
		m.kept.Outbox = nil
	}
	m.metrics = newMetrics(o.Registerer)
	m.show()
	return m, nil
}

// Close unlocks the folder.
func (m *Monitor) Close() { m.unlock() }

// Size returns the number of entries that were read.
func (m *Monitor) Size() int64 { return m.kept.Facts.Next }

// wait waits until ctx ends, or the time is over.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// Run follows the log until ctx ends. It fails when what it knows cannot be kept.
func (m *Monitor) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := m.look(ctx); err != nil {
			return err
		}
		next := m.now().Add(m.config.interval())
		for ctx.Err() == nil && m.now().Before(next) {
			if err := m.deliver(ctx); err != nil {
				return err
			}
			until := next
			if len(m.kept.Outbox) > 0 && m.nextTry.Before(until) {
				until = m.nextTry
			}
			m.wait(ctx, max(until.Sub(m.now()), time.Millisecond))
		}
	}
	return nil
}

// maxAttempts is how often Once tries to reach the webhook.
const maxAttempts = 4

// Once reads the log up to its newest checkpoint, and returns the number of alerts that it has found, also of those
// that an earlier run has told and whose causes are still there. It fails with Unavailable when there is no answer,
// also of the webhook: what that does not have is delivered by the next run.
func (m *Monitor) Once(ctx context.Context) (found int, err error) {
	m.once = true
	for done := false; !done && err == nil; {
		if err = m.look(ctx); err == nil {
			err = m.deliverAll(ctx)
		}
		done = m.lastErr != nil || m.kept.Facts.Next >= m.newest.Size
	}
	if err == nil {
		err = m.lastErr
	}
	return m.found + len(m.standing), err
}

// deliverAll tries a few times to deliver all alerts.
func (m *Monitor) deliverAll(ctx context.Context) error {
	for range maxAttempts {
		m.wait(ctx, m.nextTry.Sub(m.now()))
		if err := m.deliver(ctx); err != nil || len(m.kept.Outbox) == 0 {
			return err
		}
	}
	return failure.New(failure.Unavailable, "the webhook does not take %d alerts", len(m.kept.Outbox)).
		WithHint("see why in the log lines, and run this again: they are kept")
}

// look reads what is new. Its error is that of the monitor's own files alone; lastErr has why the log was not read.
func (m *Monitor) look(ctx context.Context) error {
	seen := m.views(ctx)
	reading, local := m.follow(ctx)
	if local != nil {
		return local
	}
	if reading == nil {
		if reading, local = m.compare(ctx, seen); local != nil {
			return local
		}
	}
	if reading != nil && ctx.Err() == nil {
		slog.Warn("cannot verify the log", "error", clean(reading.Error()))
		m.metrics.errors.Inc()
	}
	m.lastErr = reading
	if reading == nil && m.kept.Facts.Next == m.newest.Size {
		m.metrics.success.Set(float64(m.now().Unix()))
	}
	m.stale(reading)
	m.show()
	return m.save()
}

func (m *Monitor) save() error { return m.kept.save(m.dir) }

// follow reads the newest checkpoint, and the entries that it adds. local is the failure of the monitor's own files.
func (m *Monitor) follow(ctx context.Context) (reading, local error) {
	fetching, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	signed, err := m.options.Files(fetching, translog.CheckpointPath)
	if err != nil {
		return err, nil
	}
	c, err := translog.Open(signed, m.options.Verifiers)
	if err != nil {
		return err, m.damaged(signed, err)
	}
	now := shown{c, signed}
	reader := translog.NewReader(m.options.Files, c)
	if m.kept.Checkpoint != nil && c != m.newest {
		reading, local := m.continues(fetching, reader, now)
		if failure.Is(reading, failure.Invalid) {
			local = m.damaged(signed, reading)
		}
		if reading != nil || local != nil {
			return reading, local
		}
	}
	if c != m.newest || m.kept.Checkpoint == nil {
		m.newest, m.kept.Checkpoint, m.kept.Since, m.kept.Stale = c, signed, m.now().UTC(), false
	}
	m.agrees("")
	return m.read(ctx, reader)
}

// read reads the entries that the newest checkpoint has and that were not read yet.
func (m *Monitor) read(ctx context.Context, reader *translog.Reader) (reading, local error) {
	for bundles := 1; m.kept.Facts.Next < m.newest.Size; bundles++ {
		if len(m.kept.Outbox) >= maxOutbox {
			slog.Warn("no more entries are read before the webhook takes alerts", "waiting", len(m.kept.Outbox))
			return nil, nil
		}
		fetching, cancel := context.WithTimeout(ctx, fetchTimeout)
		entries, err := reader.Entries(fetching, m.kept.Facts.Next)
		cancel()
		switch {
		case failure.Is(err, failure.Invalid), failure.Is(err, failure.Conflict):
			return err, m.damaged(m.kept.Checkpoint, err)
		case err != nil:
			return err, nil
		}
		var alerts []*Alert
		for _, entry := range entries {
			alerts = append(alerts, m.kept.Facts.read(m.config, m.newest.Origin, entry, m.now())...)
		}
		alerts = condense(alerts)
		m.raise(alerts...)
		m.stale(nil)
		if len(alerts) > 0 || bundles%saveEvery == 0 {
			if err := m.save(); err != nil {
				return nil, err
			}
		}
	}
	if m.kept.Damaged {
		slog.Info("the log's files fit its checkpoint again")
	}
	m.kept.Damaged = false
	return nil, nil
}

// condense replaces many alerts of one class and key by the first ones and a number.
func condense(alerts []*Alert) (fewer []*Alert) {
	type alike struct{ class, key string }
	count, last := map[alike]int{}, map[alike]*Alert{}
	for _, a := range alerts {
		kind := alike{a.Class, a.Key}
		if count[kind]++; count[kind] <= maxAlike {
			fewer = append(fewer, a)
			last[kind] = a
		}
	}
	for kind, a := range last {
		if more := count[kind] - maxAlike; more > 0 {
			a.What += moreAlike(more)
		}
	}
	return fewer
}

// raise tells of alerts: in log lines and metrics at once, and to the webhook once the state is saved.
func (m *Monitor) raise(alerts ...*Alert) {
	for _, a := range alerts {
		m.found++
		m.metrics.alerts.WithLabelValues(a.Class).Inc()
		attributes := []any{"class", a.Class, "what", a.What, "log", a.Log, "id", a.ID}
		for _, one := range []struct{ name, value string }{{"key", a.Key}, {"request", a.Request}, {"digest", a.Digest}} {
			if one.value != "" {
				attributes = append(attributes, one.name, one.value)
			}
		}
		if a.Index != nil {
			attributes = append(attributes, "index", *a.Index)
		}
		if len(a.Evidence) > 0 {
			attributes = append(attributes, "evidence", a.Evidence)
		}
		slog.Error("alert", attributes...)
		if m.receiver != nil {
			m.kept.Outbox = append(m.kept.Outbox, a)
		}
	}
}

// off reports whether a class of alerts is not wanted.
func (m *Monitor) off(class string) bool { return slices.Contains(m.config.Off, class) }

// stale alerts when there was no new checkpoint for too long.
func (m *Monitor) stale(why error) {
	now := m.now().UTC()
	if m.off(Stale) || now.Sub(m.kept.Since) <= m.config.stale() {
		return
	}
	if m.kept.Stale {
		m.again(Stale, "")
		return
	}
	m.kept.Stale = true
	a := &Alert{Class: Stale, Log: m.name(), Found: now}
	a.What = "the log has no new checkpoint since " + m.kept.Since.Format(time.RFC3339)
	if why != nil {
		a.What += ": " + clean(why.Error())
	}
	a.identify(m.kept.Since.UnixNano(), m.newest.Size)
	m.raise(a)
}

// name returns the origin of the log.
func (m *Monitor) name() string {
	if m.kept.Checkpoint == nil {
		return m.options.Verifiers[0].Name()
	}
	return m.newest.Origin
}

// again notes an alert that was told before and whose cause is still there.
func (m *Monitor) again(class, who string) { m.standing[class+" "+who] = true }

// damaged alerts, once until it is over, that what the log's server shows is not signed or does not fit.
func (m *Monitor) damaged(signed []byte, why error) error {
	if m.off(Damaged) {
		return nil
	}
	if m.kept.Damaged {
		m.again(Damaged, "")
		return nil
	}
	m.kept.Damaged = true
	a := &Alert{Class: Damaged, Log: m.name(), Found: m.now().UTC(), What: clean(why.Error())}
	a.identify(m.now().UnixNano())
	path, err := m.kept.keepEvidence(m.dir, a.ID+".checkpoint", signed)
	if err != nil {
		return err
	}
	if path != "" {
		a.Evidence = []string{path}
	}
	m.raise(a)
	return nil
}

// shown is a checkpoint whose signature was verified.
type shown struct {
	translog.Checkpoint

	signed []byte
}

// fork alerts of a signed checkpoint that contradicts the newest one, and keeps both. It is told once for whoever shows
// it, until that agrees again, and once for each checkpoint.
func (m *Monitor) fork(who string, other shown, format string, args ...any) error {
	a := &Alert{Class: Fork, Log: m.name(), Found: m.now().UTC(), What: fmt.Sprintf(format, args...)}
	a.identify(other.Origin, other.Size, other.Root)
	if slices.Contains(m.kept.Forked, who) || slices.Contains(m.kept.Forks, a.ID) {
		m.again(Fork, who)
		return nil
	}
	m.kept.Forked = append(m.kept.Forked, who)
	if len(m.kept.Forks) >= maxForks {
		slog.Error("the log has more forks than are told", "told", maxForks)
		m.metrics.alerts.WithLabelValues(Fork).Inc()
		m.again(Fork, who)
		return nil
	}
	m.kept.Forks = append(m.kept.Forks, a.ID)
	for _, one := range []struct {
		name string
		data []byte
	}{{"seen", m.kept.Checkpoint}, {"other", other.signed}} {
		path, err := m.kept.keepEvidence(m.dir, a.ID+"-"+one.name+".checkpoint", one.data)
		if err != nil {
			return err
		}
		if path != "" {
			a.Evidence = append(a.Evidence, path)
		}
	}
	m.raise(a)
	return nil
}

// agrees notes that a view, or the log itself for "", shows the log that was seen.
func (m *Monitor) agrees(who string) {
	if slices.Contains(m.kept.Forked, who) {
		slog.Info("the log is one again", "with", who)
	}
	m.kept.Forked = slices.DeleteFunc(m.kept.Forked, func(other string) bool { return other == who })
	delete(m.behind, who)
}
