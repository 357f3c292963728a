package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// continues reports whether the log goes on with a checkpoint. It alerts when the checkpoint is not of the log that was
// seen before. It fails with Invalid when the files prove nothing.
func (m *Monitor) continues(ctx context.Context, reader *translog.Reader, c translog.Checkpoint, signed []byte) (bool,
	error,
) {
	if c.Origin != m.newest.Origin {
		return m.newEpoch(ctx, reader, c, signed)
	}
	if c.Size < m.newest.Size {
		return false, m.shrunk(ctx, c, signed)
	}
	err := reader.Continues(ctx, m.newest)
	if failure.Is(err, failure.Conflict) {
		return false, m.fork(Fork, fmt.Sprintf("the checkpoint of %d entries does not continue the one of %d entries", c.Size,
			m.newest.Size), m.kept.Checkpoint, signed)
	}
	return err == nil, err
}

// newEpoch reports whether the log goes on in another epoch, in which it has another name. When it has lost entries that
// were seen, it is read from its beginning.
func (m *Monitor) newEpoch(ctx context.Context, reader *translog.Reader, c translog.Checkpoint, signed []byte) (bool,
	error,
) {
	if slices.Contains(m.kept.Past, c.Origin) {
		return false, m.fork(Fork, fmt.Sprintf("the log shows a checkpoint of the former epoch %q", clean(c.Origin)),
			m.kept.Checkpoint, signed)
	}
	if len(m.kept.Past) >= maxPast {
		return false, failure.New(failure.Unavailable, "the log has more than %d epochs", maxPast)
	}
	err := failure.New(failure.Conflict, "the log is shorter")
	var lost error = err
	if c.Size >= m.newest.Size {
		lost = reader.Continues(ctx, m.newest)
	}
	if lost != nil && !failure.Is(lost, failure.Conflict) {
		return false, lost
	}
	if lost != nil {
		err := m.fork(Epoch, fmt.Sprintf("the log begins anew as %q, without entries that were seen: it is read from its "+
			"beginning", clean(c.Origin)), m.kept.Checkpoint, signed)
		if err != nil {
			return false, err
		}
		m.kept.Facts = newFacts()
	}
	m.kept.Past = append(m.kept.Past, m.newest.Origin)
	return true, nil
}

// shrunk alerts when the log has fewer entries than before, unless a cache may have shown an older checkpoint.
func (m *Monitor) shrunk(ctx context.Context, c translog.Checkpoint, signed []byte) error {
	before := translog.NewReader(m.options.Files, m.newest) // whose tiles may still be served
	if failure.Is(before.Continues(ctx, c), failure.Conflict) {
		return m.fork(Fork, fmt.Sprintf("the checkpoint of %d entries is not one of the log of %d entries that was seen", c.Size,
			m.newest.Size), m.kept.Checkpoint, signed)
	}
	m.behind[""]++
	if m.behind[""] < patience && !m.once || m.kept.Shrunk {
		return nil
	}
	m.kept.Shrunk = true
	return m.fork(Fork, fmt.Sprintf("the log has %d entries, fewer than the %d that were seen", c.Size, m.newest.Size),
		m.kept.Checkpoint, signed)
}

// seen is a checkpoint of a view.
type seen struct {
	View

	signed     []byte
	checkpoint translog.Checkpoint
}

// views reads the checkpoints of the views, before that of the log: it must not be behind them.
func (m *Monitor) views(ctx context.Context) (all []seen) {
	for _, v := range m.options.Views {
		fetching, cancel := context.WithTimeout(ctx, fetchTimeout)
		signed, err := v.Checkpoint(fetching)
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
		all = append(all, seen{v, signed, c})
	}
	return all
}

// compare compares the log with what others see of it. It fails when that could not be done.
func (m *Monitor) compare(ctx context.Context, all []seen) error {
	if m.kept.Checkpoint == nil {
		return nil
	}
	for _, one := range all {
		if one.checkpoint.Origin != m.newest.Origin {
			slog.Warn("cannot compare the log: it has another name there", "with", one.Name, "origin",
				clean(one.checkpoint.Origin))
			continue
		}
		comparing, cancel := context.WithTimeout(ctx, fetchTimeout)
		err := m.compareWith(comparing, one)
		cancel()
		if err != nil {
			return err
		}
	}
	if len(all) < len(m.options.Views) && m.once {
		return failure.New(failure.Unavailable, "the log could not be compared with each of the %d others",
			len(m.options.Views)).WithHint("see why in the log lines")
	}
	return nil
}

func (m *Monitor) compareWith(ctx context.Context, one seen) error {
	older, newer, files := one.checkpoint, m.newest, m.options.Files
	if older.Size > newer.Size {
		older, newer, files = newer, older, one.Files
	}
	if files == nil { // it has a checkpoint alone, of more entries than the log
		m.behind[one.Name]++
		if m.behind[one.Name] < patience && !m.once {
			return nil
		}
		return m.fork(Fork, fmt.Sprintf("the log has %d entries, fewer than the %d of a checkpoint that its key signed: %s",
			m.newest.Size, one.checkpoint.Size, clean(one.Name)), one.signed, m.kept.Checkpoint)
	}
	delete(m.behind, one.Name)
	err := translog.NewReader(files, newer).Continues(ctx, older)
	if failure.Is(err, failure.Conflict) {
		return m.fork(Fork, fmt.Sprintf("the log of %d entries and the one of %d entries at %s are not the same", m.newest.Size,
			one.checkpoint.Size, clean(one.Name)), one.signed, m.kept.Checkpoint)
	}
	return err
}
