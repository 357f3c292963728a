package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// load is all clients.
type load struct {
	*world
	artifacts   atomic.Int64
	checkpoints struct {
		sync.Mutex
		all map[string]*replica // each that a replica has shown
	}
}

// digest returns the digest of an artifact that nobody has signed yet.
func (l *load) digest() string { return hash(fmt.Appendf(nil, "artifact %d", l.artifacts.Add(1))) }

// run has all clients work until ctx ends, and waits until they have ended.
func (l *load) run(ctx context.Context, seed uint64) {
	var group sync.WaitGroup
	worker := uint64(0)
	begin := func(count int, pause time.Duration, work func(context.Context, *rand.Rand)) {
		for range count {
			worker++
			random := rand.New(rand.NewPCG(seed, worker))
			group.Go(func() {
				for ctx.Err() == nil {
					work(ctx, random)
					sleep(ctx, time.Duration(random.Int64N(int64(2*pause))))
				}
			})
		}
	}
	begin(4, 60*time.Millisecond, l.nightly)
	begin(2, 500*time.Millisecond, l.limited)
	begin(1, 400*time.Millisecond, l.twins)
	begin(5, 200*time.Millisecond, l.release)
	begin(2, 100*time.Millisecond, l.frozen)
	operator := l.withCertificate("operator")
	begin(1, 300*time.Millisecond, func(ctx context.Context, random *rand.Rand) { l.operate(ctx, random, operator) })
	for _, r := range l.replicas {
		begin(1, 50*time.Millisecond, func(ctx context.Context, random *rand.Rand) { l.probe(ctx, random, r) })
	}
	group.Wait()
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// some returns a replica by chance: clients are spread as by a load balancer that knows nothing of the replicas.
func (l *load) some(random *rand.Rand) *replica { return l.replicas[random.IntN(len(l.replicas))] }

// maxTries is how often a client repeats a call whose outcome it does not know, or that nobody has got.
const maxTries = 5

// retry makes a call at replicas by chance until its outcome is known.
func (l *load) retry(ctx context.Context, random *rand.Rand, call func(*replica) *op) (last *op) {
	for range maxTries {
		last = call(l.some(random))
		if ctx.Err() != nil || last.outcome == succeeded || last.outcome == refused {
			return last
		}
		sleep(ctx, time.Duration(100+random.IntN(400))*time.Millisecond)
	}
	return last
}

// nightly signs an artifact that no person has to agree to, and at times asks again for the same signature.
func (l *load) nightly(ctx context.Context, random *rand.Rand) {
	token, s := l.mint("nightly"), toSign(l.digest(), 0)
	ask := func(r *replica) *op {
		return l.sign(ctx, op{kind: signs, replica: r, key: "release"}, token, s)
	}
	l.retry(ctx, random, ask)
	if random.IntN(4) == 0 {
		l.retry(ctx, random, ask)
	}
}

// limited signs more than the limit of its rule.
func (l *load) limited(ctx context.Context, random *rand.Rand) {
	token, s := l.mint("limited"), toSign(l.digest(), 0)
	l.retry(ctx, random, func(r *replica) *op {
		return l.sign(ctx, op{kind: signs, replica: r, key: "release"}, token, s)
	})
}

// twins uses one token for two artifacts at once, at two replicas: it is good for one.
func (l *load) twins(ctx context.Context, random *rand.Rand) {
	token := l.mint("nightly")
	var group sync.WaitGroup
	for range 2 {
		r, s := l.some(random), toSign(l.digest(), 0)
		group.Go(func() { l.sign(ctx, op{kind: signs, replica: r, key: "release"}, token, s) })
	}
	group.Wait()
}

// frozen signs with the key that an operator blocks and unblocks.
func (l *load) frozen(ctx context.Context, random *rand.Rand) {
	l.sign(ctx, op{kind: signs, replica: l.some(random), key: "freeze"}, l.mint("nightly"), toSign(l.digest(), 0))
}

// operate blocks and unblocks a key.
func (l *load) operate(ctx context.Context, random *rand.Rand, operator *caller) {
	for _, k := range []kind{blocks, unblocks} {
		l.retry(ctx, random, func(r *replica) *op {
			return l.change(ctx, op{kind: k, replica: r, key: "freeze"}, operator)
		})
		sleep(ctx, time.Duration(random.IntN(1500))*time.Millisecond)
	}
}

// release makes a request, has people decide about it, and uses it, all of that at once and at replicas by chance.
func (l *load) release(ctx context.Context, random *rand.Rand) {
	f := l.newFlow(ctx, random)
	if f == nil {
		return
	}
	var group sync.WaitGroup
	for _, i := range random.Perm(len(l.people))[:1+random.IntN(3)] {
		p, own := l.people[i], rand.New(rand.NewPCG(random.Uint64(), 0))
		group.Go(func() { f.person(ctx, own, p) })
	}
	own := rand.New(rand.NewPCG(random.Uint64(), 1))
	group.Go(func() { f.look(ctx, own, 3) })
	if random.IntN(8) == 0 {
		own := rand.New(rand.NewPCG(random.Uint64(), 2))
		group.Go(func() { f.cancelled(ctx, own) })
	}
	if random.IntN(2) == 0 { // else, those who sign come when all have decided
		group.Wait()
	}
	same := toSign(f.digest, 0)
	for n := range 2 {
		own, s := rand.New(rand.NewPCG(random.Uint64(), 3)), same
		if n > 0 && random.IntN(2) == 0 {
			s = toSign(f.digest, n)
		}
		group.Go(func() { f.use(ctx, own, s) })
	}
	group.Wait()
	f.look(ctx, random, 2)
	if f.short {
		sleep(ctx, time.Until(f.ends)+time.Duration(random.IntN(2000))*time.Millisecond)
		f.look(ctx, random, 2)
	}
}

// flow is a request that clients of a kind share.
type flow struct {
	*load
	op         // what each call is about
	digest     string
	repository string
	statement  string
	ends       time.Time
}

// newFlow makes a request, or returns nil.
func (l *load) newFlow(ctx context.Context, random *rand.Rand) *flow {
	f := &flow{load: l, digest: l.digest(), repository: "release"}
	if f.short = random.IntN(6) == 0; f.short {
		f.repository = "short"
	}
	token := l.mint(f.repository)
	var made *brokerapi.Request
	o := l.retry(ctx, random, func(r *replica) *op {
		o, request := l.create(ctx, r, token, f.digest)
		made = request
		return o
	})
	if o.outcome != succeeded || made.Statement == "" || made.NotAfter == nil {
		return nil
	}
	f.request, f.key, f.statement, f.ends = made.ID, "release", made.Statement, *made.NotAfter
	f.until = f.ends.Sub(l.began)
	return f
}

// about returns what a call at a replica is about.
func (f *flow) about(k kind, r *replica) op {
	o := f.op
	o.kind, o.replica = k, r
	return o
}

// person approves the request, and at times withdraws that or rejects it.
func (f *flow) person(ctx context.Context, random *rand.Rand, p *person) {
	decisions := []approval.Decision{approval.Approve}
	switch random.IntN(12) {
	case 0:
		decisions = []approval.Decision{approval.Reject}
	case 1, 2:
		decisions = append(decisions, approval.Withdraw)
	case 3, 4:
		decisions = append(decisions, approval.Withdraw, approval.Approve)
	}
	kinds := map[approval.Decision]kind{approval.Approve: approves, approval.Reject: rejects, approval.Withdraw: withdraws}
	for _, d := range decisions {
		sleep(ctx, time.Duration(random.IntN(300))*time.Millisecond)
		envelope, err := p.decides(d, f.statement)
		if err != nil {
			f.t.Error(err)
			return
		}
		o := f.retry(ctx, random, func(r *replica) *op { return f.decide(ctx, f.about(kinds[d], r), p, envelope) })
		if o.outcome != succeeded {
			return
		}
		if random.IntN(2) == 0 { // all replicas know of it from now on
			f.read(ctx, f.about(reads, f.some(random)), f.mint(f.repository))
		}
		if random.IntN(10) == 0 { // once more, which is refused
			f.decide(ctx, f.about(kinds[d], f.some(random)), p, envelope)
		}
	}
}

// look reads the request a few times.
func (f *flow) look(ctx context.Context, random *rand.Rand, times int) {
	for range times {
		f.read(ctx, f.about(reads, f.some(random)), f.mint(f.repository))
		sleep(ctx, time.Duration(random.IntN(300))*time.Millisecond)
	}
}

func (f *flow) cancelled(ctx context.Context, random *rand.Rand) {
	sleep(ctx, time.Duration(random.IntN(800))*time.Millisecond)
	f.retry(ctx, random, func(r *replica) *op { return f.cancel(ctx, f.about(cancels, r), f.mint(f.repository)) })
}

// use asks for the signature until it gets one, while the request may still be approved.
func (f *flow) use(ctx context.Context, random *rand.Rand, s brokerapi.SignatureRequest) {
	for range 3 {
		o := f.retry(ctx, random, func(r *replica) *op { return f.sign(ctx, f.about(uses, r), f.mint(f.repository), s) })
		if o.outcome != succeeded || o.signature != "" || o.waits != f.request {
			return
		}
		sleep(ctx, time.Duration(random.IntN(600))*time.Millisecond)
	}
}

// probe makes a call of each kind at one replica, and keeps the checkpoint that it shows.
func (l *load) probe(ctx context.Context, random *rand.Rand, r *replica) {
	l.sign(ctx, op{kind: signs, replica: r, key: "release", probe: true}, l.mint("nightly"), toSign(l.digest(), 0))
	if note, err := r.checkpoint(); err == nil {
		l.checkpoints.Lock()
		l.checkpoints.all[string(note)] = r
		l.checkpoints.Unlock()
	}
	o, made := l.create(ctx, r, l.mint("release"), l.digest())
	if o.outcome != succeeded {
		return
	}
	about := op{replica: r, request: o.request, key: "release", until: made.NotAfter.Sub(l.began), probe: true}
	about.kind = approves
	p := l.people[random.IntN(len(l.people))]
	envelope, err := p.decides(approval.Approve, made.Statement)
	if err != nil {
		l.t.Error(err)
		return
	}
	l.decide(ctx, about, p, envelope)
	about.kind = reads
	l.read(ctx, about, l.mint("release"))
}

// parts returns the parts of a replica that are not ready, for the report.
func (r *replica) parts() string {
	data, err := r.get(brokerapi.ReadyPath)
	if err != nil {
		return err.Error()
	}
	var ready brokerapi.Readiness
	if json.Unmarshal(data, &ready) != nil || ready.Ready {
		return ""
	}
	return fmt.Sprint(http.StatusServiceUnavailable, ready.Parts)
}
