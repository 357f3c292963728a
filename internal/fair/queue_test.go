package fair

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// model knows which uses wait, and which have places. It checks every turn by what is promised, not by how.
type model struct {
	*rapid.T
	q       *Queue
	busy    map[string]int
	waiting []*waiting // in the order in which they came
	// By module, and by module and key: how many turns a key, or a caller of the key, has waited for its own, and after
	// how many it gets one at the latest.
	keys, callers map[string]map[string]*patience
}

type waiting struct {
	*waiter
	n int
}

type patience struct{ waited, most int }

// TestQueue does anything in any order.
func TestQueue(t *testing.T) {
	t.Parallel()
	for range 10 { // times 100
		rapid.Check(t, checkQueue)
	}
}

func checkQueue(t *rapid.T) {
	limits := Limits{Waiting: rapid.IntRange(1, 6).Draw(t, "waiting"), OfCaller: rapid.IntRange(2, 6).Draw(t, "of caller")}
	m := &model{T: t, q: New(limits), busy: map[string]int{},
		keys: map[string]map[string]*patience{}, callers: map[string]map[string]*patience{}}
	n, places := 0, rapid.IntRange(1, 3).Draw(t, "places")
	t.Repeat(map[string]func(*rapid.T){
		"enter": func(t *rapid.T) {
			n++
			m.enter(n, Use{Module: draw(t, "module", 2), Key: draw(t, "key", 3), Caller: draw(t, "caller", 4),
				Places: places})
		},
		"leave": func(t *rapid.T) {
			module := draw(t, "module", 2)
			if m.busy[module] == 0 {
				t.Skip()
			}
			m.busy[module]--
			m.q.leave(module)
			m.served(module)
		},
		"give up": func(t *rapid.T) {
			if len(m.waiting) == 0 {
				t.Skip()
			}
			w := rapid.SampledFrom(m.waiting).Draw(t, "waiting")
			cause := errors.New("gone")
			if err := m.q.giveUp(w.waiter, cause); !errors.Is(err, cause) {
				t.Fatalf("%v", err)
			}
			m.forget(w)
		},
		"": func(*rapid.T) { m.check() },
	})
	for module := range m.busy { // all get a place in the end, and nothing is remembered
		for ; m.busy[module] > 0; m.served(module) {
			m.busy[module]--
			m.q.leave(module)
		}
	}
	if len(m.waiting) > 0 || len(m.q.modules)+len(m.q.callers)+m.q.waiting > 0 {
		t.Fatalf("%d wait; %+v", len(m.waiting), m.q)
	}
}

func draw(t *rapid.T, what string, n int) string {
	return fmt.Sprint(what, " ", rapid.IntRange(1, n).Draw(t, what))
}

// enter has a use enter. A use is refused if too many wait, and then, or instead, the newest of a caller who has more.
func (m *model) enter(n int, u Use) {
	own, of := m.count(u.Caller), map[string]int{}
	for _, w := range m.waiting {
		of[w.use.Caller]++
	}
	most := 0
	for _, n := range of {
		most = max(most, n)
	}
	w, err := m.q.enter(u)
	full, many := len(m.waiting) >= m.q.limits.Waiting, own >= m.q.limits.OfCaller
	switch {
	case err != nil:
		if !failure.Is(err, failure.Throttled) || failure.From(err).RetryAfter < time.Second {
			m.Fatalf("%v", err)
		}
		if !many && (!full || most > own+1) || m.busy[u.Module] < u.Places {
			m.Fatalf("%+v was refused: %v", u, err)
		}
		return
	case w == nil:
		m.busy[u.Module]++
		return
	case many:
		m.Fatalf("%+v waits", u)
	case full:
		victim := m.refused()
		if victim == nil || of[victim.use.Caller] != most || most <= own+1 {
			m.Fatalf("%+v waits beside %d; %+v was refused", u, len(m.waiting), victim)
		}
		m.forget(victim)
	}
	m.waiting = append(m.waiting, &waiting{w, n})
	begin(m.keys, u.Module, u.Key)
	begin(m.callers, u.Module+u.Key, u.Caller)
}

// begin has somebody wait among others, unless it does so already.
func begin(all map[string]map[string]*patience, where, who string) {
	if all[where] == nil {
		all[where] = map[string]*patience{}
	}
	if all[where][who] == nil {
		all[where][who] = &patience{most: len(all[where]) + 1}
	}
}

func (m *model) count(caller string) (n int) {
	for _, w := range m.waiting {
		if w.use.Caller == caller {
			n++
		}
	}
	return n
}

// refused returns the use that waited and was refused: the newest of its caller.
func (m *model) refused() (found *waiting) {
	for _, w := range m.waiting {
		if found != nil && found.use.Caller == w.use.Caller {
			m.Fatalf("%d of %s was refused, and not %d", found.n, w.use.Caller, w.n)
		}
		select {
		case <-w.ended:
			if !failure.Is(w.err, failure.Throttled) || found != nil {
				m.Fatalf("%+v was refused: %v", w.use, w.err)
			}
			found = w
		default:
		}
	}
	return found
}

// served takes note of the use that has got a place of a module, if one has.
func (m *model) served(module string) {
	var now []*waiting
	for _, w := range m.waiting {
		if w.served() {
			now = append(now, w)
		}
	}
	if len(now) == 0 {
		return
	}
	w := now[0]
	if len(now) > 1 || w.use.Module != module {
		m.Fatalf("%d have got a place of %s; the first is %+v", len(now), module, w.use)
	}
	for _, other := range m.waiting {
		if other.use == w.use && other.n < w.n {
			m.Fatalf("%d has a place before %d", w.n, other.n)
		}
	}
	m.busy[module]++
	m.turn(m.keys[module], w.use.Key)
	m.turn(m.callers[module+w.use.Key], w.use.Caller)
	m.forget(w)
}

func (w *waiting) served() bool {
	select {
	case <-w.ended:
		return w.err == nil
	default:
		return false
	}
}

// turn is one of somebody among those who wait.
func (m *model) turn(all map[string]*patience, who string) {
	for name, p := range all {
		if p.waited++; p.waited > p.most {
			m.Fatalf("%s has waited for %d turns of %d", name, p.waited, p.most)
		}
		if name == who {
			*p = patience{most: len(all)}
		}
	}
}

// forget takes note of a use that waits no more.
func (m *model) forget(w *waiting) {
	kept, key, caller := m.waiting[:0:0], false, false
	for _, other := range m.waiting {
		if other == w {
			continue
		}
		kept = append(kept, other)
		same := other.use.Module == w.use.Module && other.use.Key == w.use.Key
		key, caller = key || same, caller || same && other.use.Caller == w.use.Caller
	}
	m.waiting = kept
	if !key {
		delete(m.keys[w.use.Module], w.use.Key)
	}
	if !caller {
		delete(m.callers[w.use.Module+w.use.Key], w.use.Caller)
	}
}

// check checks what always holds.
func (m *model) check() {
	waits := map[string]int{}
	for _, w := range m.waiting {
		waits[w.use.Module]++
		if m.count(w.use.Caller) > m.q.limits.OfCaller {
			m.Fatalf("%d of %s wait", m.count(w.use.Caller), w.use.Caller)
		}
	}
	if len(m.waiting) > m.q.limits.Waiting || m.q.waiting != len(m.waiting) {
		m.Fatalf("%d wait: %+v", len(m.waiting), m.q)
	}
	for module, busy := range m.busy {
		of := m.q.modules[module]
		if of != nil && (waits[module] > 0 && busy < of.places || busy > of.places) {
			m.Fatalf("%d wait, and %d of %d places are taken", waits[module], busy, of.places)
		}
		if of == nil && busy+waits[module] > 0 || of != nil && of.busy != busy {
			m.Fatalf("%d have a place: %+v", busy, of)
		}
	}
}

// TestHog has one caller wait with 1,000 uses, and another one with one, of the same key and of another one.
func TestHog(t *testing.T) {
	t.Parallel()
	for _, other := range []Use{{Key: "release", Caller: "other"}, {Key: "nightly", Caller: "other"}} {
		q := New(Limits{Waiting: 2000, OfCaller: 1000})
		hog := Use{Places: 2, Key: "release", Caller: "hog"}
		other.Places = 2
		var all []*waiter
		for range 1002 {
			if w, err := q.enter(hog); err != nil {
				t.Fatal(err)
			} else if w != nil {
				all = append(all, w)
			}
		}
		w, err := q.enter(other)
		if err != nil || len(all) != 1000 {
			t.Fatal(err, len(all))
		}
		for range 2 { // one turn of the hog, and one of the other
			q.leave("")
		}
		if w.ofKey != nil || all[0].ofKey != nil || all[1].ofKey == nil {
			t.Errorf("%+v waits", other)
		}
		if _, err := q.enter(Use{Places: 2, Key: "nightly", Caller: "hog"}); err != nil {
			t.Error(err) // 999 wait
		}
		if _, err = q.enter(hog); !failure.Is(err, failure.Throttled) {
			t.Errorf("%v", err)
		}
	}
}

// TestFull refuses the newest use of the caller who has most, for one who has less.
func TestFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := New(Limits{Waiting: 3, OfCaller: 3, Wait: time.Hour})
		begun := make(chan string, 10)
		failed := make(chan error, 10)
		enter := func(name string) {
			go func() {
				leave, err := q.Enter(t.Context(), Use{Places: 1, Key: "release", Caller: name[:1]})
				if err != nil {
					failed <- err
					return
				}
				begun <- name
				time.Sleep(10 * time.Second)
				leave()
				leave() // which does nothing
			}()
			synctest.Wait()
		}
		for _, name := range []string{"a1", "a2", "a3", "a4", "b1"} { // a4 goes
			enter(name)
		}
		enter("b2") // as many as a has
		if len(failed) != 2 {
			t.Fatalf("%d were refused", len(failed))
		}
		for range 2 {
			if err := <-failed; !failure.Is(err, failure.Throttled) || failure.From(err).RetryAfter != time.Second {
				t.Errorf("%v", err)
			}
		}
		for _, want := range []string{"a1", "a2", "b1", "a3"} {
			if got := <-begun; got != want {
				t.Errorf("%s has its turn before %s", got, want)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(q.modules) != 0 {
			t.Errorf("%+v", q.modules)
		}
	})
}

// TestLeave ends waits with their contexts, and after a time. It says when to try again by how fast places become free.
func TestLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := New(Limits{Waiting: 100, OfCaller: 100, Wait: 25 * time.Second})
		u := Use{Places: 1, Key: "release", Caller: "ci"}
		for range 6 { // 4 s each
			go func() {
				if leave, err := q.Enter(t.Context(), u); err == nil {
					time.Sleep(4 * time.Second)
					leave()
				}
			}()
		}
		synctest.Wait()
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { time.Sleep(13 * time.Second); cancel(gone) }()
		if _, err := q.Enter(ctx, u); !errors.Is(err, gone) {
			t.Errorf("%v", err)
		}
		go func() { // has its turn after 11 s
			if leave, err := q.Enter(t.Context(), u); err == nil {
				time.Sleep(20 * time.Second)
				leave()
			}
		}()
		synctest.Wait()
		_, err := q.Enter(t.Context(), u)
		if !failure.Is(err, failure.Throttled) || failure.From(err).RetryAfter != 14*time.Second {
			t.Errorf("%v, %+v", err, failure.From(err))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if q.waiting != 0 || len(q.modules) != 0 {
			t.Errorf("%+v", q)
		}
	})
}
