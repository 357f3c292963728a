package worker

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// limits are the times and counts of the life of processes.
type limits struct {
	margin  time.Duration // how much later than its timeout the process is asked whether it still serves
	start   time.Duration // for a process to start to serve
	pause   time.Duration // before the third start in a row; doubled before each that follows
	retries int           // starts in a row before no more is made for a while
	rest    time.Duration // that while
	settled int           // answers after which a process counts as one that works
}

var defaultLimits = limits{
	margin: 5 * time.Second, start: 30 * time.Second, pause: 100 * time.Millisecond, retries: 6, rest: 30 * time.Second,
	settled: 10,
}

// A module is a PKCS#11 library that is used in a process of its own.
type module struct {
	backend *Backend
	path    string
	env     map[string]string

	current atomic.Pointer[process]

	mu       sync.Mutex
	starting *attempt
	running  map[*process]bool
	failures int       // processes in a row that ended before they settled
	next     time.Time // when the next may be started
	closed   bool
}

// attempt is a start that callers wait for.
type attempt struct {
	done    chan struct{}
	process *process
	err     error
}

var errClosed = errors.New("the keystore was closed")

// process returns the running process, and starts one if there is none.
func (m *module) process(ctx context.Context) (*process, error) {
	if p := m.current.Load(); p != nil && p.alive.Load() {
		return p, nil
	}
	m.mu.Lock()
	if p := m.current.Load(); p != nil && p.alive.Load() {
		m.mu.Unlock()
		return p, nil
	}
	if err := m.mayStart(); err != nil {
		m.mu.Unlock()
		return nil, err
	}
	if m.starting == nil {
		m.starting = &attempt{done: make(chan struct{})}
		go m.attempt(m.starting, time.Until(m.next))
	}
	a := m.starting
	m.mu.Unlock()
	select {
	case <-a.done:
		return a.process, a.err
	case <-ctx.Done():
		return nil, interrupted(ctx, opOpenStore)
	}
}

// mayStart fails when the keystore is closed, or when too many processes in a row have ended. The caller holds the
// lock.
func (m *module) mayStart() error {
	if m.closed {
		return failure.New(failure.Unavailable, "cannot use the PKCS#11 module %s: %w", m.path, errClosed)
	}
	if m.failures >= m.backend.limits.retries && time.Now().Before(m.next) {
		return failure.New(failure.Unavailable, "the process of the PKCS#11 module %s ended %d times in a row", m.path,
			m.failures).
			WithHint("check that the HSM can be reached and update the module; the next try is made in " +
				m.backend.limits.rest.String() + " at most")
	}
	return nil
}

// attempt starts a process after a pause.
func (m *module) attempt(a *attempt, pause time.Duration) {
	select {
	case <-time.After(pause):
	case <-m.backend.closing:
	}
	a.process, a.err = m.begin()
	m.mu.Lock()
	m.starting = nil
	m.mu.Unlock()
	close(a.done)
}

// begin starts a process and waits until it serves.
func (m *module) begin() (*process, error) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, failure.New(failure.Unavailable, "cannot use the PKCS#11 module %s: %w", m.path, errClosed)
	}
	p, err := m.start()
	if err != nil {
		m.failed()
		m.mu.Unlock()
		return nil, failure.New(failure.Unavailable, "cannot start a process for the PKCS#11 module %s: %w", m.path, err).
			WithHint("free memory and processes, and run it again")
	}
	m.running[p] = true
	m.mu.Unlock()
	timer := time.NewTimer(m.backend.limits.start)
	defer timer.Stop()
	select {
	case <-p.greeted:
		m.current.Store(p)
		return p, nil
	case <-p.gone:
	case <-timer.C:
		p.kill(errors.New("it did not start to serve"))
		<-p.gone
	}
	return nil, p.failure(opOpenStore)
}

// ended takes note of a process that has ended.
func (m *module) ended(p *process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.running, p)
	m.current.CompareAndSwap(p, nil)
	if p.closing() {
		return
	}
	if p.settled() {
		m.failures = 0
	}
	m.failed()
}

// failed sets when the next process may be started: the first at once, the others after pauses. The caller holds the
// lock.
func (m *module) failed() {
	l := m.backend.limits
	m.failures++
	switch {
	case m.failures >= l.retries:
		m.next = time.Now().Add(l.rest)
	case m.failures > 1:
		m.next = time.Now().Add(l.pause << (m.failures - 2))
	default:
		m.next = time.Time{}
	}
}

// settled reports whether the process has answered calls enough to count as one that works.
func (p *process) settled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answers >= p.module.backend.limits.settled
}

// end ends the running process, in order.
func (m *module) end() {
	m.mu.Lock()
	running := slices.Collect(maps.Keys(m.running))
	m.mu.Unlock()
	for _, p := range running {
		p.close()
	}
}

// close ends the process, and lets none be started.
func (m *module) close() {
	m.mu.Lock()
	m.closed = true
	starting := m.starting
	m.mu.Unlock()
	m.end()
	if starting != nil {
		<-starting.done
	}
}

// environment returns the environment of the process: that of this one, without what may hold a PIN, and what the
// settings have for the module.
func (m *module) environment() []string {
	hidden := m.backend.pinVariables()
	var all []string
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		own := strings.HasPrefix(name, config.EnvironmentName("")) && name != config.EnvironmentName("log")
		if _, replaced := m.env[name]; !own && !hidden[name] && !replaced {
			all = append(all, variable)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.env)) {
		all = append(all, name+"="+m.env[name])
	}
	return all
}
