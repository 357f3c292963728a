package report

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Bounds of a report that is read.
const (
	maxText   = 16 << 20 // bytes of a line of its text
	maxHashes = 64       // of an inclusion proof
)

var lineLimits = bound.Limits{Bytes: maxText, Depth: bound.Depth, Elements: 200_000}

// Verified tells what a report has that has verified.
type Verified struct {
	About About
	// Complete: the report has all lines of the period that the log has up to the checkpoint.
	Complete bool
}

// Verify verifies a report in JSON: that its checkpoint is signed by one of the verifiers, that the entries of each
// line are in the log under it, and that each line says what its entries say. It shows nothing of lines that are
// missing.
func Verify(from io.Reader, verifiers []*translog.Verifier) (*Verified, error) {
	r := newReader(from)
	if err := r.open(verifiers); err != nil {
		return nil, err
	}
	for _, err := range r.lines() {
		if err != nil {
			return nil, err
		}
	}
	return &Verified{About: r.about}, nil
}

// VerifyWith verifies a report as Verify does, and the log that it is of: that the log continues the checkpoint of the
// report, and that the report has exactly the lines that the log makes.
func VerifyWith(ctx context.Context, from io.Reader, files translog.Files, verifiers []*translog.Verifier) (*Verified,
	error,
) {
	r := newReader(from)
	if err := r.open(verifiers); err != nil {
		return nil, err
	}
	own, err := New(ctx, files, verifiers, Options{From: r.from, To: r.to, since: &r.checkpoint})
	if err != nil {
		return nil, err
	}
	defer own.Close()
	next, stop := iter.Pull2(own.Lines())
	defer stop()
	for line, err := range r.lines() {
		if err != nil {
			return nil, err
		}
		want, err, more := next()
		if err != nil {
			return nil, err
		}
		if !more {
			return nil, r.refuse(errors.New("the log makes no such line"))
		}
		if err := same(line, want); err != nil {
			return nil, r.refuse(err)
		}
	}
	if missing, err, more := next(); err != nil || more {
		if err == nil {
			err = r.refuse(fmt.Errorf("it ends before the line about entry %d", missing.Index))
		}
		return nil, err
	}
	if own.About.Last != r.about.Last {
		return nil, r.refuse(fmt.Errorf("the last entry is of %s", own.About.Last))
	}
	return &Verified{About: r.about, Complete: true}, nil
}

// same fails unless two lines say the same of the log.
func same(line, want *Line) error {
	got, err := line.canonical()
	if err != nil {
		return err
	}
	expected, err := want.canonical()
	if err == nil && !bytes.Equal(got, expected) {
		err = fmt.Errorf("the log makes another line here, about entry %d", want.Index)
	}
	return err
}

// reader reads a report in JSON, line by line.
type reader struct {
	text       *bufio.Reader
	number     int // of the line of the text
	about      About
	checkpoint translog.Checkpoint
	from, to   time.Time
	before     *Line
	exceptions int64
	signatures int64
}

func newReader(from io.Reader) *reader { return &reader{text: bufio.NewReaderSize(from, 1<<16)} }

// refuse returns the failure of the line that was read last.
func (r *reader) refuse(err error) error {
	return failure.New(failure.Conflict, "cannot verify line %d of the report: %w", r.number, err).
		WithHint("make the report again with 'hsm-broker report': this copy was changed")
}

// next returns the next line of the text, without its end.
func (r *reader) next() ([]byte, error) {
	r.number++
	var all []byte
	for {
		part, err := r.text.ReadSlice('\n')
		all = append(all, part...)
		switch {
		case len(all) > maxText:
			return nil, r.refuse(fmt.Errorf("it has more than %d bytes", maxText))
		case err == nil:
			return all[:len(all)-1], nil
		case errors.Is(err, io.EOF):
			return nil, r.refuse(errors.New("the report ends too early"))
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, failure.New(failure.Unavailable, "cannot read the report: %w", err).WithHint("try again")
		}
	}
}

// decode reads an object in canonical form.
func decode(data []byte, into any) error {
	if err := bound.JSON(data, lineLimits); err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return err
	}
	if again, err := translog.Canonical(into); err != nil || !bytes.Equal(again, data) {
		return errors.New("it is not in its canonical form")
	}
	return nil
}

// open reads what the report says of itself, and verifies its checkpoint.
func (r *reader) open(verifiers []*translog.Verifier) error {
	data, err := r.next()
	if err != nil {
		return err
	}
	data, begins := bytes.CutPrefix(data, []byte(jsonFirst))
	data, ends := bytes.CutSuffix(data, []byte(jsonLines))
	if !begins || !ends {
		return r.refuse(errors.New("it is not the beginning of a report in JSON"))
	}
	if err := decode(data, &r.about); err != nil {
		return r.refuse(err)
	}
	if r.about.Type != reportType {
		return r.refuse(fmt.Errorf("its type is %.40q", r.about.Type))
	}
	if r.checkpoint, err = translog.Open([]byte(r.about.Checkpoint), verifiers); err != nil {
		return err
	}
	if r.checkpoint.Origin != r.about.Origin || r.checkpoint.Size != r.about.Size {
		return r.refuse(errors.New("the checkpoint is of another log or size"))
	}
	if r.from, err = time.Parse(entry.TimeLayout, r.about.From); err == nil {
		r.to, err = time.Parse(entry.TimeLayout, r.about.To)
	}
	if err != nil || !r.from.Before(r.to) {
		return r.refuse(errors.New("it has no period"))
	}
	return nil
}

// lines returns the lines of the report, each verified. It ends after an error.
func (r *reader) lines() iter.Seq2[*Line, error] {
	return func(yield func(*Line, error) bool) {
		for {
			line, more, err := r.line()
			if err != nil {
				yield(nil, err)
				return
			}
			if line != nil && !yield(line, nil) || !more {
				return
			}
		}
	}
}

// line reads the next line; nil at the end.
func (r *reader) line() (line *Line, more bool, err error) {
	data, err := r.next()
	if err != nil {
		return nil, false, err
	}
	if string(data) == jsonLast {
		return nil, false, r.end()
	}
	if r.before != nil {
		var comma bool
		if data, comma = bytes.CutPrefix(data, []byte(",")); !comma {
			return nil, false, r.refuse(errors.New("it does not begin with a comma"))
		}
	}
	line = &Line{}
	if err := decode(data, line); err != nil {
		return nil, false, r.refuse(err)
	}
	if err := r.check(line); err != nil {
		return nil, false, r.refuse(err)
	}
	r.before = line
	if line.What == Signature {
		r.signatures++
	}
	if line.Exception != "" {
		r.exceptions++
	}
	return line, true, nil
}

// end checks the end of a report.
func (r *reader) end() error {
	if r.signatures != r.about.Signatures || r.exceptions != r.about.Exceptions {
		return r.refuse(fmt.Errorf("the report has %d signatures and %d exceptions, and says %d and %d", r.signatures,
			r.exceptions, r.about.Signatures, r.about.Exceptions))
	}
	if _, err := r.text.ReadByte(); !errors.Is(err, io.EOF) {
		return r.refuse(errors.New("something follows the end of the report"))
	}
	return nil
}

// check verifies a line: its entries are in the log, they make this line, and it is in its place.
func (r *reader) check(line *Line) error {
	var all []evidence
	for _, e := range line.Proof {
		if len(e.Hashes) > maxHashes {
			return fmt.Errorf("an inclusion proof has more than %d hashes", maxHashes)
		}
		var proof []translog.Hash
		for _, hash := range e.Hashes {
			if len(hash) != tlog.HashSize {
				return fmt.Errorf("a hash has %d bytes", len(hash))
			}
			proof = append(proof, translog.Hash(hash))
		}
		if err := translog.CheckEntry(proof, r.checkpoint, e.Index, e.Entry); err != nil {
			return err
		}
		event, err := entry.Decode(e.Entry)
		if err != nil {
			return fmt.Errorf("entry %d is not one that a broker logs: %w", e.Index, err)
		}
		all = append(all, evidence{e.Index, e.Entry, event})
	}
	want, err := lineOf(all)
	if err != nil {
		return err
	}
	if got, err := line.canonical(); err != nil {
		return err
	} else if expected, err := want.canonical(); err != nil || !bytes.Equal(got, expected) {
		return fmt.Errorf("it does not say what entry %d and those before it say", want.Index)
	}
	at := all[len(all)-1].event.At()
	if at.Before(r.from) || !at.Before(r.to) {
		return fmt.Errorf("entry %d is not of the period", want.Index)
	}
	if r.before != nil && !r.before.precedes(line) {
		return errors.New("it is not in its place")
	}
	return nil
}

// precedes reports whether a line comes before another one in a report.
func (l *Line) precedes(next *Line) bool {
	switch {
	case (l.Exception == "") != (next.Exception == ""):
		return l.Exception != ""
	case l.Exception != "" || l.Key == next.Key && l.Rule == next.Rule:
		return l.Index < next.Index
	case l.Key == next.Key:
		return l.Rule < next.Rule
	}
	return l.Key < next.Key
}
