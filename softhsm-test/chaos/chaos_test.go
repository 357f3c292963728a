// Package chaos has replicas of a broker fail in all ways that a test can make them fail: three of 'hsm-broker serve',
// a primary of PostgreSQL and its synchronous standby, and four modules with the same keys, each on a network host of
// its own. Clients of all replicas record what they are told, and a model decides whether one broker could have said
// it. The log tells the rest.
package chaos

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// settings are the flags of a run.
type settings struct {
	duration time.Duration
	seed     uint64
	mistake  string
	only     string
	slowest  time.Duration
}

var flags settings

func init() {
	flag.DurationVar(&flags.duration, "chaos.duration", 0, "how long faults happen; 0 means a few of them")
	flag.Uint64Var(&flags.seed, "chaos.seed", 0, "repeats the faults of a run; 0 means others each time")
	flag.StringVar(&flags.mistake, "chaos.mistake", "", "plants a mistake into the broker, which the run is to find")
	flag.StringVar(&flags.only, "chaos.faults", "", "the faults that happen, separated by commas")
	flag.DurationVar(&flags.slowest, "chaos.recovery", 0, "fails a run in which a replica takes longer to recover")
}

// shortFaults is how many kinds of faults a short run has, each once.
const shortFaults = 7

// TestChaos has faults happen under load. It checks that each request is linearizable, and that the log keeps what the
// broker promises: no signature without its approvals, none released twice for one use, no acknowledged approval lost,
// no gaps.
func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("-short leaves out what needs modules and databases: run 'make test'")
	}
	o := flags
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	t.Logf("to repeat the faults: -chaos.seed %d", o.seed)
	w := newWorld(t, o)
	w.learnPeople()
	l := &load{world: w}
	l.checkpoints.all = map[string]*replica{}
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { l.run(ctx, o.seed) })
	defer group.Wait()
	defer stop()
	t.Logf("all parts run after %s", w.now().Round(time.Second))
	sleep(ctx, 2*time.Second)
	rounds := w.rounds(o)
	stop()
	group.Wait()
	final := w.finalLog()
	ops := w.history.ops()
	lost := final.check(ops, l.checkpoints.all)
	w.checkHistories(ops)
	w.report(o, rounds, ops, final, lost)
}

// rounds has faults happen, one or several at a time, and waits after each until all replicas do all again.
func (w *world) rounds(o settings) (all []*round) {
	random := rand.New(rand.NewPCG(o.seed, 0))
	from := kinds
	if o.only != "" {
		from = strings.Split(o.only, ",")
	}
	began := w.now()
	for n := 0; !w.t.Failed(); n++ {
		if o.duration > 0 && w.now()-began > o.duration || o.duration == 0 && n == min(shortFaults, len(from)) {
			break
		}
		chosen := []string{from[n%len(from)]}
		if o.duration > 0 && n >= len(from) { // all kinds alone first, then by chance
			chosen = []string{from[random.IntN(len(from))]}
			for !exclusive[chosen[0]] && random.IntN(2) == 0 && len(chosen) < 3 {
				another := from[random.IntN(len(from))]
				if !exclusive[another] && !slices.ContainsFunc(chosen, func(k string) bool {
					return family(k) == family(another)
				}) {
					chosen = append(chosen, another)
				}
			}
		}
		r := w.strike(random, chosen...)
		all = append(all, r)
		w.recover(r)
		w.t.Logf("%6.1f s: %s; recovered after %s", r.began.Seconds(), strings.Join(r.names, ", "), r.slowest())
	}
	return all
}

// family is what two faults at once do not share: a replica is not started twice.
func family(kind string) string {
	if kind == "clock-start" {
		return "kill"
	}
	return strings.TrimSuffix(kind, "-leader")
}

// probed are the calls by which a replica shows that it works.
var probed = []kind{signs, creates, approves, reads}

// recover waits until each replica has done each kind of call since the end of a round, and notes how long that took.
func (w *world) recover(r *round) {
	w.t.Helper()
	var missing []string
	defer func() {
		if len(missing) > 0 {
			for _, replica := range w.replicas {
				w.t.Logf("%s: %s", replica.name, replica.parts())
			}
			w.t.Logf("after %s, these do not work: %s", strings.Join(r.names, ", "), strings.Join(missing, ", "))
		}
	}()
	w.until("all replicas recover after "+strings.Join(r.names, ", "), func() bool {
		for _, o := range w.history.ops() {
			name := o.replica.name + " " + string(o.kind)
			if o.outcome != succeeded || o.ret < r.ended {
				continue
			}
			if at, known := r.recovery[name]; !known || o.ret-r.ended < at {
				r.recovery[name] = o.ret - r.ended
			}
		}
		missing = nil
		for _, replica := range w.replicas {
			for _, k := range probed {
				if _, works := r.recovery[replica.name+" "+string(k)]; !works {
					missing = append(missing, replica.name+" "+string(k))
				}
			}
		}
		return len(missing) == 0
	})
	if slices.Contains(r.kinds, "failover") { // as its operator does
		w.postgres.rebuild()
	}
	w.until("the standby is in sync", w.postgres.redundant)
	time.Sleep(time.Second)
}

// slowest returns how long the last replica took to do the last kind of call.
func (r *round) slowest() time.Duration {
	var most time.Duration
	for _, replica := range slices.Collect(maps.Keys(r.recovery)) {
		_, k, _ := strings.Cut(replica, " ")
		if slices.Contains(probed, kind(k)) {
			most = max(most, r.recovery[replica])
		}
	}
	return most.Round(10 * time.Millisecond)
}

// checkHistories checks that what clients were told about each request could have been told by one broker.
func (w *world) checkHistories(ops []*op) {
	w.t.Helper()
	slices.SortStableFunc(ops, func(a, b *op) int { return int(a.call - b.call) })
	requests, payloads, frozen := map[string][]*op{}, map[string][]*op{}, []*op{}
	for _, o := range ops {
		switch {
		case o.key == "freeze":
			if o.kind == signs && o.outcome == refused && failure.From(o.failed).Kind != failure.Denied {
				continue
			}
			frozen = append(frozen, o)
		case o.kind == signs:
			payloads[o.payload] = append(payloads[o.payload], o)
		case o.kind != creates:
			requests[o.request] = append(requests[o.request], o)
		}
	}
	undecided := 0
	fail := func(what string, ops []*op) {
		var lines []string
		for _, o := range ops {
			lines = append(lines, o.String())
		}
		w.t.Errorf("%s is not linearizable:\n%s", what, strings.Join(lines, "\n"))
	}
	judge := func(what string, result porcupine.CheckResult, ops []*op) {
		switch result {
		case porcupine.Illegal:
			fail(what, ops)
		case porcupine.Unknown:
			undecided++
		}
	}
	for id, ops := range requests {
		judge("request "+id, linearizable(ops), ops)
	}
	for payload, ops := range payloads {
		if !sameBytes(ops) {
			fail("the signature of "+payload, ops)
		}
	}
	judge("the key freeze", linearizableKey(frozen), frozen)
	if undecided > 0 {
		w.t.Logf("the histories of %d requests were too long to check", undecided)
	}
}

// report prints what has happened.
func (w *world) report(o settings, rounds []*round, ops []*op, final *log, lost int) {
	w.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "\n%d calls, %d entries in the log, %d faults in %s (seed %d)\n\n", len(ops), len(final.entries),
		len(rounds), w.now().Round(time.Second), o.seed)
	fmt.Fprintf(&b, "%-10s %9s %9s %9s %9s %10s %10s\n", "call", "succeeded", "refused", "unknown", "unsent", "median",
		"p99")
	calm := func(o *op) bool {
		return !slices.ContainsFunc(rounds, func(r *round) bool { return o.ret > r.began && o.call < r.ended+r.slowest() })
	}
	for _, k := range []kind{signs, uses, creates, reads, approves, withdraws, rejects, cancels, blocks, unblocks} {
		var counts [4]int
		var times []time.Duration
		for _, o := range ops {
			if o.kind != k {
				continue
			}
			counts[o.outcome]++
			if o.outcome == succeeded && calm(o) {
				times = append(times, o.ret-o.call)
			}
		}
		fmt.Fprintf(&b, "%-10s %9d %9d %9d %9d %10s %10s\n", k, counts[succeeded], counts[refused], counts[unknown],
			counts[unsent], quantile(times, 0.5), quantile(times, 0.99))
	}
	calls, sum := w.moduleCalls()
	released := 0
	for _, e := range final.events {
		if e.Signature != "" {
			released++
		}
	}
	fmt.Fprintf(&b, "\n(times are of calls without a fault)\n"+
		"modules signed %d times %v, checkpoints included; released: %d; lost or failed: %d\n\n", sum, calls, released,
		lost)
	if sum < released {
		w.t.Errorf("modules were called %d times, and %d signatures were released", sum, released)
	}
	byKind := map[string][]time.Duration{}
	for _, r := range rounds {
		name := strings.Join(r.kinds, " + ")
		byKind[name] = append(byKind[name], r.slowest())
	}
	fmt.Fprintf(&b, "%-44s %5s %10s %10s\n", "recovery after", "times", "median", "max")
	var all []time.Duration
	for _, name := range slices.Sorted(maps.Keys(byKind)) {
		times := byKind[name]
		fmt.Fprintf(&b, "%-44s %5d %10s %10s\n", name, len(times), quantile(times, 0.5), quantile(times, 1))
		all = append(all, times...)
	}
	fmt.Fprintf(&b, "%-44s %5d %10s %10s\n", "all", len(all), quantile(all, 0.5), quantile(all, 1))
	w.t.Log(b.String())
	if slowest := slices.Max(all); o.slowest > 0 && slowest > o.slowest {
		w.t.Errorf("a replica recovered after %s, and not within %s", slowest, o.slowest)
	}
}

func quantile(times []time.Duration, q float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return times[int(q*float64(len(times)-1))].Round(time.Millisecond)
}
