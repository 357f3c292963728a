// Package fair shares modules between keys and callers. Each module has a number of places: uses of its keys at once.
// Uses that wait for one are served round robin: over the keys first, and over the callers of a key then. So a caller
// with many of them delays another one by one use each time, however many wait.
package fair

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Limits bound a queue.
type Limits struct {
	Waiting  int           // uses that wait
	OfCaller int           // those of one caller
	Wait     time.Duration // of one use
}

// Use is what waits for a place.
type Use struct {
	Module string // several that a key is in have a name of their own
	Places int    // of the module
	Key    string
	Caller string
}

// Queue has uses wait until their modules have places. Its memory is that of the uses that have one or wait.
type Queue struct {
	limits Limits

	mu      sync.Mutex
	modules map[string]*module    // with uses
	callers map[string]*list.List // of *waiter, oldest first, by callers whose uses wait
	waiting int
}

// New returns a queue.
func New(l Limits) *Queue {
	return &Queue{limits: l, modules: map[string]*module{}, callers: map[string]*list.List{}}
}

// module is a module in use.
type module struct {
	places, busy int
	keys         turns[*key]
	waiting      int
	pace         pace
}

// key is a key with uses that wait.
type key struct {
	callers turns[*list.List] // of *waiter, oldest first
}

func newKey() *key { return &key{newTurns[*list.List]()} }

// waiter is a use that waits.
type waiter struct {
	use    Use
	ended  chan struct{} // closed when it has a place, or was refused
	err    error         // why it was refused
	ofKey  *list.Element // in the list of its caller of one key; nil when it waits no more
	ofName *list.Element // in the list of its caller
}

// Enter waits for a place. The caller calls leave when its use has ended, once or more often. Enter fails with
// Throttled and a time after which to try again when too many wait, and when no place becomes free in time; and with
// the cause of ctx when that ends. With too many, it refuses the newest use of the caller who has most: a caller with
// few always finds room.
func (q *Queue) Enter(ctx context.Context, u Use) (leave func(), err error) {
	w, err := q.enter(u)
	if err != nil {
		return nil, err
	}
	if w != nil {
		late := time.NewTimer(q.limits.Wait)
		defer late.Stop()
		select {
		case <-w.ended:
			err = w.err
		case <-late.C:
			err = q.giveUp(w, nil)
		case <-ctx.Done():
			err = q.giveUp(w, context.Cause(ctx))
		}
		if err != nil {
			return nil, err
		}
	}
	return sync.OnceFunc(func() { q.leave(u.Module) }), nil
}

// enter takes a place, and returns nil, or adds a use to those that wait.
func (q *Queue) enter(u Use) (*waiter, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m := q.modules[u.Module]
	if m == nil {
		m = &module{keys: newTurns[*key]()}
		q.modules[u.Module] = m
	}
	m.places = max(u.Places, 1)
	q.serve(m)
	if m.busy < m.places {
		m.busy++
		return nil, nil
	}
	if err := q.makeRoom(m, u); err != nil {
		return nil, err
	}
	w := &waiter{use: u, ended: make(chan struct{})}
	w.ofKey = m.keys.add(u.Key, newKey).callers.add(u.Caller, list.New).PushBack(w)
	all := q.callers[u.Caller]
	if all == nil {
		all = list.New()
		q.callers[u.Caller] = all
	}
	w.ofName = all.PushBack(w)
	q.waiting++
	m.waiting++
	return w, nil
}

// makeRoom fails when a use cannot wait. It refuses one of the caller who has most, if there are too many and that one
// has more than the use's caller will have.
func (q *Queue) makeRoom(m *module, u Use) error {
	own := 0
	if of := q.callers[u.Caller]; of != nil {
		own = of.Len()
	}
	if own >= q.limits.OfCaller {
		return m.refuse(u, "%d uses of the caller wait", own)
	}
	if q.waiting < q.limits.Waiting {
		return nil
	}
	var most *list.List
	for _, of := range q.callers {
		if most == nil || of.Len() > most.Len() {
			most = of
		}
	}
	if most == nil || most.Len() <= own+1 {
		return m.refuse(u, "%d uses wait", q.waiting)
	}
	w := most.Back().Value.(*waiter)
	of := q.modules[w.use.Module]
	w.err = of.refuse(w.use, "%d uses wait", q.waiting)
	q.remove(of, w)
	close(w.ended)
	return nil
}

// refuse returns the failure of a use that does not wait.
func (m *module) refuse(u Use, why string, args ...any) error {
	return failure.New(failure.Throttled, "cannot use key %q: "+why, append([]any{u.Key}, args...)...).
		WithHint("try again later, with fewer uses at once").WithRetryAfter(m.pace.estimate(time.Now(), m.waiting))
}

// giveUp ends the wait of a use, for a cause, or nil if it has taken too long. If the use was served meanwhile, it
// leaves the place.
func (q *Queue) giveUp(w *waiter, cause error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	m := q.modules[w.use.Module]
	switch {
	case w.err != nil:
		return w.err
	case w.ofKey == nil && cause == nil:
		return nil
	case w.ofKey == nil:
		q.free(m, w.use.Module)
		return cause
	case cause == nil:
		cause = m.refuse(w.use, "it had no turn within %s", q.limits.Wait)
	}
	q.remove(m, w)
	return cause
}

// leave gives a place back.
func (q *Queue) leave(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m := q.modules[name]
	m.pace.left(time.Now(), m.waiting > 0)
	q.free(m, name)
}

// free gives a place to the next one, and forgets a module without uses.
func (q *Queue) free(m *module, name string) {
	m.busy--
	q.serve(m)
	if m.busy == 0 && m.waiting == 0 {
		delete(q.modules, name)
	}
}

// serve gives the places of a module to those whose turn it is.
func (q *Queue) serve(m *module) {
	for m.busy < m.places && m.waiting > 0 {
		w := m.keys.next().callers.next().Front().Value.(*waiter)
		q.remove(m, w)
		m.busy++
		close(w.ended)
	}
}

// remove has a use wait no more. Its caller and its key are forgotten if nothing else of them waits.
func (q *Queue) remove(m *module, w *waiter) {
	u := w.use
	k := m.keys.add(u.Key, newKey)
	of := k.callers.add(u.Caller, list.New)
	of.Remove(w.ofKey)
	w.ofKey = nil
	if of.Len() == 0 {
		k.callers.remove(u.Caller)
	}
	if k.callers.order.Len() == 0 {
		m.keys.remove(u.Key)
	}
	all := q.callers[u.Caller]
	if all.Remove(w.ofName); all.Len() == 0 {
		delete(q.callers, u.Caller)
	}
	q.waiting--
	m.waiting--
}
