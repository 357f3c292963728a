package chaos

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// log is the log of a run, verified as anyone can.
type log struct {
	w       *world
	events  []*entry.Event
	entries [][]byte
	key     *translog.Verifier
}

// exportLog copies the log from a replica with 'hsm-broker log export', and verifies the copy.
func (w *world) exportLog(r *replica) (*log, error) {
	dir := filepath.Join(w.dir, "export", fmt.Sprint(w.now().Nanoseconds()))
	w.file(filepath.Join("export", "README"), "copies of the log\n")
	_, err := w.clients.run(nil, nil, w.program, "log", "export", r.url()+brokerapi.LogPath, dir, "--key",
		filepath.Join(w.dir, "log.pem"), "--origin", origin, "--ca", filepath.Join(w.dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	key, err := translog.NewVerifier(origin, w.keys["log"].Public())
	if err != nil {
		return nil, err
	}
	l, audit := &log{w: w, key: key}, broker.NewAudit()
	_, err = translog.VerifyDir(context.Background(), dir, []*translog.Verifier{key}, translog.Options{
		Each: func(index int64, _ translog.Event, data []byte) error {
			e, err := entry.Decode(data)
			if err != nil {
				return err
			}
			l.events, l.entries = append(l.events, e), append(l.entries, slices.Clone(data))
			return audit.Entry(index, data)
		}})
	return l, err
}

// finalLog returns the log once it has the outcome of every intent, and a signature of each replica.
func (w *world) finalLog() *log {
	w.t.Helper()
	var last []string
	for _, r := range w.replicas {
		w.until(r.name+" signs at the end", func() bool {
			digest := hash(fmt.Appendf(nil, "last of %s at %s", r.name, w.now()))
			o := w.sign(context.Background(), op{kind: signs, replica: r, key: "release"}, w.mint("nightly"),
				toSign(digest, 0))
			if o.outcome == succeeded {
				last = append(last, o.request)
			}
			return o.outcome == succeeded
		})
	}
	var l *log
	var err error
	w.until("the log is whole", func() bool {
		if l, err = w.exportLog(w.replicas[0]); err != nil {
			w.t.Errorf("the log: %v", err)
			return true
		}
		open := map[string]bool{}
		found := 0
		for _, e := range l.events {
			switch e.Type {
			case entry.Intended:
				open[e.Request] = true
			case entry.Signed, entry.Failed, entry.Lost:
				delete(open, e.Request)
				if slices.Contains(last, e.Request) {
					found++
				}
			}
		}
		return found == len(last) && len(open) == 0
	})
	return l
}

// ledger is what the log says of one request.
type ledger struct {
	rule   string
	votes  map[string]bool // people whose approvals stand
	ended  bool
	intent *entry.Event // without an outcome
	uses   int
	first  time.Time // signature
}

// check checks what the log must have, whatever clients were told, and that it has what they were told.
func (l *log) check(ops []*op, checkpoints map[string]*replica) (lost int) {
	t := l.w.t
	t.Helper()
	signed, decisions, requests := map[string]*entry.Event{}, map[string]*entry.Event{}, map[string]*ledger{}
	tokens := map[string]string{}
	var limited []time.Time
	var before time.Time
	for i, e := range l.events {
		if e.At().Before(before) {
			t.Errorf("entry %d is of %s, before the one before: %s", i, e.Time, before)
		}
		before = e.At()
		r := requests[e.Request]
		if r == nil {
			r = &ledger{rule: e.Rule, votes: map[string]bool{}}
			requests[e.Request] = r
		}
		if e.Token != "" {
			triple := e.Key + strings.Join(e.Subjects, "")
			if other, used := tokens[e.Token]; used && other != triple {
				t.Errorf("entry %d: a token is used for another artifact", i)
			}
			tokens[e.Token] = triple
		}
		switch e.Type {
		case entry.Approved:
			r.votes[e.Approver] = true
		case entry.Withdrawn:
			delete(r.votes, e.Approver)
		case entry.Rejected:
			r.ended = true
		case entry.Ended:
			r.ended = e.State != string(brokerapi.Signed)
		case entry.Intended:
			if e.Rule == "limited" && !e.Retry {
				limited = append(limited, e.At())
			}
			l.intent(i, e, r)
		case entry.Signed, entry.Lost, entry.Failed:
			lost += l.outcome(i, e, r, signed)
		}
		if e.Type == entry.Approved || e.Type == entry.Withdrawn || e.Type == entry.Rejected {
			if decisions[e.Approval] != nil {
				t.Errorf("entry %d: a decision counts twice", i)
			}
			decisions[e.Approval] = e
		}
	}
	for i := perMinute; i < len(limited); i++ {
		if d := limited[i].Sub(limited[i-perMinute]); d <= time.Minute {
			t.Errorf("%d signatures in %s, by a rule that allows %d in a minute", perMinute+1, d, perMinute)
		}
	}
	l.told(ops, signed, decisions, requests)
	l.prefixes(checkpoints)
	return lost
}

// intent checks an intent to sign.
func (l *log) intent(i int, e *entry.Event, r *ledger) {
	t := l.w.t
	people := r.rule == "release" || r.rule == "short"
	switch {
	case r.intent != nil:
		t.Errorf("entry %d: a second intent of request %s", i, e.Request)
	case people && len(r.votes) < quorum:
		t.Errorf("entry %d: an intent of request %s with %d approvals", i, e.Request, len(r.votes))
	case people && r.ended:
		t.Errorf("entry %d: an intent of request %s, which has ended", i, e.Request)
	case e.Retry && (r.first.IsZero() || e.At().Sub(r.first) > 15*time.Minute):
		t.Errorf("entry %d: request %s is signed again, %s after the first time", i, e.Request, e.At().Sub(r.first))
	case !e.Retry && r.uses > 0:
		t.Errorf("entry %d: a second use of request %s", i, e.Request)
	}
	r.intent = e
}

// outcome checks the end of an intent.
func (l *log) outcome(i int, e *entry.Event, r *ledger, signed map[string]*entry.Event) (lost int) {
	if r.intent == nil || r.intent.Payload != e.Payload {
		l.w.t.Errorf("entry %d: an outcome of request %s without its intent", i, e.Request)
		return 0
	}
	retry := r.intent.Retry
	r.intent = nil
	if e.Type != entry.Signed {
		return 1
	}
	if signed[e.Signature] != nil {
		l.w.t.Errorf("entry %d: a signature is in the log twice", i)
	}
	signed[e.Signature] = e
	if !retry {
		r.uses++
		r.first = e.At()
	}
	return 0
}

// told checks that the log has what clients were told.
func (l *log) told(ops []*op, signed, decisions map[string]*entry.Event, requests map[string]*ledger) {
	t := l.w.t
	of := map[kind]string{approves: entry.Approved, withdraws: entry.Withdrawn, rejects: entry.Rejected}
	for _, o := range ops {
		if o.outcome != succeeded {
			continue
		}
		switch o.kind {
		case approves, withdraws, rejects:
			if e := decisions[o.envelope]; e == nil || e.Type != of[o.kind] || e.Request != o.request {
				t.Errorf("the log does not have what was acknowledged: %s", o)
			}
		case creates:
			if requests[o.request] == nil {
				t.Errorf("the log does not have the request: %s", o)
			}
		case signs, uses:
			if e := signed[o.signature]; o.signature != "" && (e == nil || e.Request != o.request || e.Payload != o.payload) {
				t.Errorf("the log does not have the signature: %s", o)
			}
		}
	}
}

// prefixes checks that each checkpoint that a replica has shown is of this log.
func (l *log) prefixes(checkpoints map[string]*replica) {
	t := l.w.t
	shown := map[int64]map[translog.Hash]*replica{}
	for note, r := range checkpoints {
		c, err := translog.Open([]byte(note), []*translog.Verifier{l.key})
		if err != nil || c.Size > int64(len(l.entries)) {
			t.Errorf("%s has shown a checkpoint of %d entries: %v", r.name, c.Size, err)
			continue
		}
		if shown[c.Size] == nil {
			shown[c.Size] = map[translog.Hash]*replica{}
		}
		shown[c.Size][c.Root] = r
	}
	tree, err := translog.NewTree(context.Background(), 0, nil)
	l.w.must(err)
	for size := int64(0); size <= int64(len(l.entries)); size++ {
		for root, r := range shown[size] {
			if root != tree.Root() {
				t.Errorf("%s has shown a checkpoint of another log with %d entries", r.name, size)
			}
		}
		if size < int64(len(l.entries)) {
			tree, _ = tree.Append(l.entries[size : size+1])
		}
	}
}

// moduleCalls returns how often each module was called to sign.
func (w *world) moduleCalls() (all []int, sum int) {
	for _, m := range w.modules {
		n := m.signatures()
		all = append(all, n)
		sum += n
	}
	return all, sum
}
