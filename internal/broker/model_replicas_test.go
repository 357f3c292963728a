package broker

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
)

// TestModelReplicas is TestModel with three replicas: each step happens at any of them.
func TestModelReplicas(t *testing.T) {
	t.Parallel()
	runModels(t, 3)
}

// replicated are the replicas of a model.
type replicated struct {
	count   int
	shared  *shared
	brokers []*Broker
}

// beginReplicas starts the replicas. What they know of one another is that of before.
func (m *model) beginReplicas(s *sqlite.Store) {
	o := m.others
	before := o.shared
	o.shared = newShared(m.store, m.right)
	if before != nil {
		o.shared.head, o.shared.last = before.head, before.last
		o.shared.head.Replicas = nil // so long did they not run
	}
	o.brokers = nil
	for n := range o.count {
		options := m.options
		options.Store, options.Replica = o.shared, &Replica{Store: o.shared, Key: sharedKey}
		options.publishEvery = 5 * time.Millisecond // the others wait for the leader
		options.Log.File = fmt.Sprintf("%s.%d", m.checkpointFile(), n)
		b, err := Open(m.t.Context(), options)
		if err != nil {
			s.Close()
			m.book.fail(promiseRestarted, "%v", err)
		}
		o.brokers = append(o.brokers, b)
	}
	m.Broker = o.brokers[0]
}

// ended ends the replicas but the one at which the last step happened.
func (m *model) ended() {
	if m.others == nil {
		return
	}
	for _, b := range m.others.brokers {
		if b != m.Broker {
			_ = b.Close()
		}
	}
}

// anywhere has each action happen at any replica, and some that others have taken for dead.
func (m *model) anywhere(all map[string]func(*rapid.T)) map[string]func(*rapid.T) {
	o := m.others
	if o == nil {
		return all
	}
	for name, do := range all {
		all[name] = func(rt *rapid.T) {
			m.Broker = pick(rt, o.brokers)
			do(rt)
		}
	}
	all["dead"] = func(rt *rapid.T) { m.dead(rt); m.book.counts["dead"]++ }
	all["dead while it signs"] = func(rt *rapid.T) {
		m.Broker = pick(rt, o.brokers)
		at := m.Broker
		defer func() { m.hook = nil }()
		m.hook = func() error {
			o.shared.die(at.replica.number.Load())
			other := o.brokers[0]
			if other == at {
				other = o.brokers[1]
			}
			_, err := other.Create(m.t.Context(), m.callerNamed("ci"), newTarget(0)) // which logs what is lost
			return err
		}
		m.faults = true
		m.sign(rt)
		m.hook = nil
		m.again(rt)
		m.join()
		m.faults = false
	}
	return all
}

// dead has the others take a replica for dead.
func (m *model) dead(rt *rapid.T) {
	m.others.shared.die(pick(rt, m.others.brokers).replica.number.Load())
	m.join()
}

// join has all replicas join the others that are not with them.
func (m *model) join() {
	for range 2 {
		for _, b := range m.others.brokers {
			_ = b.beatOnce(m.t.Context())
		}
	}
}
