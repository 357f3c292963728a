package monitor

import (
	"context"
	"log/slog"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// errOther is why a log is not read: an alert says so.
var errOther = failure.New(failure.Conflict, "the log is not the one that was seen")

// continues fails with Conflict, and alerts, when a checkpoint is not of the log that was seen before, and with Invalid
// when the files prove nothing. local is the failure of the monitor's own files.
func (m *Monitor) continues(ctx context.Context, reader *translog.Reader, now shown) (reading, local error) {
	switch {
	case now.Origin != m.newest.Origin:
		return m.newEpoch(ctx, reader, now)
	case now.Size < m.newest.Size:
		return errOther, m.shrunk(ctx, now)
	}
	err := reader.Continues(ctx, m.newest)
	if failure.Is(err, failure.Conflict) {
		return errOther, m.fork("", now, "the checkpoint of %d entries does not continue the one of %d entries", now.Size,
			m.newest.Size)
	}
	return err, nil
}

// newEpoch takes into account that the log has another name, as in a new epoch. When it has lost entries that were
// seen, it is read from its beginning.
func (m *Monitor) newEpoch(ctx context.Context, reader *translog.Reader, now shown) (reading, local error) {
	if slices.Contains(m.kept.Past, now.Origin) {
		return errOther, m.fork("", now, "the log shows a checkpoint of its former epoch %q", clean(now.Origin))
	}
	if len(m.kept.Past) >= maxPast {
		return failure.New(failure.Unsupported, "the log has more than %d epochs", maxPast), nil
	}
	err := reader.Continues(ctx, m.newest)
	if err != nil && !failure.Is(err, failure.Conflict) {
		return err, nil
	}
	if err != nil {
		local := m.fork("", now, "the log begins anew as %q, without entries that were seen: it is read from its beginning",
			clean(now.Origin))
		if local != nil {
			return nil, local
		}
		m.kept.Facts = newFacts()
	}
	m.kept.Past = append(m.kept.Past, m.newest.Origin)
	return nil, nil
}

// shrunk alerts that the log has fewer entries than before, unless a cache may have shown an older checkpoint.
func (m *Monitor) shrunk(ctx context.Context, now shown) error {
	before := translog.NewReader(m.options.Files, m.newest) // whose tiles may still be served
	if failure.Is(before.Continues(ctx, now.Checkpoint), failure.Conflict) {
		return m.fork("", now, "the checkpoint of %d entries is not one of the log of %d entries that was seen", now.Size,
			m.newest.Size)
	}
	if m.behind[""]++; m.behind[""] < patience && !m.once {
		return nil
	}
	return m.fork("", now, "the log has %d entries, fewer than the %d that were seen", now.Size, m.newest.Size)
}

// seen is a checkpoint of a view.
type seen struct {
	View
	shown
}

// views reads the checkpoints of the views, before that of the log: it must not be behind them.
func (m *Monitor) views(ctx context.Context) (all []seen) {
	for _, v := range m.options.Views {
		fetching, cancel := context.WithTimeout(ctx, fetchTimeout)
		signed, err := v.Newest(fetching)
		cancel()
		var c translog.Checkpoint
		if err == nil {
			c, err = translog.Open(signed, m.options.Verifiers)
		}
		if err != nil {
			slog.Warn("cannot compare the log", "with", v.Name, "error", clean(err.Error()))
			m.metrics.errors.Inc()
			continue
		}
		all = append(all, seen{v, shown{c, signed}})
	}
	return all
}

// compare compares the log with what others see of it. It fails when that could not be done. local is the failure of
// the monitor's own files.
func (m *Monitor) compare(ctx context.Context, all []seen) (reading, local error) {
	if m.kept.Checkpoint == nil {
		return nil, nil
	}
	for _, one := range all {
		if one.Origin != m.newest.Origin {
			slog.Warn("cannot compare the log: it has another name there", "with", one.Name, "origin", clean(one.Origin))
			continue
		}
		comparing, cancel := context.WithTimeout(ctx, fetchTimeout)
		err, local := m.compareWith(comparing, one)
		cancel()
		if local != nil {
			return nil, local
		}
		if err != nil && reading == nil {
			reading = err
		}
	}
	if len(all) < len(m.options.Views) && reading == nil && m.once {
		reading = failure.New(failure.Unavailable, "cannot compare the log with each of %d others", len(m.options.Views)).
			WithHint("see why in the log lines")
	}
	return reading, nil
}

func (m *Monitor) compareWith(ctx context.Context, one seen) (reading, local error) {
	older, newer, files := one.Checkpoint, m.newest, m.options.Files
	if older.Size > newer.Size {
		older, newer, files = newer, older, one.Files
	}
	if files == nil { // it has a checkpoint alone, of more entries than the log
		if m.behind[one.Name]++; m.behind[one.Name] < patience && !m.once {
			return nil, nil
		}
		return nil, m.fork(one.Name, one.shown,
			"the log has %d entries, fewer than the %d of a checkpoint that its key signed: %s", m.newest.Size, one.Size,
			clean(one.Name))
	}
	err := translog.NewReader(files, newer).Continues(ctx, older)
	switch {
	case failure.Is(err, failure.Conflict):
		return nil, m.fork(one.Name, one.shown, "the log of %d entries and the one of %d entries at %s are not the same",
			m.newest.Size, one.Size, clean(one.Name))
	case err == nil:
		m.agrees(one.Name)
	}
	return err, nil
}
