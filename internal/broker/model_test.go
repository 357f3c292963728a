package broker

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
	"pgregory.net/rapid"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
)

// What TestModel does if no flag of rapid says otherwise.
const (
	modelRuns   = 64
	modelSteps  = 60
	modelShards = 16 // runs at once: most of the time they wait for the disk
)

// TestModel has many people, callers, clocks, faults and crashes act on a broker and its store at random, and checks
// after each step that the broker keeps what it promises. go test -run TestModel -rapid.checks=3000 does more.
func TestModel(t *testing.T) {
	t.Parallel()
	runModels(t, 1)
}

// runModels runs models of brokers with some replicas.
func runModels(t *testing.T, replicas int) {
	t.Helper()
	setModelFlags(t)
	var mu sync.Mutex
	counts := map[string]int{}
	t.Run("shards", func(t *testing.T) {
		all := t
		for n := range modelShards {
			t.Run(strconv.Itoa(n), func(t *testing.T) {
				t.Parallel()
				rapid.Check(t, func(rt *rapid.T) {
					if all.Failed() { // another shard has found something
						return
					}
					m := newModel(t, rt, replicas)
					defer m.end()
					rt.Repeat(m.actions())
					mu.Lock()
					defer mu.Unlock()
					for name, n := range m.book.counts {
						counts[name] += n
					}
				})
			})
		}
	})
	t.Log(counts)
	happens := []string{"signed", "signed as people agreed", "changed as people agreed", "withdrawn/v1", "must"}
	if replicas == 1 {
		happens = append(happens, "void", "rejected/v1", "policy/v1", "enrolled/v1", "removed/v1")
	} else {
		happens = append(happens, "dead")
	}
	for _, name := range happens {
		if counts[name] == 0 && !t.Failed() && !testing.Short() { // which makes too few runs
			t.Errorf("in no run: %s", name)
		}
	}
}

// shortRuns is the number of runs of which rapid makes one with -short.
const shortRuns = 5

// modelFlags are set once for all models of the program.
var modelFlags sync.Once

// setModelFlags has a shard of a model make its part of the runs.
func setModelFlags(t *testing.T) {
	t.Helper()
	modelFlags.Do(func() {
		runs := setFlag(t, "rapid.checks", "100", modelRuns)
		setFlag(t, "rapid.steps", "30", modelSteps)
		runs = (runs + modelShards - 1) / modelShards
		if testing.Short() {
			runs = max(runs, shortRuns) // or rapid would make none
		}
		if err := flag.Set("rapid.checks", strconv.Itoa(runs)); err != nil {
			t.Fatal(err)
		}
	})
}

// setFlag sets a flag of rapid that has its default, and returns its value.
func setFlag(t *testing.T, name, initial string, value int) int {
	t.Helper()
	f := flag.Lookup(name)
	if f.Value.String() == initial {
		if err := f.Value.Set(strconv.Itoa(value)); err != nil {
			t.Fatal(err)
		}
	}
	now, err := strconv.Atoi(f.Value.String())
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// model is a broker on which a test acts, beside the book of what it did.
type model struct {
	*fixture
	rt      *rapid.T
	book    *book
	store   *faulty
	last    *Broker // also when none runs
	others  *replicated
	audit   *Audit
	options Options

	knobs     map[string]knobs                        // by the hash of the policy
	signers   map[string]func(document []byte) []byte // signatures by the pseudonym of the public key
	envelopes []sentEnvelope
	payloads  []sentPayload
	jumped    time.Duration
	hook      func() error
	faults    bool // the next commits may fail
}

type sentEnvelope struct {
	id   string
	data []byte
}

type sentPayload struct {
	caller, key string
	image       int
	r           brokerapi.SignatureRequest
}

var (
	modelCallers = []string{"ci", "p1", "p2", "alice", "alice2", "bob", "slow", "approver/alice"}
	proposers    = []string{"admin", "alice", "alice2", "bob", "p1", "approver/bob"}
	passes       = []time.Duration{time.Second, 30 * time.Second, 6 * time.Minute, 16 * time.Minute, 21 * time.Minute,
		61 * time.Minute, 3 * time.Hour, 25 * time.Hour}
	firstCredentials = []ownCredential{{"alice", "key"}, {"alice", "ssh"}, {"bob", "key"}, {"carol", "key"},
		{"carol", "ssh"},
		{"dave", "key"}, {"dave", "ssh"}, {"erin", "key"}}
)

func newModel(t *testing.T, rt *rapid.T, replicas int) *model {
	t.Helper()
	dir, err := os.MkdirTemp("", "model")
	if err != nil {
		t.Fatal(err)
	}
	m := &model{rt: rt, book: newBook(), audit: NewAudit(), knobs: map[string]knobs{},
		signers: map[string]func([]byte) []byte{}}
	m.fixture = &fixture{t: t, dir: dir, unpublished: 1000, config: `{}`, snapshots: 40, log: generate(t),
		clock: &testClock{wall: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), boot: time.Hour},
		keys:  &testKeys{private: generate(t)}}
	m.keys.before = func() error {
		if m.hook == nil {
			return nil
		}
		return m.hook()
	}
	if replicas > 1 {
		m.others = &replicated{count: replicas}
	}
	m.book.fail = func(promise, format string, args ...any) {
		rt.Helper()
		rt.Fatalf("%s\n%s", promise, fmt.Sprintf(format, args...))
	}
	var k knobs
	for n := range choices {
		*k.field(n) = rapid.IntRange(0, choices[n]-1).Draw(rt, "knob")
	}
	m.policy = m.write(k).text
	var people []FirstApprover
	made := make([]func([]byte) []byte, len(firstCredentials))
	for i, own := range firstCredentials {
		c, sign := m.credential(own.kind)
		made[i] = sign
		people = append(people, FirstApprover{Name: own.person, Credential: c})
	}
	m.begin(people)
	for i, own := range firstCredentials {
		m.own(own.person, people[i].Credential, made[i])
	}
	for _, name := range slices.Concat(modelCallers, proposers) {
		m.book.callers[m.callerOf(m.callerNamed(name))] = name
	}
	for _, name := range modelPeople {
		m.book.persons[m.personID(name)] = name
	}
	m.book.first = int64(1 + len(people))
	m.catchUp()
	return m
}

// write returns the rule book of knobs, which the book knows from then on.
func (m *model) write(k knobs) *ruleBook {
	rules := k.book()
	m.book.books[hashOf([]byte(rules.text))] = rules
	m.knobs[hashOf([]byte(rules.text))] = k
	return rules
}

// credential makes a credential, and a function that signs envelopes with it.
func (m *model) credential(kind string) (*approval.Credential, func([]byte) []byte) {
	if kind == "key" {
		private := generate(m.t)
		return keyCredential(m.t, private), func(document []byte) []byte {
			e, err := approval.SignKey(document, "", private)
			if err != nil {
				m.t.Fatal(err)
			}
			return e.Signature
		}
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		m.t.Fatal(err)
	}
	return &approval.Credential{Kind: approval.SSH, Public: signer.PublicKey().Marshal()}, func(document []byte) []byte {
		s, err := sshsig.Sign(bytes.NewReader(document), signer, sshsig.HashSHA512, "approval@notation-hsm")
		if err != nil {
			m.t.Fatal(err)
		}
		return sshsig.Armor(s)
	}
}

// own notes that a person has a credential, which need not be enrolled.
func (m *model) own(person string, c *approval.Credential, sign func([]byte) []byte) {
	public := m.last.pseudonym("public", string(c.Public))
	m.book.publics[public] = ownCredential{person, string(c.Kind)}
	m.signers[public] = sign
}

// callerNamed returns a caller, by a name of the model.
func (m *model) callerNamed(name string) identity.Caller {
	if subject := subjectOf(name); subject != name {
		return identity.Approver(subject)
	}
	c := caller(name)
	if team := teamOf(name); team != "" {
		c.Claims["team"] = team
	}
	return c
}

// begin starts the broker, for the first time or again.
func (m *model) begin(people []FirstApprover) {
	s, err := sqlite.Open(m.t.Context(), m.database())
	if err != nil {
		m.t.Fatal(err)
	}
	m.store = &faulty{Store: s}
	m.fixture.store = m.store
	if people != nil {
		m.options = m.fixture.options(m.store)
		m.options.First = people
		m.options.Log.MaxUnpublished = 10_000 * time.Hour // time passes faster than checkpoints are signed
	}
	m.options.Store = m.store
	if m.others != nil {
		m.beginReplicas(s)
		m.last = m.Broker
		return
	}
	if m.Broker, err = Open(m.t.Context(), m.options); err != nil {
		s.Close()
		m.book.fail(promiseRestarted, "%v", err)
	}
	m.last = m.Broker
}

// end closes what there is.
func (m *model) end() {
	m.noLog.Store(true)
	m.ended()
	m.stop()
	if err := os.RemoveAll(m.dir); err != nil {
		m.t.Error(err)
	}
}

// catchUp reads the new entries of the log.
func (m *model) catchUp() {
	m.rt.Helper()
	size, err := m.store.Size(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	err = m.store.Entries(m.t.Context(), int64(len(m.book.entries)), size, func(index int64, data []byte) error {
		m.book.read(data)
		if m.book.forged[index] {
			m.audit.next++ // an auditor would say that nobody logs such an entry
		} else if err := m.audit.Entry(index, data); err != nil {
			m.book.fail(promiseLogged, "%v", err)
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	if uses := m.keys.uses.Load(); uses > m.book.intents {
		m.book.fail(promiseLogged, "the module was used %d times, and the log has %d intents", uses, m.book.intents)
	}
}

// settled is called between steps: what a checkpoint covers now is in force.
func (m *model) settled() {
	m.catchUp()
	if m.others != nil {
		_ = m.look(m.t.Context(), func(*decision) {}) // it may not know of the checkpoint
	}
	covered := max(m.Published(), m.book.sure)
	if err := m.look(m.t.Context(), func(*decision) {}); err == nil {
		m.book.sure = covered
	}
}

// context returns a context that does not wait for a checkpoint that does not come.
func (m *model) context() (context.Context, context.CancelFunc) {
	if m.noLog.Load() {
		return context.WithTimeout(m.t.Context(), 30*time.Millisecond)
	}
	return context.WithTimeout(m.t.Context(), 20*time.Second)
}

// healthy reports whether nothing hinders the broker.
func (m *model) healthy() bool { return !m.noLog.Load() && m.jumped == 0 && !m.faults && m.hook == nil }

// check fails for an internal error.
func (m *model) check(err error) {
	m.rt.Helper()
	if err != nil && m.healthy() && failure.From(err).Kind == failure.Internal {
		m.rt.Fatalf("an internal failure: %v", err)
	}
}

// right returns the time that the wall clock would have without jumps.
func (m *model) right() time.Time { return m.clock.now().Add(-m.jumped) }

func pick[T any](rt *rapid.T, from []T) T { return rapid.SampledFrom(from).Draw(rt, "of") }

// chance returns true once in n times.
func chance(rt *rapid.T, n int) bool { return rapid.IntRange(0, n-1).Draw(rt, "chance") == n-1 }

// actions returns what can happen.
func (m *model) actions() map[string]func(*rapid.T) {
	return m.anywhere(map[string]func(*rapid.T){
		"":     func(*rapid.T) { m.settled() },
		"sign": m.sign, "sign2": m.sign, "sign3": m.sign,
		"again": m.again, "create": m.create,
		"approve": m.approve, "approve2": m.approve, "approve3": m.approve, "approve4": m.approve, "approve5": m.approve,
		"withdraw": func(rt *rapid.T) { m.decision(rt, approval.Withdraw) },
		"reject":   func(rt *rapid.T) { m.decision(rt, approval.Reject) },
		"replay":   m.replay, "cancel": m.cancel, "policy": m.propose, "block": m.block, "enrol": m.enrol, "remove": m.remove,
		"pass": m.pass, "jump": m.jump, "ripen": m.ripenNow, "restart": m.restart, "crash": m.crash, "fault": m.fault,
		"unsigned": m.unsigned, "module": m.module,
	})
}

// some does one thing that changes something.
func (m *model) some(rt *rapid.T) {
	pick(rt, []func(*rapid.T){m.sign, m.sign, m.approve, m.approve, m.approve, m.create, m.propose, m.enrol, m.remove,
		m.block, m.cancel, func(rt *rapid.T) { m.decision(rt, approval.Withdraw) }})(rt)
}

func (m *model) sign(rt *rapid.T) {
	m.clock.pass(time.Second, 0)
	p := sentPayload{caller: pick(rt, modelCallers), key: pick(rt, []string{"release", "release", "nightly"}),
		image: rapid.IntRange(0, 5).Draw(rt, "image")}
	signed := m.open(func(r *worldRequest) bool { return r.windows > 0 })
	waiting := m.open(func(r *worldRequest) bool { return r.what == "" && len(r.votes) > 0 })
	if len(waiting) > 0 && !chance(rt, 4) {
		signed = waiting
	}
	if len(signed) > 0 && !chance(rt, 3) {
		r := pick(rt, signed)
		n, err := strconv.ParseInt(r.digest[len(r.digest)-1:], 16, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		p.caller, p.key, p.image = r.caller, r.key, int(n)
	}
	p.r = imageAt(p.image, m.right())
	m.payloads = append(m.payloads, p)
	m.signs(p)
}

// again asks for a signature of the same bytes.
func (m *model) again(rt *rapid.T) {
	if len(m.payloads) == 0 {
		rt.Skip()
	}
	m.signs(pick(rt, m.payloads[max(0, len(m.payloads)-4):]))
}

func (m *model) signs(p sentPayload) {
	digest := fmt.Sprintf("sha256:%064x", p.image)
	at := m.right()
	must := m.healthy() && m.book.must(p.caller, p.key, digest, at) && p.r.Payload != nil && m.fresh(p)
	ctx, cancel := m.context()
	defer cancel()
	o, err := m.Sign(ctx, m.callerNamed(p.caller), p.key, p.r)
	m.check(err)
	m.catchUp()
	if err != nil || o.Signature == nil {
		if must {
			m.book.fail(promiseKept, "%s may sign %s with %s, and the broker does not: %+v, %v", p.caller, digest, p.key, o,
				err)
		}
		return
	}
	if must {
		m.book.counts["must"]++
	}
	s := o.Signature
	if !brokerapi.Verify(m.keys.private.Public(), p.r.Payload, s.Signature, crypto.SHA256) {
		m.rt.Fatal("the signature does not verify")
	}
	e := m.book.signed[hashOf(s.Signature)]
	switch r := m.book.world.requests[s.Request]; {
	case e == nil || r == nil || e.Request != s.Request:
		m.book.fail(promiseLogged, "a signature of request %s was released that the log does not have", s.Request)
	case r.digest != digest || r.key != p.key || !mayShare(r, p.caller):
		m.book.fail(promiseAllowed, "%s got a signature of %s of request %+v", p.caller, digest, r)
	case m.book.world.blocked[p.key]:
		m.book.fail(promiseBlocked, "a signature of request %s was released", s.Request)
	}
}

// fresh reports whether a payload has its time from now.
func (m *model) fresh(p sentPayload) bool {
	return bytes.Equal(p.r.Payload, imageAt(p.image, m.right()).Payload)
}

func (m *model) create(rt *rapid.T) {
	m.clock.pass(time.Second, 0)
	n := newTarget(byte(rapid.IntRange(0, 5).Draw(rt, "image")))
	n.Key = pick(rt, []string{"release", "release", "nightly"})
	if chance(rt, 4) {
		n.Rule, n.Reason = "emergency", "it burns"
	}
	ctx, cancel := m.context()
	defer cancel()
	_, err := m.Create(ctx, m.callerNamed(pick(rt, modelCallers)), n)
	m.check(err)
}

// open returns the requests that are open, as the book has them, oldest first.
func (m *model) open(is func(*worldRequest) bool) (all []*worldRequest) {
	for _, r := range m.book.world.requests {
		if r.ended == "" && !r.direct && is(r) {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *worldRequest) int { return int(a.index - b.index) })
	return all
}

func (m *model) approve(rt *rapid.T) { m.decision(rt, approval.Approve) }

// decision has a person decide about a request: mostly one who is asked.
func (m *model) decision(rt *rapid.T, what approval.Decision) {
	all := m.open(func(r *worldRequest) bool {
		return r.statement != "" && (what != approval.Withdraw || len(r.votes) > 0)
	})
	if len(all) == 0 || what == approval.Reject && !chance(rt, 3) {
		rt.Skip()
	}
	r := all[len(all)-1-min(rapid.IntRange(0, 3).Draw(rt, "newest"), len(all)-1)]
	person := pick(rt, modelPeople)
	if what == approval.Withdraw {
		person = pick(rt, r.votes).person
	} else if rule := pick(rt, pick(rt, r.needs).rules); len(rule.groups) > 0 && !chance(rt, 5) {
		person = pick(rt, r.needs[0].book.groups[pick(rt, rule.groups).group])
	}
	var own []string
	for id, c := range m.book.world.credentials {
		if c.person == person && (!c.removed || chance(rt, 4)) {
			own = append(own, id)
		}
	}
	if len(own) == 0 {
		rt.Skip()
	}
	slices.SortFunc(own, func(a, b string) int {
		return int(m.book.world.credentials[a].index - m.book.world.credentials[b].index)
	})
	credential := pick(rt, own)
	a := &approval.Approval{Approver: m.personID(person), Decision: what, Statement: r.statement, Time: m.right()}
	_, _ = rand.Read(a.Random[:])
	document, err := a.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	e := approval.Envelope{Approval: document, Credential: credential,
		Signature: m.signers[m.book.world.credentials[credential].public](document)}
	data, err := e.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	m.book.given[approval.Hash(data)] = &given{person: person, credential: credential, statement: r.statement,
		decision: string(what), used: new(bool)}
	m.envelopes = append(m.envelopes, sentEnvelope{r.id, data})
	m.send(r.id, person, data)
}

// send sends an envelope for a request.
func (m *model) send(id, person string, data []byte) {
	ctx, cancel := m.context()
	defer cancel()
	answer, err := m.Approve(ctx, identity.Approver(person), id, data)
	m.check(err)
	m.catchUp()
	if err != nil {
		return
	}
	if m.book.kept[approval.Hash(data)] = true; !*m.book.given[approval.Hash(data)].used {
		m.book.fail(promiseKept, "the approval of %s was acknowledged, and the log does not have it", person)
	}
	m.acknowledged(answer)
}

// acknowledged notes that a change was told to be made.
func (m *model) acknowledged(r *brokerapi.Request) {
	if r == nil || r.What == "" || r.State != brokerapi.Signed {
		return
	}
	what := map[string]string{ChangePolicy: "policy/v1", ChangeEnrol: "enrolled/v1", ChangeRemove: "removed/v1",
		ChangeBlock: "blocked/v1", ChangeUnblock: "unblocked/v1"}[r.What]
	m.book.made[r.ID] = what
	if !m.book.has(what, r.ID) {
		m.book.fail(promiseKept, "the %s of request %s was acknowledged, and the log does not have it", what, r.ID)
	}
}

// replay sends an envelope again: for its request or another one, as it was or with the other signature of ECDSA.
func (m *model) replay(rt *rapid.T) {
	if len(m.envelopes) == 0 {
		rt.Skip()
	}
	old := pick(rt, m.envelopes)
	id, data := old.id, old.data
	if all := m.open(func(*worldRequest) bool { return true }); len(all) > 0 && chance(rt, 2) {
		id = pick(rt, all).id
	}
	if chance(rt, 2) {
		e, err := approval.DecodeEnvelope(data)
		if err != nil {
			m.t.Fatal(err)
		}
		var pair struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(e.Signature, &pair); err == nil {
			pair.S.Sub(elliptic.P256().Params().N, pair.S)
			if e.Signature, err = asn1.Marshal(pair); err != nil {
				m.t.Fatal(err)
			}
			again, err := e.Encode()
			if err != nil {
				m.t.Fatal(err)
			}
			m.book.given[approval.Hash(again)] = m.book.given[approval.Hash(data)]
			data = again
		}
	}
	m.send(id, pick(rt, modelPeople), data)
}

func (m *model) cancel(rt *rapid.T) {
	all := m.open(func(*worldRequest) bool { return true })
	if len(all) == 0 {
		rt.Skip()
	}
	r := pick(rt, all)
	name := r.caller
	if chance(rt, 3) {
		name = pick(rt, modelCallers)
	}
	ctx, cancel := m.context()
	defer cancel()
	_, err := m.Cancel(ctx, m.callerNamed(name), r.id)
	m.check(err)
	if m.catchUp(); err == nil && m.book.world.requests[r.id].ended == "" {
		m.book.fail(promiseEnded, "it was told to be cancelled: %s", r.id)
	}
}

// propose asks for another policy: one knob of the one in force is turned.
func (m *model) propose(rt *rapid.T) {
	all := m.book.world.policies
	k := m.knobs[all[len(all)-1].hash]
	n := rapid.IntRange(0, len(choices)-1).Draw(rt, "knob")
	*k.field(n) = (*k.field(n) + 1) % choices[n]
	if chance(rt, 3) {
		k.Nightly = (k.Nightly + 1) % 3
	}
	m.change(rt, Change{What: ChangePolicy, Policy: []byte(m.write(k).text)})
}

func (m *model) change(rt *rapid.T, c Change) {
	m.clock.pass(time.Second, 0)
	ctx, cancel := m.context()
	defer cancel()
	r, err := m.Propose(ctx, m.callerNamed(pick(rt, proposers)), c)
	m.check(err)
	if m.catchUp(); err == nil {
		m.acknowledged(r)
	}
}

func (m *model) block(rt *rapid.T) {
	what, key := ChangeBlock, pick(rt, []string{"release", "nightly"})
	if m.book.world.blocked[key] {
		what = ChangeUnblock
	} else if !chance(rt, 3) {
		rt.Skip()
	}
	m.change(rt, Change{What: what, Key: key})
}

func (m *model) enrol(rt *rapid.T) {
	person := pick(rt, modelPeople)
	c, sign := m.credential(pick(rt, []string{"key", "ssh"}))
	m.own(person, c, sign)
	ctx, cancel := m.context()
	defer cancel()
	r, err := m.Enrol(ctx, m.callerNamed(pick(rt, proposers)), person, *c, "")
	m.check(err)
	if m.catchUp(); err == nil {
		m.acknowledged(r)
	}
}

func (m *model) remove(rt *rapid.T) {
	var all []string
	for id := range m.book.world.credentials {
		all = append(all, id)
	}
	slices.SortFunc(all, func(a, b string) int {
		return int(m.book.world.credentials[a].index - m.book.world.credentials[b].index)
	})
	m.change(rt, Change{What: ChangeRemove, Credential: pick(rt, all)})
}

// publishes has a checkpoint cover the log.
func (m *model) publishes() {
	m.publishAll()
	m.settled()
}

func (m *model) pass(rt *rapid.T) {
	if !m.noLog.Load() {
		m.publishes()
	}
	m.clock.pass(pick(rt, passes), 0)
}

// jump has the wall clock be wrong, or right again.
func (m *model) jump(rt *rapid.T) {
	if m.jumped == 0 && chance(rt, 2) {
		m.jumped = pick(rt, []time.Duration{-3 * time.Hour, -time.Minute, 10 * time.Minute, 2 * time.Hour, 48 * time.Hour})
		m.clock.pass(0, m.jumped)
		return
	}
	m.clock.pass(0, -m.jumped)
	m.jumped = 0
}

// ripenNow does what the broker does once in a minute.
func (m *model) ripenNow(*rapid.T) {
	m.expire()
	m.mature(m.t.Context())
}

// stopped has the clock be right: a broker that starts believes it.
func (m *model) stopped() {
	m.clock.pass(0, -m.jumped)
	m.jumped = 0
}

func (m *model) restart(*rapid.T) {
	m.stopped()
	m.ended()
	m.stop()
	m.begin(nil)
	m.book.counts["restart"]++
}

// crash ends the broker without a last checkpoint. Somebody may edit the database before it starts again.
func (m *model) crash(rt *rapid.T) {
	m.stopped()
	m.noLog.Store(true)
	m.ended()
	m.killed()
	if chance(rt, 2) && m.others == nil {
		m.forge(rt)
	}
	m.begin(nil)
	m.book.counts["crash"]++
}

// forge appends entries that permit something to the log of a broker that does not run.
func (m *model) forge(rt *rapid.T) {
	loose := []byte(m.write(knobs{}).text)
	events := []Event{{Type: policySet, Policy: hashOf(loose)}, {Type: unblocked, Key: "release"}}
	c, sign := m.credential("key")
	m.own("alice", c, sign)
	c.Approver, c.Salt = m.last.personID("alice"), randomHex()
	document, err := c.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	events = append(events, Event{Type: enrolled, Approver: c.Approver, Credential: approval.Hash(document), Kind: "key",
		Public: m.last.pseudonym("public", string(c.Public))})
	if all := m.open(func(r *worldRequest) bool { return r.statement != "" }); len(all) > 0 && len(m.envelopes) > 0 {
		r, old := pick(rt, all), pick(rt, m.envelopes)
		g := m.book.given[approval.Hash(old.data)]
		for _, person := range modelPeople {
			events = append(events, Event{Type: approved, Request: r.id, Key: r.key, Approver: m.last.personID(person),
				Credential: g.credential, Approval: approval.Hash(old.data), Statement: r.statement})
		}
	}
	s, err := sqlite.Open(m.t.Context(), m.database())
	if err != nil {
		m.t.Fatal(err)
	}
	size, err := s.Size(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	s.Close()
	for i := range events {
		m.book.forged[size+int64(i)] = true
	}
	m.append(&store.Batch{Documents: [][]byte{loose, document}}, events...)
}

// fault has the next transaction fail, so that nobody knows whether it is durable.
func (m *model) fault(rt *rapid.T) {
	how := pick(rt, []func(commit func() error) error{
		func(func() error) error { return failure.New(failure.Unavailable, "the disk is full") },
		func(commit func() error) error { return errors.Join(store.ErrUnknown, commit()) },
		func(func() error) error { return store.ErrUnknown },
		func(commit func() error) error {
			m.store.down.Store(true)
			return errors.Join(store.ErrUnknown, commit())
		},
	})
	m.faults = true
	m.store.next.Store(&how)
	defer func() {
		m.store.next.Store(nil)
		m.store.down.Store(false)
		m.faults = false
	}()
	m.some(rt)
	m.book.counts["fault"]++
}

// unsigned has nothing cover what is done, before the broker is killed or the log's key comes back.
func (m *model) unsigned(rt *rapid.T) {
	m.publishes()
	m.noLog.Store(true)
	defer m.noLog.Store(false) // also when there is nothing to do
	for range rapid.IntRange(1, 3).Draw(rt, "actions") {
		m.some(rt)
		m.settled()
	}
	if !chance(rt, 3) {
		m.crash(rt)
	}
}

// module has something happen while the module signs.
func (m *model) module(rt *rapid.T) {
	crash := false
	defer func() { m.hook = nil }()
	m.hook = pick(rt, []func() error{
		func() error { return failure.New(failure.Denied, "the module refuses") },
		func() error { return failure.New(failure.Unavailable, "the module is gone") },
		func() error {
			for _, key := range []string{"release", "nightly"} {
				_, _ = m.Propose(m.t.Context(), caller("admin"), Change{What: ChangeBlock, Key: key})
			}
			return nil
		},
		func() error {
			m.store.down.Store(true)
			crash = true
			return nil
		},
	})
	m.sign(rt)
	m.hook = nil
	if crash {
		m.store.down.Store(false)
		m.crash(rt)
	}
	m.book.counts["module"]++
}
