package chaos

import (
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// partition is the calls about one request.
type partition struct {
	ops       []*op    // those whose effects nobody knows, and all signatures: by the bits of state.pending
	envelopes []string // by the bits of state.seen
	short     bool     // the request ends by itself
	until     time.Duration
}

// state is a request as the model has it.
type state struct {
	phase brokerapi.State // pending while it is open, whoever agrees; or rejected, cancelled, expired
	votes uint8           // the people whose approvals stand
	seen  uint64          // envelopes that were given
	used  bool

	signing int8 // number of the call plus one whose intent is in the log; 0 for none
	first   bool // that intent is a use
	last    int8 // number of the call plus one whose signature was made last; 0 for none
	sig     int8 // number of the call plus one that got it; 0 while nobody knows which it is

	pending uint64 // calls that may still have their effect
}

// step is what a call does at one moment.
type step struct {
	*partition
	op     *op
	number int  // in ops; -1 if it is not there
	begins bool // it may have its effect from now on
}

const quorum = 2

func (s *state) open() bool { return s.phase == brokerapi.Pending && !s.used && s.signing == 0 }

func (s *state) agreed() bool { return bits.OnesCount8(s.votes) >= quorum }

// slack is by how much the clocks of a client and of the broker can differ here, where all have the same one.
const slack = 2 * time.Second

// decided returns the state after a decision of a person, and whether it can be taken.
func (p *partition) decided(s state, o *op) (state, bool) {
	n := uint64(1) << slices.Index(p.envelopes, o.envelope)
	who := uint8(1) << o.person
	if !s.open() || s.seen&n != 0 || o.kind == approves && s.votes&who != 0 || o.kind == withdraws && s.votes&who == 0 {
		return s, false
	}
	s.seen |= n
	switch o.kind {
	case approves:
		s.votes |= who
	case withdraws:
		s.votes &^= who
	default:
		s.phase = brokerapi.Rejected
	}
	for i, other := range p.ops {
		if other.envelope == o.envelope && other.envelope != "" {
			s.pending &^= 1 << i
		}
	}
	return s, true
}

// another reports whether one of some calls would have the same effect as another one that nobody knows of.
func (p *partition) another(calls uint64, o *op) bool {
	for ; calls != 0; calls &= calls - 1 {
		other := p.ops[bits.TrailingZeros64(calls)]
		if o.outcome == unknown && other.outcome == unknown && other.kind == o.kind && other.envelope == o.envelope &&
			other.payload == o.payload {
			return true
		}
	}
	return false
}

// later returns the states that a state can turn into without a call that ends.
func (p *partition) later(from state) []state {
	all := []state{from}
	add := func(s state) {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	for i := 0; i < len(all); i++ {
		s := all[i]
		if p.short && s.open() {
			ended := s
			ended.phase = brokerapi.Expired
			add(ended)
		}
		if s.signing != 0 && p.ops[s.signing-1].outcome != succeeded { // the module has signed, or it is lost
			made, lost := s, s
			made.last, made.sig, made.signing, made.used = s.signing, 0, 0, true
			add(made)
			lost.signing, lost.used = 0, s.used && !s.first
			add(lost)
		}
		for rest := s.pending; rest != 0; rest &= rest - 1 {
			n := bits.TrailingZeros64(rest)
			o, next := p.ops[n], s
			if p.another(s.pending&(1<<n-1), o) {
				continue // it makes no difference which of them it is
			}
			next.pending &^= 1 << n
			switch o.kind {
			case uses:
				same := s.last != 0 && p.ops[s.last-1].payload == o.payload // which have a signature
				if s.signing != 0 || s.phase != brokerapi.Pending || !s.used && !s.agreed() || same {
					continue
				}
				next.signing, next.first, next.used = int8(n+1), !s.used, true
			case cancels:
				if !s.open() {
					continue
				}
				next.phase = brokerapi.Cancelled
			default:
				decided, ok := p.decided(next, o)
				if !ok {
					continue
				}
				next = decided
			}
			add(next)
		}
	}
	return all
}

// apply returns whether a call can end in a state as it did, and the state after it.
func (t *step) apply(s state) (state, bool) {
	o := t.op
	if t.begins {
		given := o.envelope != "" && s.seen&(1<<slices.Index(t.envelopes, o.envelope)) != 0
		ended := s.phase != brokerapi.Pending && s.last == 0
		if given || ended && o.outcome == unknown { // it has no effect
			return s, true
		}
		s.pending |= 1 << t.number
		return s, true
	}
	late := o.short && o.call > o.until+slack // nothing is decided any more
	if o.outcome == refused {
		return s, t.refuses(s)
	}
	switch o.kind {
	case approves, withdraws, rejects:
		next, ok := t.decided(s, o)
		return next, ok && !late
	case cancels:
		ok := s.open() && !late
		s.phase = brokerapi.Cancelled
		return s, ok
	case reads:
		return s, t.finds(s)
	case uses:
		return t.signs(s)
	}
	return s, true
}

// refuses reports whether a state is a reason to refuse a call.
func (t *step) refuses(s state) bool {
	o := t.op
	switch o.kind {
	case approves, withdraws, rejects:
		n := uint64(1) << slices.Index(t.envelopes, o.envelope)
		has := s.votes&(1<<o.person) != 0
		late := o.short && o.ret > o.until-slack
		return !s.open() || s.seen&n != 0 || o.kind == approves && has || o.kind == withdraws && !has || late
	case cancels:
		return !s.open()
	}
	return true
}

// finds reports whether a read finds a state.
func (t *step) finds(s state) bool {
	o := t.op
	switch o.state {
	case brokerapi.Pending:
		return s.open() && !s.agreed() && o.votes == s.votes
	case brokerapi.Approved: // also while its first signature is made: then it is not said which approvals count
		return s.open() && s.agreed() && o.votes == s.votes || s.signing != 0 && s.first
	case brokerapi.Signing:
		return s.signing != 0
	case brokerapi.Signed: // also while another signature of the same use is made
		return s.used && (s.signing == 0 || !s.first)
	case brokerapi.Expired:
		return s.phase == brokerapi.Expired && o.ret > o.until-slack
	}
	return s.phase == o.state
}

// signs returns the state after a call for a signature has ended.
func (t *step) signs(s state) (state, bool) {
	o, own := t.op, int8(t.number+1)
	switch {
	case o.waits == o.request:
		s.pending &^= 1 << t.number
		return s, s.open() && !s.agreed()
	case o.waits != "": // it had another request made: this one has ended, or is being used for other bytes
		s.pending &^= 1 << t.number
		return s, s.phase != brokerapi.Pending || s.signing != 0 && s.first
	case s.signing == own:
		s.signing, s.last, s.sig = 0, own, own
		return s, true
	case s.pending&(1<<t.number) != 0 && s.last != 0 && s.signing == 0 && t.ops[s.last-1].payload == o.payload:
		s.pending &^= 1 << t.number // the same bytes have the same signature
		if s.sig == 0 {
			s.sig = own
		}
		return s, t.ops[s.sig-1].signature == o.signature
	}
	return s, false
}

// byRequest is the model of one request.
var byRequest = porcupine.NondeterministicModel{
	Init: func() []any { return []any{state{phase: brokerapi.Pending}} },
	Step: func(from, input, _ any) (all []any) {
		t := input.(*step)
		for _, s := range t.later(from.(state)) {
			if next, ok := t.apply(s); ok && !slices.Contains(all, any(next)) {
				all = append(all, next)
			}
		}
		return all
	},
	DescribeOperation: func(input, _ any) string {
		if t := input.(*step); t.begins {
			return "begins: " + t.op.String()
		}
		return input.(*step).op.String()
	},
}

// linearizable checks the calls about one request. It returns Unknown when that takes too long.
func linearizable(ops []*op) porcupine.CheckResult {
	p := &partition{}
	var history []porcupine.Operation
	for i, o := range ops {
		if o.outcome == unsent || o.outcome == unknown && o.kind == reads {
			continue
		}
		if o.envelope != "" && !slices.Contains(p.envelopes, o.envelope) {
			p.envelopes = append(p.envelopes, o.envelope)
		}
		p.short, p.until = p.short || o.short, max(p.until, o.until)
		number := -1
		if o.outcome == unknown || o.kind == uses && o.outcome == succeeded {
			number = len(p.ops)
			p.ops = append(p.ops, o)
			history = append(history, porcupine.Operation{ClientId: i, Input: &step{p, o, number, true},
				Call: int64(o.call), Return: int64(o.call)})
		}
		if o.outcome != unknown {
			history = append(history, porcupine.Operation{ClientId: i, Input: &step{p, o, number, false},
				Call: int64(o.call), Return: int64(o.ret)})
		}
	}
	if len(p.ops) > math.MaxInt8/2 || len(p.envelopes) > 63 {
		return porcupine.Unknown
	}
	return porcupine.CheckOperationsTimeout(byRequest.ToModel(), history, time.Minute)
}

// sameBytes reports whether all calls for a signature of the same bytes got the same one.
func sameBytes(ops []*op) bool {
	signature := ""
	for _, o := range ops {
		if o.signature == "" {
			continue
		}
		if signature != "" && o.signature != signature {
			return false
		}
		signature = o.signature
	}
	return true
}

// keyStep is a call about a key that is blocked and unblocked.
type keyStep struct {
	op     *op
	begins bool // it may have its effect from now on
}

// keyState is a key as the model has it.
type keyState struct {
	blocked          bool
	blocks, unblocks int // calls that may still have their effect
}

// byKey is the model of one key.
var byKey = porcupine.NondeterministicModel{
	Init: func() []any { return []any{keyState{}} },
	Step: func(from, input, _ any) (all []any) {
		t, states := input.(*keyStep), []keyState{from.(keyState)}
		for i := 0; i < len(states); i++ {
			for _, next := range []keyState{{true, states[i].blocks - 1, states[i].unblocks},
				{false, states[i].blocks, states[i].unblocks - 1}} {
				if next.blocks >= 0 && next.unblocks >= 0 && next.blocked != states[i].blocked &&
					!slices.Contains(states, next) {
					states = append(states, next)
				}
			}
		}
		for _, s := range states {
			ok := true
			switch {
			case t.begins && t.op.kind == blocks:
				s.blocks++
			case t.begins:
				s.unblocks++
			case t.op.kind == blocks || t.op.kind == unblocks:
				if t.op.outcome == succeeded {
					s.blocked = t.op.kind == blocks
				}
			default:
				ok = s.blocked == (t.op.outcome == refused)
			}
			if ok && !slices.Contains(all, any(s)) {
				all = append(all, s)
			}
		}
		return all
	},
}

// linearizableKey checks the calls about one key.
func linearizableKey(ops []*op) porcupine.CheckResult {
	var history []porcupine.Operation
	for i, o := range ops {
		changes := o.kind == blocks || o.kind == unblocks
		switch {
		case o.outcome == unsent || o.outcome == unknown && !changes:
		case o.outcome == unknown:
			history = append(history, porcupine.Operation{ClientId: i, Input: &keyStep{o, true}, Call: int64(o.call),
				Return: int64(o.call)})
		default:
			history = append(history, porcupine.Operation{ClientId: i, Input: &keyStep{o, false}, Call: int64(o.call),
				Return: int64(o.ret)})
		}
	}
	return porcupine.CheckOperationsTimeout(byKey.ToModel(), history, 2*time.Minute)
}
