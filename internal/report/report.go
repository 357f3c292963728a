package report

import (
	"bytes"
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// reportType is the type of a report.
const reportType = "report/v1"

// About is what a report says besides its lines.
type About struct {
	Checkpoint string            `json:"checkpoint"`      // the signed note (C2SP tlog-checkpoint) that covers all entries
	Exceptions int64             `json:"exceptions"`      // lines that are exceptions; they come first
	From       string            `json:"from"`            // RFC 3339, in UTC: the first moment of the period
	Last       string            `json:"last,omitempty"`  // time of the last entry that the checkpoint covers
	Names      map[string]string `json:"names,omitempty"` // of people by ids, as the broker told them; the log has none
	Origin     string            `json:"origin"`          // of the log
	Signatures int64             `json:"signatures"`      // lines of signatures, those of exceptions as well
	Size       int64             `json:"size"`            // entries that the checkpoint covers
	To         string            `json:"to"`              // the first moment after the period
	Type       string            `json:"type"`            // report/v1
}

// Options say what a report is of.
type Options struct {
	From, To time.Time // the period: From is in it, To is not
	// Each is called with each entry of the log, in order. Its error ends the report.
	Each func(index int64, raw []byte) error

	// since is the checkpoint that the report is of, which the log must continue; nil is the newest.
	since *translog.Checkpoint
}

// Report is a report of a verified log. It is in temporary files until Close.
type Report struct {
	About About
	// Tell returns what the broker says of a request, and nil if it says nothing. It may be nil.
	Tell func(request string) *Told

	tree       *tree
	spool      *spool
	exceptions []int64            // places of lines, in the order of the log
	groups     map[Group][]placed // signatures
	without    map[Group]int64    // signatures without approvals
	oldest     string
}

// Group is a key and a rule.
type Group struct{ Key, Rule string }

// placed is where a signature is.
type placed struct {
	at        int64
	exception bool
}

// New verifies a log as translog.Verify does, and returns the report of a period. Its memory grows with the requests
// that are open at a time, and by a few bytes for each line.
func New(ctx context.Context, files translog.Files, verifiers []*translog.Verifier, o Options) (*Report, error) {
	if !o.From.Before(o.To) {
		return nil, failure.New(failure.Invalid, "the period ends at %s, before it begins at %s", text(o.To), text(o.From)).
			WithHint("give the first day as --from, and the day after the last as --to")
	}
	signed, err := files(ctx, translog.CheckpointPath)
	if err != nil {
		return nil, err
	}
	pinned := func(ctx context.Context, path string) ([]byte, error) {
		if path == translog.CheckpointPath { // the log may grow meanwhile
			return signed, nil
		}
		return files(ctx, path)
	}
	r, err := empty(o)
	if err != nil {
		return nil, err
	}
	r.About.Checkpoint = string(signed)
	c := newCollector(o.From, o.To)
	found, err := translog.Verify(ctx, pinned, verifiers, translog.Options{Since: o.since,
		Each: func(index int64, _ translog.Event, raw []byte) error {
			if o.Each != nil {
				if err := o.Each(index, raw); err != nil {
					return err
				}
			}
			if o.since != nil && index >= o.since.Size {
				return nil
			}
			return r.add(c, index, raw)
		}})
	if err != nil {
		r.Close()
		return nil, err
	}
	r.About.Origin, r.About.Size = found.Origin, r.tree.size
	return r, nil
}

// empty returns a report without lines.
func empty(o Options) (*Report, error) {
	r := &Report{groups: map[Group][]placed{}, without: map[Group]int64{},
		About: About{Type: reportType, From: text(o.From), To: text(o.To)}}
	var err error
	if r.tree, err = newTree(); err == nil {
		if r.spool, err = newSpool(); err == nil {
			return r, nil
		}
	}
	r.Close()
	return nil, err
}

// text returns a time as reports have it.
func text(t time.Time) string { return t.UTC().Format(entry.TimeLayout) }

// add takes the next entry of the log into account.
func (r *Report) add(c *collector, index int64, raw []byte) error {
	event, err := entry.Decode(raw)
	if err != nil {
		return failure.New(failure.Invalid, "entry %d is not one that a broker logs: %w", index, err).
			WithHint("use a newer version, or run 'hsm-broker log verify'")
	}
	if err := r.tree.add(raw); err != nil {
		return spooled(err)
	}
	r.About.Last = event.Time
	line, err := c.add(evidence{index, bytes.Clone(raw), event})
	if err != nil {
		return failure.New(failure.Conflict, "entry %d does not fit those before it: %w", index, err).
			WithHint("run 'hsm-broker log verify': the broker, or who has its log's key, misbehaved")
	}
	if line == nil {
		return nil
	}
	return r.keep(line)
}

// keep keeps a line.
func (r *Report) keep(l *Line) error {
	at, err := r.spool.add(l)
	if err != nil {
		return spooled(err)
	}
	if l.What == Signature {
		group := Group{l.Key, l.Rule}
		r.groups[group] = append(r.groups[group], placed{at, l.Exception != ""})
		r.About.Signatures++
		if l.Exception == NoApprovals {
			r.without[group]++
		}
	}
	if l.Exception != "" {
		r.exceptions = append(r.exceptions, at)
		r.About.Exceptions++
	}
	if l.Request != "" && (r.oldest == "" || l.Request < r.oldest) {
		r.oldest = l.Request
	}
	return nil
}

func spooled(err error) error {
	return failure.New(failure.FileKind(err), "cannot use a temporary file: %w", err).
		WithHint("set TMPDIR to a folder with space for about as much as the log has")
}

// Oldest returns the smallest ID of a request that a line is about, and "" if there is none.
func (r *Report) Oldest() string { return r.oldest }

// Groups returns the keys and rules of signatures, in order.
func (r *Report) Groups() []Group {
	return slices.SortedFunc(maps.Keys(r.groups), func(a, b Group) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Rule, b.Rule))
	})
}

// Lines returns all lines: first the exceptions in the order of the log, then the other signatures by key, rule and
// index. It ends after an error.
func (r *Report) Lines() iter.Seq2[*Line, error] {
	return func(yield func(*Line, error) bool) {
		for l, err := range r.Exceptions() {
			if !yield(l, err) || err != nil {
				return
			}
		}
		for _, group := range r.Groups() {
			for _, p := range r.groups[group] {
				if p.exception {
					continue
				}
				if l, err := r.line(p.at); !yield(l, err) || err != nil {
					return
				}
			}
		}
	}
}

// Exceptions returns the lines that are exceptions, in the order of the log.
func (r *Report) Exceptions() iter.Seq2[*Line, error] {
	return func(yield func(*Line, error) bool) {
		for _, at := range r.exceptions {
			if l, err := r.line(at); !yield(l, err) || err != nil {
				return
			}
		}
	}
}

// Of returns all signatures by a key and a rule, in the order of the log.
func (r *Report) Of(group Group) iter.Seq2[*Line, error] {
	return func(yield func(*Line, error) bool) {
		for _, p := range r.groups[group] {
			if l, err := r.line(p.at); !yield(l, err) || err != nil {
				return
			}
		}
	}
}

// line returns the line at a place, with what the broker says of it.
func (r *Report) line(at int64) (*Line, error) {
	l, err := r.spool.read(at)
	if err != nil {
		return nil, spooled(err)
	}
	if r.Tell != nil && l.Request != "" {
		l.Told = r.Tell(l.Request)
	}
	return l, nil
}

// prove adds the inclusion proofs of a line.
func (r *Report) prove(l *Line) error {
	for i := range l.Proof {
		var err error
		if l.Proof[i].Hashes, err = r.tree.prove(l.Proof[i].Index); err != nil {
			return spooled(err)
		}
	}
	return nil
}

// Close removes the temporary files.
func (r *Report) Close() {
	if r.tree != nil {
		_ = r.tree.file.Close()
	}
	if r.spool != nil {
		_ = r.spool.file.Close()
	}
}
