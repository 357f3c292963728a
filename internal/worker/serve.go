package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// closeLimit is how long a process may take to close its sessions and finalise the module.
const closeLimit = 4 * time.Second

// A server answers the calls of the parent with a backend of its own.
type server struct {
	backend keystore.Backend
	out     *sender
	pins    io.Reader // each packet is a PIN
	lanes   []*servedLane

	mu     sync.Mutex
	calls  map[uint64]*served
	stores map[uint64]keystore.Store
	keys   map[uint64]heldKey
	last   uint64 // number given to a store or key

	running sync.WaitGroup
	work    chan job // to goroutines that wait for one, whose stacks have grown already
}

// job is a call for a goroutine.
type job struct {
	call  *served
	ctx   context.Context
	frame frame
}

// idleLimit is how long a goroutine waits for the next call.
const idleLimit = 10 * time.Second

// heldKey is a key that the parent knows by its number, with the number of its store.
type heldKey struct {
	keystore.Key
	store uint64
}

// answerer sends the answer of a call: the shared connection or a lane.
type answerer interface {
	send(number uint64, k kind, parts ...[]byte) error
}

// served is a call in progress.
type served struct {
	server *server
	out    answerer
	number uint64
	ctx    context.Context // ends when nobody waits for the answer
	cancel context.CancelFunc
	done   sync.Once        // it is answered once
	pin    chan receivedPIN // the answer to wantPIN
	token  func() string    // returns the URI of the token whose PIN it asks for
	asked  bool             // it got a PIN whose login has not ended
}

type receivedPIN struct {
	secret *pin.Secret
	err    error
}

// serve answers calls until the parent closes the connection, and then closes all stores and the backend.
func serve(shared *lane, others []*servedLane, pins io.Reader, backend keystore.Backend) error {
	s := &server{
		backend: backend, out: shared.out, pins: pins, lanes: others,
		calls: map[uint64]*served{}, stores: map[uint64]keystore.Store{}, keys: map[uint64]heldKey{},
		work: make(chan job),
	}
	if err := s.out.send(0, msgStarted, []byte(greeting)); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	err := s.read(ctx, shared.in)
	s.closeLanes()
	stop()
	s.close()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// read reads frames and starts a goroutine for each call.
func (s *server) read(ctx context.Context, in io.Reader) error {
	for {
		f, err := readFrame(in)
		if err != nil {
			return err
		}
		switch {
		case f.kind == opPing:
			err = s.out.send(f.call, msgAnswered)
		case f.kind == opCancel:
			s.mu.Lock()
			if c := s.calls[f.call]; c != nil {
				c.cancel()
			}
			s.mu.Unlock()
		case f.kind == opDropKey:
			s.mu.Lock()
			delete(s.keys, f.call)
			s.mu.Unlock()
		case f.kind == opGivePIN:
			s.receivePIN(f)
		case f.kind == opStartLane:
			if f.call >= uint64(len(s.lanes)) {
				return fmt.Errorf("%w: there is no lane %d", errFrame, f.call)
			}
			s.running.Go(func() { s.serveLane(ctx, s.lanes[f.call]) })
		case f.kind < operations:
			s.start(ctx, f)
		default:
			err = fmt.Errorf("%w: its kind is %d", errFrame, f.kind)
		}
		if err != nil {
			return err
		}
	}
}

// start runs a call in a goroutine.
func (s *server) start(ctx context.Context, f frame) {
	j := s.begin(ctx, f, s.out)
	select {
	case s.work <- j:
	default:
		s.running.Go(func() { s.runJobs(ctx, j) })
	}
}

// begin takes note of a call, which is answered to out.
func (s *server) begin(ctx context.Context, f frame, out answerer) job {
	c := &served{server: s, out: out, number: f.call, pin: make(chan receivedPIN, 1)}
	c.ctx, c.cancel = context.WithCancel(ctx)
	s.mu.Lock()
	s.calls[f.call] = c
	s.mu.Unlock()
	// A step that exceeds its limit is answered, though the goroutine goes on waiting for the module: the parent ends
	// the process then.
	return job{c, deadline.Watch(pin.WithAsker(c.ctx, c.askPIN), func(err error) { c.answer(nil, err) }), f}
}

// runJobs runs a call, and those that come while it waits.
func (s *server) runJobs(ctx context.Context, j job) {
	idle := time.NewTimer(idleLimit)
	defer idle.Stop()
	for {
		j.run()
		idle.Reset(idleLimit)
		select {
		case j = <-s.work:
		case <-idle.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (j job) run() {
	defer j.call.recover()
	j.call.answer(j.call.run(j.ctx, j.frame))
}

// recover answers a call that panics.
func (c *served) recover() {
	if cause := recover(); cause != nil {
		slog.Error("panic", "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
		c.answer(nil, failure.New(failure.Internal, "internal error: %v", cause).
			WithHint("set NOTATION_HSM_LOG=/path/to/log, run it again, and report it with the log"))
	}
}

// answer sends the result or the failure of the call, once.
func (c *served) answer(body []byte, err error) {
	c.done.Do(func() {
		s := c.server
		c.cancel()
		s.mu.Lock()
		delete(s.calls, c.number)
		select {
		case unused := <-c.pin:
			unused.secret.Clear()
		default:
		}
		s.mu.Unlock()
		kind := msgAnswered
		if err != nil {
			kind, body = msgFailed, encodeFailure(err)
		}
		err := c.out.send(c.number, kind, body)
		if errors.Is(err, errFrame) {
			_ = c.out.send(c.number, msgFailed, encodeFailure(
				failure.New(failure.Unsupported, "the answer of the token is too long: %d bytes", len(body)).
					WithHint("name one key")))
		}
	})
}

// askPIN asks the parent for the PIN of a token. A person is asked for it by that name.
func (c *served) askPIN(_ context.Context, name string) (*pin.Secret, error) {
	wanted := askedPIN{Name: name}
	if c.token != nil {
		wanted.Token = c.token()
	}
	body, _ := json.Marshal(wanted) // strings always marshal
	if err := c.server.out.send(c.number, msgWantPIN, body); err != nil {
		return nil, err
	}
	select {
	case received := <-c.pin:
		c.asked = received.err == nil
		return received.secret, received.err
	case <-c.ctx.Done():
		return nil, deadline.Interrupted("asking for the PIN")
	}
}

// receivePIN hands the PIN to the call that asked for it. A call that has ended does not get it.
func (s *server) receivePIN(f frame) {
	var received receivedPIN
	if len(f.body) > 0 {
		received.err = decodeFailure(f.body)
	} else {
		received.secret, received.err = pin.Receive(s.pins.Read)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.calls[f.call]; c != nil {
		select {
		case c.pin <- received:
			return
		default: // it has not asked
		}
	}
	received.secret.Clear()
}

// loginFirst logs in and tells the parent how a login with its PIN ended, which lets other calls log in. A cancelled
// call does not hide that the PIN was refused.
func (c *served) loginFirst(ctx context.Context, store keystore.Store) error {
	err := store.Login(context.WithoutCancel(ctx))
	if c.asked {
		c.asked = false
		var body []byte
		if err != nil {
			body = encodeFailure(err)
		}
		if sendErr := c.server.out.send(c.number, msgLoggedIn, body); sendErr != nil && err == nil {
			err = sendErr
		}
	}
	return err
}

// addStore numbers a store.
func (s *server) addStore(store keystore.Store) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.stores[s.last] = store
	return s.last
}

// addKey numbers a key of a store.
func (s *server) addKey(store uint64, k keystore.Key) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.keys[s.last] = heldKey{k, store}
	return s.last
}

// store returns the store of a number.
func (s *server) store(number uint64) (keystore.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if store := s.stores[number]; store != nil {
		return store, nil
	}
	return nil, errCall()
}

// key returns the key of a number.
func (s *server) key(number uint64) (heldKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, ok := s.keys[number]; ok {
		return k, nil
	}
	return heldKey{}, errCall()
}

// closeStore closes the store of a number and forgets its keys.
func (s *server) closeStore(number uint64) error {
	s.mu.Lock()
	store := s.stores[number]
	delete(s.stores, number)
	for n, k := range s.keys {
		if k.store == number {
			delete(s.keys, n)
		}
	}
	s.mu.Unlock()
	if store == nil {
		return nil
	}
	return store.Close()
}

// close waits for the calls, whose contexts have ended, and closes all stores and the backend, which finalises the
// module. It returns after closeLimit in any case.
func (s *server) close() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.running.Wait()
		for number := range s.stores {
			_ = s.closeStore(number)
		}
		if err := s.backend.Close(); err != nil {
			slog.Warn("closing the module", "error", err)
		}
	}()
	select {
	case <-closed:
	case <-time.After(closeLimit):
		slog.Error("the module was not finalised in time")
	}
}

// pinSocket reads packets of the socket that carries PINs.
type pinSocket int

// Read reads one packet. It does not wait: the parent sends the packet before the frame that announces it.
func (s pinSocket) Read(p []byte) (int, error) {
	n, _, err := unix.Recvfrom(int(s), p, unix.MSG_DONTWAIT)
	return max(n, 0), err
}
