package chaos

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// fault is something that goes wrong, until the function that begin returns is called.
type fault struct {
	name  string
	lasts time.Duration
	begin func() (end func())
}

// deadAfter is longer than a replica counts as alive without a sign of life.
const deadAfter = 7 * time.Second

// faults returns one fault of each kind, about replicas and modules by chance.
func (w *world) faults(random *rand.Rand) map[string]fault {
	r := w.replicas[random.IntN(len(w.replicas))]
	other := w.replicas[(random.IntN(max(1, len(w.replicas)-1))+1+indexOf(w.replicas, r))%len(w.replicas)]
	m := w.modules[random.IntN(len(w.modules))]
	short := time.Duration(500+random.IntN(2500)) * time.Millisecond
	long := time.Duration(4000+random.IntN(5000)) * time.Millisecond
	databases := []*host{w.postgres.servers[0].host, w.postgres.servers[1].host}
	moduleHosts := make([]*host, len(w.modules))
	for i, m := range w.modules {
		moduleHosts[i] = m.host
	}
	replicaHosts := make([]*host, len(w.replicas))
	for i, r := range w.replicas {
		replicaHosts[i] = r.host
	}
	skew := 60 - 120*random.IntN(2)
	cut := func(from *host, others ...*host) func() func() {
		return func() func() {
			for _, o := range others {
				w.net.cut(from, o)
			}
			return func() {
				for _, o := range others {
					w.net.heal(from, o)
				}
			}
		}
	}
	oldest := w.oldest()
	all := map[string]fault{}
	add := func(key, name string, lasts time.Duration, begin func() func()) {
		all[key] = fault{name, lasts, begin}
	}
	kill := func(r *replica) func() func() {
		return func() func() { r.kill(); return r.start }
	}
	add("none", "nothing", 10*time.Second, func() func() { return func() {} })
	add("kill", "kill -9 "+r.name, short, kill(r))
	add("kill-leader", "kill -9 the leader "+oldest.name, short, kill(oldest))
	pause := func(r *replica) func() func() {
		return func() func() { r.pause(true); return func() { r.pause(false) } }
	}
	add("pause", "SIGSTOP "+r.name, deadAfter+short, pause(r))
	add("pause-leader", "SIGSTOP the leader "+oldest.name, deadAfter+short, pause(oldest))
	add("hiccup", "SIGSTOP for less than it counts as dead "+r.name, short, pause(r))
	add("no-database", "cut off from the database "+r.name, long, cut(r.host, databases...))
	add("no-module", fmt.Sprintf("cut off from %s %s", m.label, r.name), long, cut(r.host, m.host))
	add("no-modules", "cut off from all modules "+r.name, long, cut(r.host, moduleHosts...))
	add("apart", fmt.Sprintf("cut off from each other %s and %s", r.name, other.name), long, cut(r.host, other.host))
	add("module-down", "kill -9 the server of "+m.label, short, func() func() {
		m.process.kill()
		return m.start
	})
	add("module-cut", "cut off from everyone "+m.label, long, cut(m.host, replicaHosts...))
	add("restart", "PostgreSQL restarted (fast)", 0, func() func() {
		w.postgres.restart(syscall.SIGINT)
		return func() {}
	})
	add("crash", "PostgreSQL restarted (immediate)", 0, func() func() {
		w.postgres.restart(syscall.SIGQUIT)
		return func() {}
	})
	add("failover", "PostgreSQL failed over to its standby", 0, func() func() {
		if !w.postgres.failover() {
			w.t.Error("the standby is not in sync")
		}
		return func() {}
	})
	add("no-standby", "primary and standby cut off from each other", long, cut(databases[0], databases[1]))
	add("slow-disk", "disks of the databases slow", long, w.postgres.slowDisk)
	add("clock", fmt.Sprintf("clock of %s wrong by %+d s", r.name, skew), long, func() func() {
		r.skew(skew)
		return func() { r.skew(0) }
	})
	add("clock-start", fmt.Sprintf("%s started with a clock that is wrong by %+d s", r.name, skew), long, func() func() {
		r.kill()
		r.skew(skew)
		r.run()
		return func() {
			r.kill()
			r.skew(0)
			r.start()
		}
	})
	return all
}

func indexOf(all []*replica, r *replica) int {
	for i, one := range all {
		if one == r {
			return i
		}
	}
	return -1
}

// kinds are those of faults, in the order in which a short run has them.
var kinds = []string{"kill-leader", "pause", "no-database", "no-module", "restart", "clock", "failover", "pause-leader",
	"crash", "no-modules", "module-down", "slow-disk", "clock-start", "hiccup", "kill", "module-cut", "apart",
	"no-standby"}

// exclusive are faults that have no other beside them: those of the database, which an operator heals first.
var exclusive = map[string]bool{"restart": true, "crash": true, "failover": true, "no-standby": true}

// round is some faults at once, and what came of them.
type round struct {
	kinds, names []string
	began, ended time.Duration
	recovery     map[string]time.Duration // after the end, by replica and kind of call
}

// strike has some faults happen, overlapping, and returns once all have ended.
func (w *world) strike(random *rand.Rand, kinds ...string) *round {
	r := &round{kinds: kinds, began: w.now(), recovery: map[string]time.Duration{}}
	var group sync.WaitGroup
	for i, k := range kinds {
		f, wait := w.faults(random)[k], time.Duration(0)
		if i > 0 {
			wait = time.Duration(random.IntN(2000)) * time.Millisecond
		}
		r.names = append(r.names, f.name)
		group.Go(func() {
			time.Sleep(wait)
			end := f.begin()
			time.Sleep(f.lasts)
			end()
		})
	}
	group.Wait()
	r.ended = w.now()
	return r
}
