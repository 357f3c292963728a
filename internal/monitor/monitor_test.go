package monitor

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// grow adds n uses of the key that needs nobody.
func (l *ledger) grow(t testing.TB, n int) {
	t.Helper()
	var events []entry.Event
	for range n {
		id := digest(l.salt + len(l.entries) + len(events))
		use := nightly(id)
		use.Time = noon.Format(entry.TimeLayout)
		events = append(events, use, entry.Event{Type: entry.Signed, Request: id, Key: "nightly", Payload: use.Payload,
			Time: use.Time})
	}
	l.add(t, events...)
	l.at = noon
}

func begin(t *testing.T) (*ledger, *site) {
	t.Helper()
	l := newLedger(t)
	l.at = noon.Add(-time.Hour)
	l.add(t, begun()...)
	return l, serve(t, l)
}

// TestFollow reads what is new alone, also after a restart, and remembers what it has read.
func TestFollow(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	l.grow(t, 600)
	w := watch(t, l, s, listed)
	w.sees()
	if w.Size() != l.tree.Size() {
		t.Fatalf("%d of %d entries were read", w.Size(), l.tree.Size())
	}
	l.add(t, asks(), approves("alice"))
	w.sees()
	w.restart()
	s.show(l.files)
	l.add(t, intends(20))
	if a := w.sees(Approvals)[0]; !strings.Contains(a.What, "1 of 2") || *a.Index != l.tree.Size()-1 {
		t.Errorf("%+v", a)
	}
	for _, path := range s.paths {
		if strings.HasPrefix(path, "tile/entries/") && !strings.HasPrefix(path, "tile/entries/004") {
			t.Errorf("%s was read again", path)
		}
	}
	w.sees()
}

// TestFork alerts of each way to show another log, once, keeps both checkpoints, and goes on once the log is as before.
func TestFork(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(l *ledger) *ledger{
		"same size": func(l *ledger) *ledger {
			b := l.branch(t, 100)
			b.grow(t, 102)
			return b
		},
		"longer": func(l *ledger) *ledger {
			b := l.branch(t, 303)
			b.grow(t, 300)
			return b
		},
		"shorter": func(l *ledger) *ledger {
			b := l.branch(t, 100)
			b.grow(t, 20)
			return b
		},
		"rolled back": func(l *ledger) *ledger { return l.branch(t, 280) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, s := begin(t)
			l.grow(t, 150)
			w := watch(t, l, s, listed)
			w.sees()
			b := other(l)
			s.show(b.files)
			alerts := w.looks()
			if name == "rolled back" || name == "shorter" { // without the tiles of the longer log, it could be as before
				if len(alerts) > 0 {
					t.Fatalf("a cache may lag: %s", textOf(alerts))
				}
				alerts = w.looks()
			}
			if got := classesOf(alerts); !slices.Equal(got, []string{Fork}) {
				t.Fatalf("%s", textOf(alerts))
			}
			if len(alerts[0].Evidence) != 2 {
				t.Fatalf("%+v", alerts[0])
			}
			for i, want := range [][]byte{l.signed, b.signed} {
				if got, err := os.ReadFile(alerts[0].Evidence[i]); err != nil || !bytes.Equal(got, want) {
					t.Errorf("evidence %d: %s %v", i, got, err)
				}
			}
			w.sees()
			w.restart()
			w.sees()
			if found, err := w.Once(t.Context()); found == 0 || err == nil {
				t.Errorf("the next run finds %d alerts: %v", found, err)
			}
			l.grow(t, 10)
			s.show(l.files)
			w.sees()
			if w.Size() != l.tree.Size() {
				t.Error("the log is not read any more")
			}
		})
	}
}

// TestResigned tells of a fork once, whatever the signature of its checkpoint is, and however it grows.
func TestResigned(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	l.grow(t, 50)
	w := watch(t, l, s, listed)
	w.sees()
	b := l.branch(t, 80)
	b.grow(t, 30)
	s.show(b.files)
	w.sees(Fork)
	b.sign(t)
	w.sees()
	b.grow(t, 5)
	w.sees()
}

// TestCompare alerts when somebody else sees another log, and not when they are behind or ahead of it.
func TestCompare(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	l.grow(t, 150)
	same, ahead := l.branch(t, 300), l.branch(t, 304)
	ahead.grow(t, 100)
	fork, longFork := l.branch(t, 200), l.branch(t, 200)
	fork.grow(t, 10)
	longFork.grow(t, 200)
	view := func(of *ledger, files translog.Files) View {
		return View{Name: "other", Files: files, Newest: func(context.Context) ([]byte, error) { return of.signed, nil }}
	}
	for name, one := range map[string]struct {
		view View
		want []string
		once bool
	}{
		"a file, behind":            {view: view(same, nil)},
		"a URL, behind":             {view: view(same, same.files)},
		"a URL, ahead":              {view: view(ahead, ahead.files)},
		"a file, ahead":             {view: View{Name: "ahead", Newest: view(ahead, nil).Newest}},
		"a file, ahead, once":       {view: view(ahead, nil), want: []string{Fork}, once: true},
		"a file of a fork":          {view: view(fork, nil), want: []string{Fork}},
		"a URL of a fork":           {view: view(fork, fork.files), want: []string{Fork}},
		"a URL of a longer fork":    {view: view(longFork, longFork.files), want: []string{Fork}},
		"a file of another's fork ": {view: view(longFork, nil), want: []string{Fork}, once: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := watch(t, l, s, listed)
			w.options.Views = []View{one.view}
			w.restart()
			w.once = one.once
			w.sees(one.want...)
			if one.view.Files == nil && !one.once && len(one.want) == 0 && one.view.Name == "ahead" {
				w.sees(Fork) // no cache lags for so long
				return
			}
			w.sees()
		})
	}
}

// TestFlapping tells of a fork that comes and goes once for each of its checkpoints.
func TestFlapping(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	l.grow(t, 50)
	w := watch(t, l, s, listed)
	shown := l.branch(t, 90)
	shown.grow(t, 10)
	fork := shown.signed
	w.options.Views = []View{{Name: "other", Newest: func(context.Context) ([]byte, error) { return shown.signed, nil }}}
	w.restart()
	w.once = true
	w.sees(Fork)
	w.sees()
	shown.signed = l.signed
	w.sees()
	shown.signed = fork
	w.sees()
	shown.signed = l.signed
	w.sees()
	shown.grow(t, 1)
	w.sees(Fork)
}

// TestDamaged tells files that prove nothing from a fork.
func TestDamaged(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	l.grow(t, 150)
	w := watch(t, l, s, listed)
	w.sees()
	stranger := newLedger(t)
	stranger.add(t, begun()...)
	s.show(stranger.files)
	w.sees(Damaged)
	w.sees()
	s.show(l.files)
	w.sees()
	l.grow(t, 10)
	s.show(func(ctx context.Context, path string) ([]byte, error) {
		data, err := l.files(ctx, path)
		if strings.HasPrefix(path, "tile/entries/") {
			data = bytes.ReplaceAll(data, []byte("nightly"), []byte("daily!!"))
		}
		return data, err
	})
	before := w.Size()
	w.sees(Damaged)
	if w.Size() != before {
		t.Error("entries that the checkpoint does not cover were read")
	}
	s.show(l.files)
	w.sees()
	if w.Size() != l.tree.Size() {
		t.Error("the log is not read any more")
	}
}

// TestHostile counts entries of unknown types, and alerts of those that no broker logs, without an end.
func TestHostile(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	at := noon.Format(entry.TimeLayout)
	l.append([]byte(`{"new":{"a":[1,2]},"time":"` + at + `","type":"new/v9"}`))
	l.append([]byte(`{"extra":1,"time":"` + at + `","type":"signed/v1"}`))
	l.append([]byte(`{"time":"` + at + `", "type":"signed/v1"}`))
	l.append([]byte("\xff"))
	l.append(nil)
	l.sign(t)
	w := watch(t, l, s, listed)
	w.sees(Malformed, Malformed, Malformed, Malformed)
	if w.kept.Facts.Unknown != 1 || w.Size() != l.tree.Size() {
		t.Errorf("%d unknown, %d read", w.kept.Facts.Unknown, w.Size())
	}
}

// TestForgets keeps a bounded number of requests, and rather those that people have to agree to. It counts what it
// forgets, and alerts of a use of what it has forgotten.
func TestForgets(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	var subjects []string
	for n := range 150 {
		subjects = append(subjects, digest(2000+n))
	}
	many := func(e entry.Event, n int) (all []entry.Event) {
		for i := range n {
			e.Request, e.Subjects, e.Time = digest(l.salt+len(l.entries)+i), subjects, noon.Format(entry.TimeLayout)
			all = append(all, e)
		}
		return all
	}
	w := watch(t, l, s, listed)
	l.add(t, asks(), approves("alice"), approves("bob"))
	first := digest(len(l.entries))
	l.add(t, many(nightly(""), maxWeight/152-1)...)
	w.sees()
	f := w.kept.Facts
	if f.Weight > maxWeight || f.Forgotten > 0 {
		t.Errorf("weight %d, %d forgotten", f.Weight, f.Forgotten)
	}
	l.add(t, many(asks(), maxWeight/152*2/3)...)
	w.sees()
	if f.Weight > maxWeight || f.Forgotten == 0 || len(f.Requests) < maxWeight/152*2/3 {
		t.Errorf("weight %d, %d forgotten, %d kept", f.Weight, f.Forgotten, len(f.Requests))
	}
	use, retry := intends(20), nightly(first)
	use.Time = noon.Format(entry.TimeLayout)
	l.add(t, use)
	w.sees() // it is the oldest, but people agreed to it
	retry.Needs, retry.Retry, retry.Time = nil, true, use.Time
	l.add(t, retry)
	w.sees(Unlogged, Spent)
}

// TestCondense bounds the alerts of a bundle that are alike.
func TestCondense(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	var events []entry.Event
	for n := range 200 {
		events = append(events, entry.Event{Type: entry.ConfigSet, Config: digest(n)})
	}
	l.add(t, events...)
	w := watch(t, l, s, listed)
	alerts := w.looks()
	if len(alerts) != maxAlike || !strings.HasSuffix(alerts[maxAlike-1].What, ", and 192 more like this one") {
		t.Errorf("%d alerts:%s", len(alerts), textOf(alerts))
	}
}

// TestStale alerts when there is no new checkpoint, or no answer, and again only after there was one.
func TestStale(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	w := watch(t, l, s, listed+"stale: 2h\n")
	w.sees()
	w.clock = w.clock.Add(time.Hour)
	w.sees()
	s.show(func(context.Context, string) ([]byte, error) { return nil, failure.New(failure.Denied, "closed") })
	w.clock = w.clock.Add(2 * time.Hour)
	if a := w.sees(Stale)[0]; !strings.Contains(a.What, "403") {
		t.Error(a.What)
	}
	w.sees()
	s.show(l.files)
	w.sees()
	l.grow(t, 1)
	w.sees()
	w.clock = w.clock.Add(3 * time.Hour)
	w.sees(Stale)
}

// TestEpoch goes on in a new epoch, whose log has another name, and reads it from its beginning if entries were lost.
func TestEpoch(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"of what was not seen": false, "of what was seen": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, s := begin(t)
			l.grow(t, 20)
			w := watch(t, l, s, listed)
			w.sees()
			kept := len(l.entries)
			if lost {
				kept = 30
			}
			next := l.branch(t, kept)
			next.origin = origin + "/2"
			next.add(t, entry.Event{Type: entry.EpochBegun, Epoch: 2, Time: noon.Format(entry.TimeLayout)})
			s.show(next.files)
			w.sees(Damaged) // its name was not given
			w.options.Verifiers = append(w.options.Verifiers, l.verifies(t, next.origin))
			w.restart()
			want := []string{Epoch}
			if lost {
				want = []string{Fork, Epoch}
			}
			w.sees(want...)
			if w.Size() != next.tree.Size() || w.newest.Origin != next.origin {
				t.Errorf("%d of %s", w.Size(), w.newest.Origin)
			}
			s.show(l.files)
			w.sees(Fork) // the former epoch
		})
	}
}

// TestDelivery delivers each alert at least once: while the webhook is down, alerts wait, also through restarts.
func TestDelivery(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	l.add(t, entry.Event{Type: entry.ConfigSet, Config: digest(5)}, entry.Event{Type: entry.ConfigSet, Config: digest(6)})
	h := newHook(t)
	h.set(http.StatusServiceUnavailable)
	w := watch(t, l, s, strings.Replace(listed, "http://127.0.0.1:9/", h.url, 1))
	waiting := w.sees(ConfigSet, ConfigSet)
	if err := w.deliver(t.Context()); err != nil || len(w.kept.Outbox) != 2 {
		t.Fatal(err, len(w.kept.Outbox))
	}
	w.restart()
	w.sees()
	h.set(http.StatusOK)
	if err := w.deliver(t.Context()); err != nil || len(w.kept.Outbox) != 0 {
		t.Fatal(err, len(w.kept.Outbox))
	}
	if got := h.got(); !slices.Equal(got, []string{waiting[0].ID, waiting[1].ID}) {
		t.Errorf("delivered %v", got)
	}
	if body := h.bodies[0]; !strings.Contains(body, `"type":"log.alert"`) || !strings.Contains(body, digest(5)) {
		t.Error(body)
	}
	w.restart()
	w.sees()
	if len(w.kept.Outbox) != 0 {
		t.Error("a delivered alert waits again")
	}
	l.add(t, entry.Event{Type: entry.ConfigSet, Config: digest(7)})
	w.sees(ConfigSet)
	w.options.Config.Webhook = Webhook{}
	w.restart()
	if found, err := w.Once(t.Context()); found != 0 || err != nil {
		t.Errorf("without a webhook: %d, %v", found, err)
	}
}

// TestCrash delivers an alert again, with the same ID, when the monitor ends between a delivery and the state.
func TestCrash(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	h := newHook(t)
	w := watch(t, l, s, strings.Replace(listed, "http://127.0.0.1:9/", h.url, 1))
	w.sees()
	l.add(t, entry.Event{Type: entry.ConfigSet, Config: digest(5)})
	w.sees(ConfigSet)
	before, err := os.ReadFile(filepath.Join(w.dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.deliver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, stateFile), before, 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if err := w.deliver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := h.got(); len(got) != 2 || got[0] != got[1] {
		t.Errorf("delivered %v", got)
	}
}

// TestFull reads no more entries while the webhook takes no alerts.
func TestFull(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	l.grow(t, 300)
	w := watch(t, l, s, listed)
	for range maxOutbox {
		w.kept.Outbox = append(w.kept.Outbox, &Alert{Class: ConfigSet})
	}
	w.sees()
	if w.Size() != 0 {
		t.Errorf("%d entries were read", w.Size())
	}
	w.kept.Outbox = nil
	w.sees()
	if w.Size() != l.tree.Size() {
		t.Errorf("%d entries were read", w.Size())
	}
}

// TestOnce reads the log to its end, and fails for want of an answer of the log or of the webhook.
func TestOnce(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	l.grow(t, 300)
	h := newHook(t)
	w := watch(t, l, s, strings.Replace(listed, "http://127.0.0.1:9/", h.url, 1))
	once := func(want int, kind failure.Kind, text string) {
		t.Helper()
		w.restart()
		found, err := w.Once(t.Context())
		if found != want || (err == nil) != (text == "") ||
			err != nil && (!failure.Is(err, kind) || !strings.Contains(err.Error(), text)) {
			t.Errorf("found %d: %v", found, err)
		}
	}
	once(0, 0, "")
	l.add(t, entry.Event{Type: entry.ConfigSet, Config: digest(5)})
	h.set(http.StatusBadGateway)
	once(1, failure.Unavailable, "does not take 1 alerts")
	h.set(http.StatusOK)
	once(0, 0, "")
	if got := h.got(); len(got) != 1 {
		t.Errorf("delivered %v", got)
	}
	s.show(func(context.Context, string) ([]byte, error) { return nil, failure.New(failure.NotFound, "none") })
	once(0, failure.NotFound, "404")
}

// TestState refuses a state that it did not write, or that is of another log, and a second monitor of the same folder.
func TestState(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	w := watch(t, l, s, listed)
	w.sees()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, w.options); !failure.Is(err, failure.Timeout) {
		t.Errorf("the folder is not locked: %v", err)
	}
	w.Close()
	other := w.options
	other.Verifiers = []*translog.Verifier{newLedger(t).verifier}
	if _, err := Open(t.Context(), other); !failure.Is(err, failure.Denied) {
		t.Errorf("the state is of another log: %v", err)
	}
	for _, text := range []string{"", "{}", `{"version":2}`, `{"version":1,"facts":null}`, "{"} {
		if err := os.WriteFile(filepath.Join(w.dir, stateFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), w.options); !failure.Is(err, failure.Invalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestRun follows the log and delivers alerts until it is told to end.
func TestRun(t *testing.T) {
	t.Parallel()
	l, s := begin(t)
	l.add(t, entry.Event{Type: entry.ConfigSet, Config: digest(5)})
	h := newHook(t)
	h.set(http.StatusServiceUnavailable)
	w := watch(t, l, s, strings.Replace(listed, "http://127.0.0.1:9/", h.url, 1))
	ctx, cancel := context.WithCancel(t.Context())
	waits := 0
	w.wait = func(_ context.Context, d time.Duration) {
		w.clock = w.clock.Add(d)
		switch waits++; waits {
		case 3:
			h.set(http.StatusOK)
		case 30:
			cancel()
		}
	}
	if err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := h.got(); len(got) != 1 || len(w.kept.Outbox) != 0 {
		t.Errorf("delivered %v, waiting %d", got, len(w.kept.Outbox))
	}
}
