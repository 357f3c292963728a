package broker

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/fair"
)

const (
	// tokenSessions is how many sessions a process has on a token at most.
	tokenSessions = 16
	// maxPlaces is the largest number of signatures of the same modules that are decided and made at once.
	maxPlaces = 64
)

// queueLimits leave room for other requests beside maxPlaces. A signature waits less long than clients do by default.
var queueLimits = fair.Limits{Waiting: 160, OfCaller: 128, Wait: 10 * time.Second}

// queue has signatures wait for their modules.
type queue struct {
	*fair.Queue

	mu      sync.Mutex
	modules map[string]*modules // by fair.Use.Module
}

// modules are tokens whose keys are in the same ones: how long decisions and signatures take, on average.
type modules struct{ decided, signed time.Duration }

// place is that of a signature that is decided and made.
type place struct {
	queue *queue
	of    *modules
	since time.Time // when the decision, or the signature, began
	leave func()    // gives the place back; may be called again
}

func newQueue() *queue {
	return &queue{Queue: fair.New(queueLimits), modules: map[string]*modules{}}
}

// enter waits until a signature with the key of some URIs has its turn.
func (q *queue) enter(ctx context.Context, uris []string, key, caller string) (*place, error) {
	tokens := tokensOf(uris)
	u := fair.Use{Module: strings.Join(tokens, "\n"), Key: key, Caller: caller}
	q.mu.Lock()
	m := q.modules[u.Module]
	if m == nil {
		m = &modules{}
		q.modules[u.Module] = m
	}
	u.Places = m.places(len(tokens))
	q.mu.Unlock()
	leave, err := q.Enter(ctx, u)
	if err != nil {
		return nil, err
	}
	return &place{q, m, time.Now(), leave}, nil
}

// places returns how many signatures are decided and made at once on some tokens: as many as keep all sessions busy
// while intents become durable, and no more, so that no intent waits for a session.
func (m *modules) places(tokens int) int {
	sessions := float64(tokens * tokenSessions)
	if m.signed > 0 { // signatures begin at the rate sessions/signed, and each is decided before (Little's law)
		sessions += sessions * float64(m.decided) / float64(m.signed)
	}
	return int(min(sessions, maxPlaces))
}

// decided takes note that the intent of the signature is durable.
func (p *place) decided() { p.took(&p.of.decided) }

// signed takes note that the module has signed, or failed, and gives the place back.
func (p *place) signed() {
	p.took(&p.of.signed)
	p.leave()
}

// took adds the time since the last step to an average of some ten of them.
func (p *place) took(average *time.Duration) {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	now := time.Now()
	if took := max(now.Sub(p.since), time.Microsecond); *average == 0 {
		*average = took
	} else {
		*average += (took - *average) / 16
	}
	p.since = now
}

// place waits until a signature has its turn, before its intent is decided. It fails with Throttled when too much is to
// be signed.
func (b *Broker) place(ctx context.Context, w *wish) (*place, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(b.running, func() { cancel(errStopping()) })()
	waiting, throttled := b.metrics.waiting.WithLabelValues(w.Key), b.metrics.throttled.WithLabelValues(w.Key)
	waiting.Inc()
	defer waiting.Dec()
	p, err := b.queue.enter(ctx, w.uris, w.Key, b.callerOf(w.caller))
	if failure.Is(err, failure.Throttled) {
		throttled.Inc()
	}
	return p, err
}

// tokensOf returns the tokens that have the keys of some URIs. All NetHSMs count as one.
func tokensOf(uris []string) (tokens []string) {
	for _, text := range uris {
		if u, err := config.ParseURI(text); err == nil {
			u.Object, u.ID = "", nil
			text = u.String()
		}
		tokens = append(tokens, text)
	}
	slices.Sort(tokens)
	return slices.Compact(tokens)
}
