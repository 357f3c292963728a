package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// maxPINs is how often one call may ask for a PIN: to log in, to log in again, and to use a key that wants the PIN for
// each use.
const maxPINs = 8

// Bounds of what a process says of its tokens, each of which takes memory until Forget.
const (
	maxTokenText = 4096 // bytes of a URI and of a name
	maxTokens    = 1024 // of a module
)

// pins keeps the PINs of all tokens, in locked memory, and hands them to the processes that log in.
type pins struct {
	prompt chan struct{} // is held by the one who asks a person
	guard  pin.Guard     // is asked before each login of a user; nil allows all

	mu      sync.Mutex
	tokens  map[string]*tokenPIN
	refused map[string]*tokenPIN // by what the settings call the token, whatever the process calls it
	closed  bool                 // no PIN is given any more
}

// tokenPIN is the PIN of a user of a token.
type tokenPIN struct {
	module   *module
	uri      string                 // as the process describes the token
	slot     chan struct{}          // is held by the one login in flight
	guarded  func(*failure.Error)   // tells the guard how that login ended; nil if the guard does not wait for it
	secrets  map[string]*pin.Secret // by source
	refusal  *failure.Error         // of a login; the PIN is not tried again
	accepted bool                   // a login has succeeded
	lost     int                    // logins since then that ended with the process, or never
}

func newPINs() *pins {
	return &pins{prompt: make(chan struct{}, 1), tokens: map[string]*tokenPIN{}, refused: map[string]*tokenPIN{}}
}

// forget clears all PINs, and what is known of refused ones. It returns the modules whose tokens refused one.
func (s *pins) forget() (refused map[*module]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	refused = map[*module]bool{}
	for _, t := range s.tokens {
		t.clear()
		if t.refusal != nil {
			refused[t.module] = true
		}
	}
	s.tokens, s.refused = map[string]*tokenPIN{}, map[string]*tokenPIN{}
	return refused
}

// close clears all PINs, and gives none any more.
func (s *pins) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, t := range s.tokens {
		t.clear()
	}
}

func (t *tokenPIN) clear() {
	for _, secret := range t.secrets {
		secret.Clear()
	}
	t.secrets = map[string]*pin.Secret{}
}

// give reads the PIN that a call asks for, if it has not been read, and sends it to the process, in a goroutine. It
// fails for a process that asks for what no module needs.
func (s *pins) give(p *process, c *call, f frame) error {
	var wanted askedPIN
	if err := json.Unmarshal(f.body, &wanted); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	if len(wanted.Token) > maxTokenText || len(wanted.Name) > maxTokenText {
		return fmt.Errorf("%w: the name of a token is too long", errFrame)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.asks.Load() || c.asked.Load() == maxPINs {
		return fmt.Errorf("%w: a call asks for the PIN too often", errFrame)
	}
	id := p.module.path + "\n" + wanted.Token
	if c.owner.soPIN != "" {
		id += "\nsecurity officer"
	}
	t := s.tokens[id]
	if t == nil {
		if s.count(p.module) >= maxTokens {
			return fmt.Errorf("%w: there are too many tokens", errFrame)
		}
		t = &tokenPIN{
			module: p.module, uri: wanted.Token, slot: make(chan struct{}, 1), secrets: map[string]*pin.Secret{},
		}
		s.tokens[id] = t
	}
	if c.login != t {
		c.leave() // no module needs the PINs of two tokens at once
	}
	c.asked.Add(1)
	c.asks.Store(true)
	go func() {
		if err := s.hand(p, c, f.call, t, id, wanted.Name); err != nil {
			c.asks.Store(false)
			_ = p.shared.out.send(f.call, opGivePIN, encodeFailure(err))
		}
	}()
	return nil
}

// count returns how many tokens a module has. The caller holds the lock.
func (s *pins) count(m *module) (n int) {
	for _, t := range s.tokens {
		if t.module == m {
			n++
		}
	}
	return n
}

// hand waits until no other login of the token is in flight, and sends the PIN.
func (s *pins) hand(p *process, c *call, number uint64, t *tokenPIN, id, name string) error {
	s.mu.Lock()
	has := c.login == t
	s.mu.Unlock()
	if !has {
		select {
		case t.slot <- struct{}{}:
		case <-c.ctx.Done():
			return interrupted(c.ctx, c.kind)
		case <-p.gone:
			return errEnded
		}
	}
	err := s.handNext(p, c, number, t, id, name, has)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		// The end of the call, or of its login, may have released the slot of one that had the PIN already.
		if !has || c.login == t {
			c.login = nil
			t.release(nil)
		}
	}
	return err
}

// handNext is hand for the call that holds the token's slot. has reports whether it got the PIN before.
func (s *pins) handNext(p *process, c *call, number uint64, t *tokenPIN, id, name string, has bool) error {
	source := c.owner.settings.PINSource
	if c.owner.soPIN != "" {
		source = c.owner.soPIN
	}
	s.mu.Lock()
	err := t.mayTry(name)
	if before := s.refused[c.owner.token()]; before != nil && err == nil {
		err = before.mayTry(name)
	}
	var secret *pin.Secret
	if c.caches() {
		secret = t.secrets[source]
	}
	s.mu.Unlock()
	if err == nil {
		err = s.ask(p, c, t, source, name)
	}
	if err != nil {
		return err
	}
	if secret == nil {
		if secret, err = s.readFor(p, c, source, name); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.tokens[id] == t && !s.closed
	if known && c.caches() {
		t.secrets[source] = secret
	} else {
		defer secret.Clear()
	}
	if !known || c.over || has && c.login != t {
		return failure.New(failure.Unavailable, "the PIN of %q was read too late", name).WithHint("run it again")
	}
	// The process may ask again as soon as it has the PIN.
	c.asks.Store(false)
	if err := p.sendPIN(number, secret); err != nil {
		return err
	}
	c.login, t.module = t, p.module // others with the same library may share the token
	return nil
}

// ask asks the guard whether the PIN may be tried, unless it has been asked for the login in flight. The call holds the
// token's slot.
func (s *pins) ask(p *process, c *call, t *tokenPIN, source, name string) error {
	s.mu.Lock()
	asked := t.guarded != nil
	s.mu.Unlock()
	if s.guard == nil || asked || c.owner.soPIN != "" {
		return nil
	}
	if c.owner.settings.PIN != "" {
		source = ""
	}
	ended, err := s.guard(c.ctx, pin.Login{Module: p.module.path, Token: t.uri, Name: name, Source: source})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.guarded = ended
	return nil
}

// release lets the next login of the token begin, and tells the guard how the last one ended. The caller holds the
// lock.
func (t *tokenPIN) release(refusal *failure.Error) {
	if t.guarded != nil {
		t.guarded(refusal)
		t.guarded = nil
	}
	<-t.slot
}

// token returns what the settings of a call say of a token, its user and the source of the PIN.
func (o owner) token() string {
	named := o.settings.Key
	named.Object, named.ID, named.Query = "", nil, nil
	return fmt.Sprintf("%q %q %q %q", o.settings.ModulePath, named, o.settings.PINSource, o.soPIN)
}

// caches reports whether the PIN that the call asks for is kept: not the security officer's, which is needed once, nor
// one that stands in the settings.
func (c *call) caches() bool { return c.owner.soPIN == "" && c.owner.settings.PIN == "" }

// mayTry fails when the PIN was refused, or when the process ended in the last login, which may have been why.
func (t *tokenPIN) mayTry(name string) error {
	switch {
	case t.refusal != nil:
		f := failure.New(failure.Denied, "the PIN of %q is not tried again: %s", name, t.refusal.What).
			WithHint(t.refusal.Hint)
		f.CKR = t.refusal.CKR
		return f
	case t.lostAll():
		return failure.New(failure.Denied, "the PIN of %q is not tried again: %s", name, unanswered).
			WithHint("check the PIN with the vendor's tool, then restart this program")
	}
	return nil
}

const unanswered = "the module did not answer the last login"

// lostAll reports whether as many logins were lost as may be tried: one, and two of a PIN that was right before.
func (t *tokenPIN) lostAll() bool { return t.lost >= 2 || t.lost == 1 && !t.accepted }

// releaseLost is release for a login that was lost.
func (t *tokenPIN) releaseLost() {
	t.lost++
	if t.lostAll() {
		t.release(failure.New(failure.Denied, unanswered))
		return
	}
	t.release(nil)
}

// readFor reads the PIN from its source, unless the process ends before: nobody is asked for a PIN that has no use.
func (s *pins) readFor(p *process, c *call, source, name string) (*pin.Secret, error) {
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.gone:
			cancel(errEnded)
		case <-ctx.Done():
		}
	}()
	return s.read(ctx, c, source, name)
}

// read reads the PIN from its source. A person takes as long as they take, one person at a time.
func (s *pins) read(ctx context.Context, c *call, source, name string) (*pin.Secret, error) {
	if c.owner.soPIN == "" && c.owner.settings.PIN != "" {
		return pin.From(c.owner.settings.PIN)
	}
	if source == pin.Prompt {
		select {
		case s.prompt <- struct{}{}:
			defer func() { <-s.prompt }()
		case <-ctx.Done():
			return nil, interrupted(ctx, c.kind)
		}
		return pin.Read(ctx, source, name)
	}
	ctx, cancel := context.WithTimeout(ctx, c.owner.settings.Timeout)
	defer cancel()
	return pin.Read(ctx, source, name)
}

// sendPIN sends a PIN and the frame that announces it.
func (p *process) sendPIN(number uint64, secret *pin.Secret) error {
	p.sendingPIN.Lock()
	defer p.sendingPIN.Unlock()
	raw, err := p.pins.SyscallConn()
	if err != nil {
		return err
	}
	outer := raw.Write(func(fd uintptr) bool {
		_, err = unix.SendmsgN(int(fd), secret.Bytes(), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return true
	})
	if err == nil {
		err = outer
	}
	if err != nil {
		return failure.New(failure.Unavailable, "cannot send the PIN to the process of the PKCS#11 module: %w", err).
			WithHint("run it again")
	}
	if err = p.shared.out.send(number, opGivePIN); err != nil {
		p.kill(err) // the next announcement would hand this PIN to the login of another token
	}
	return err
}

// loggedIn takes note of how a login ended, and lets the next one begin.
func (s *pins) loggedIn(c *call, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(c, err, refusesLoginAlone(err))
}

// answered does so for a call that has been answered.
func (s *pins) answered(c *call, err error) {
	if c.asked.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.over = true
	s.end(c, err, refusesLogin(err))
}

// died does so for a call whose process has ended.
func (s *pins) died(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.over = true
	c.leave()
}

// leave ends the login of a call, if there is one, without a result. The caller holds the lock.
func (c *call) leave() {
	if c.login != nil {
		c.login.releaseLost()
		c.login = nil
	}
}

// end ends the login of a call. The caller holds the lock.
func (s *pins) end(c *call, err error, refused bool) {
	t := c.login
	if t == nil {
		return
	}
	c.login = nil
	switch {
	case refused:
		slog.Error("a PIN was refused, and is not tried again", "error", err)
		t.refusal = failure.From(err)
		s.refused[c.owner.token()] = t
		t.clear()
	case failure.Is(err, failure.Timeout):
		t.releaseLost()
		return
	case err == nil, !failure.Is(err, failure.Internal) && !failure.Is(err, failure.Unavailable):
		t.accepted, t.lost = true, 0
	}
	t.release(t.refusal)
}

// refusesLoginAlone reports whether a login failed since the token refused it. A module may answer a wrong PIN by a
// value of its own, so that each counts but those that say that the session or the token was lost.
func refusesLoginAlone(err error) bool {
	if err == nil {
		return false
	}
	f := failure.From(err)
	switch f.Kind {
	case failure.Unavailable, failure.Timeout, failure.Throttled:
		return false
	}
	switch f.CKR {
	case "CKR_SESSION_HANDLE_INVALID", "CKR_SESSION_CLOSED", "CKR_DEVICE_REMOVED", "CKR_DEVICE_ERROR",
		"CKR_TOKEN_NOT_PRESENT", "CKR_TOKEN_NOT_RECOGNIZED", "CKR_CRYPTOKI_NOT_INITIALIZED":
		return false
	}
	return f.CKR != "" || f.Kind == failure.Denied
}

// refusesLogin reports whether a call that got a PIN failed since the token refused the login, not the use of a key.
func refusesLogin(err error) bool {
	if !failure.Is(err, failure.Denied) {
		return false
	}
	switch failure.From(err).CKR {
	case "", "CKR_KEY_FUNCTION_NOT_PERMITTED", "CKR_ACTION_PROHIBITED", "CKR_TOKEN_WRITE_PROTECTED":
		return false
	}
	return true
}
