package proof

import (
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// log is the state of the log that a bundle shows.
type log struct {
	translog.Checkpoint
	cosigned []translog.Cosignature // one of each witness
}

// openCheckpoint verifies the checkpoint: that it is of the log that counts, of which the statement speaks, and that
// enough witnesses have cosigned it.
func (v *verification) openCheckpoint() error {
	ours := func(origin string) bool {
		return slices.ContainsFunc(v.demand.Log, func(l *translog.Verifier) bool { return l.Name() == origin })
	}
	note := v.bundle.Checkpoint
	origin, _, _ := strings.Cut(note, "\n")
	switch {
	case !ours(origin):
		return v.denied("the checkpoint is of another log, %.100q", origin).
			WithHint("have the trust manifest name the key of this log, if it is yours")
	case !ours(v.statement.Predicate.Log):
		return v.denied("people agreed to a request of another log, %.100q", v.statement.Predicate.Log).
			WithHint("have the trust manifest name the key of this log, if it is yours")
	}
	c, err := translog.Open([]byte(note), v.demand.Log)
	if err != nil {
		return err
	}
	v.log.Checkpoint = c
	if v.log.cosigned, err = translog.Cosigned([]byte(note), v.demand.Witnesses); err != nil {
		return err
	}
	if n := len(v.log.cosigned); n < v.demand.Cosigned {
		return v.denied("%d of %d witnesses have cosigned the checkpoint", n, v.demand.Cosigned).
			WithHint("attach the bundle again once witnesses have cosigned the log")
	}
	return nil
}

// event is an entry of the log with its index.
type event struct {
	*entry.Event

	index int64
}

// readEntries verifies that each entry is in the log, and reads it.
func (v *verification) readEntries() error {
	last := int64(-1)
	for _, e := range v.bundle.Entries {
		if e.Index <= last {
			return v.refuse("its entries are not in the order of the log, each once")
		}
		last = e.Index
		proof := make([]translog.Hash, len(e.Hashes))
		for i, hash := range e.Hashes {
			if len(hash) != len(proof[i]) {
				return v.refuse("a hash of the proof of entry %d has %d bytes", e.Index, len(hash))
			}
			copy(proof[i][:], hash)
		}
		if err := translog.CheckEntry(proof, v.log.Checkpoint, e.Index, e.Entry); err != nil {
			return v.refuse("%w", err)
		}
		read, err := entry.Decode(e.Entry)
		if err != nil {
			return v.refuse("cannot read entry %d of the log: %w", e.Index, err)
		}
		if read.Request != v.statement.Predicate.Request {
			return v.refuse("entry %d of the log is of another request", e.Index)
		}
		v.events = append(v.events, event{read, e.Index})
	}
	return nil
}
