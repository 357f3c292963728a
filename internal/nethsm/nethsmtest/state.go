package nethsmtest

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"maps"
	"sync"
	"testing"
	"time"
)

// State is the state that /health/state reports.
type State string

// The states of the description's SystemState.
const (
	Unprovisioned State = "Unprovisioned"
	Locked        State = "Locked"
	Operational   State = "Operational"
	Failed        State = "Failed"
)

// state is shared by the instances of a cluster.
type state struct {
	mu               sync.Mutex
	provisioned      bool
	unlockPassphrase digest
	backupPassphrase *digest // nil until it is set
	users            map[string]*user
	namespaces       map[string]bool
	keys             map[keyName]*key
	members          []*member
	operations       map[string]int // key operations since the start, by kind, for /metrics
	rsaKeys          []*rsa.PrivateKey
}

// device is the state of one instance.
type device struct {
	locked         bool
	failed         bool
	tls            tls.Certificate
	clusterCA      []byte // PEM; nil until it is set
	unattendedBoot bool
	network        network
	logging        logging
	clock          time.Duration        // what PUT /config/time added to this machine's time
	failures       map[string]time.Time // last wrong passphrase by user, for the rate limit
}

func newState() *state {
	s := &state{}
	s.reset()
	return s
}

// reset does a factory reset.
func (s *state) reset() {
	s.provisioned = false
	s.backupPassphrase = nil
	s.users = map[string]*user{}
	s.namespaces = map[string]bool{}
	s.keys = map[keyName]*key{}
	s.operations = map[string]int{}
}

func newDevice(t testing.TB) device {
	t.Helper()
	return device{
		tls:      newTLS(t),
		network:  network{IPAddress: "192.168.1.1", Netmask: "255.255.255.0", Gateway: "0.0.0.0"},
		logging:  logging{IPAddress: "0.0.0.0", Port: 514, LogLevel: "info"},
		failures: map[string]time.Time{},
	}
}

// current returns the instance's state. The caller holds state.mu.
func (s *Server) current() State {
	switch {
	case s.failed:
		return Failed
	case !s.state.provisioned:
		return Unprovisioned
	case s.locked:
		return Locked
	}
	return Operational
}

// State returns the state of this instance.
func (s *Server) State() State {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	return s.current()
}

// SetState brings this instance into a state without a request. Unprovisioned resets the whole cluster; Locked,
// Operational and Failed are of this instance only, and the first two need a provisioned one.
func (s *Server) SetState(to State) {
	s.t.Helper()
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	s.locked, s.failed = to == Locked, to == Failed
	if to == Unprovisioned {
		s.state.reset()
	}
	if s.current() != to {
		s.t.Fatalf("a NetHSM that is %s cannot be made %s", s.current(), to)
	}
}

// digest is a stored passphrase. A real NetHSM derives it slowly; tests are to be fast.
type digest [sha256.Size]byte

func hashed(passphrase string) digest { return sha256.Sum256([]byte(passphrase)) }

func (d digest) is(passphrase string) bool {
	other := hashed(passphrase)
	return subtle.ConstantTimeCompare(d[:], other[:]) == 1
}

// boot starts the instance again, locked unless unattended boot is on.
func (s *Server) boot() {
	s.failed = false
	s.locked = s.state.provisioned && !s.unattendedBoot
}

// now is the instance's clock.
func (s *Server) now() time.Time { return time.Now().Add(s.clock).UTC() }

func (s *state) count(kind string, k *key) {
	s.operations[kind]++
	if k != nil {
		k.operations++
	}
}

func (s *state) counts() map[string]int { return maps.Clone(s.operations) }
