package worker

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// store is a token that is open in the process of its module. When the process has been started again, the store is
// opened again, by the same settings, at the next use.
type store struct {
	module  *module
	owner   owner
	opening chan struct{} // is held by the one who opens it again
	opened  atomic.Pointer[opened]
	closed  atomic.Bool

	mu    sync.Mutex
	token key.Token
	login bool // Login was called, and is called again after a restart
}

// opened is a store in one process.
type opened struct {
	process *process
	number  uint64
}

// in returns the store in the running process.
func (s *store) in(ctx context.Context) (*opened, error) {
	if o := s.opened.Load(); o != nil && o.process.alive.Load() {
		return o, nil
	}
	p, err := s.module.process(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return nil, interrupted(ctx, opOpenStore)
	}
	if o := s.opened.Load(); o != nil && o.process.alive.Load() {
		return o, nil
	}
	if s.closed.Load() {
		return nil, failure.New(failure.Internal, "the token is closed")
	}
	return s.openIn(ctx, p)
}

// openIn opens the store in a process. The caller holds opening.
func (s *store) openIn(ctx context.Context, p *process) (*opened, error) {
	body, err := p.call(ctx, opOpenStore, s.owner, encode(arguments{Settings: forProcess(s.owner.settings)}))
	if err != nil {
		return nil, err
	}
	r, err := decode(body)
	if err != nil || r.Token == nil {
		return nil, errAnswer()
	}
	o := &opened{process: p, number: r.Store}
	s.mu.Lock()
	again := s.login
	s.token = *r.Token
	s.mu.Unlock()
	if again {
		if _, err := p.call(ctx, opLogin, s.owner, encode(arguments{Store: o.number})); err != nil {
			p.release(opOpenStore, body)
			return nil, err
		}
	}
	s.opened.Store(o)
	return o, nil
}

// release has a process close what a call opened for which nobody waits any more.
func (p *process) release(k kind, body []byte) {
	r, err := decode(body)
	if err != nil {
		return
	}
	switch k {
	case opOpenStore:
		_, _ = p.send(&call{
			kind: opCloseStore, ctx: context.Background(), owner: owner{settings: &config.Settings{Timeout: closeLimit}},
			result: make(chan callResult, 1),
		}, p.shared.out, encode(arguments{Store: r.Store}))
	case opFindKey, opFindKeys:
		for _, k := range r.Keys {
			_ = p.shared.out.send(k.Key, opDropKey)
		}
	}
}

// repeat calls do with the store in the running process, and once more in the next one if that process ends.
func (s *store) repeat(ctx context.Context, do func(*opened) error) error {
	for tries := (attempts{}); ; {
		o, err := s.in(ctx)
		began := err == nil
		if began {
			err = do(o)
		}
		if !tries.again(ctx, began, err) {
			return err
		}
	}
}

// attempts counts how often a process has ended before it answered a call.
type attempts struct{ began, unsent int }

// maxUnsent bounds how often a call waits for the next process since the last one ended before it got the call.
const maxUnsent = 3

// again takes note of an attempt and reports whether the call is made again. began reports whether it came to the call.
func (a *attempts) again(ctx context.Context, began bool, err error) bool {
	if !errors.Is(err, errEnded) || ctx.Err() != nil {
		return false
	}
	if began && !errors.Is(err, errUnsent) {
		a.began++
	} else {
		a.unsent++
	}
	return a.began < 2 && a.unsent < maxUnsent
}

// call makes a call. One that changes nothing on the token is repeated once if the process ends.
func (s *store) call(ctx context.Context, k kind, a arguments) (r results, err error) {
	err = s.repeat(ctx, func(o *opened) error {
		a.Store = o.number
		r, err = o.call(ctx, k, s.owner, a)
		return once(k, err)
	})
	return r, ended(err)
}

func (o *opened) call(ctx context.Context, k kind, by owner, a arguments) (results, error) {
	body, err := o.process.call(ctx, k, by, encode(a))
	if err != nil {
		return results{}, err
	}
	return decode(body)
}

// notRepeated is the failure of a call whose process ended, and that may not be repeated.
type notRepeated struct{ error }

// once keeps repeat from repeating a call that may have changed the token.
func once(k kind, err error) error {
	if k.changes() && errors.Is(err, errEnded) && !errors.Is(err, errUnsent) {
		return notRepeated{err}
	}
	return err
}

// ended is the inverse of once.
func ended(err error) error {
	if n, ok := err.(notRepeated); ok { //nolint:errorlint // once has made it
		return n.error
	}
	return err
}

// Describe returns what the token said of itself when it was opened last.
func (s *store) Describe() key.Token {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token
}

// Login logs in.
func (s *store) Login(ctx context.Context) error {
	_, err := s.call(ctx, opLogin, arguments{})
	if err == nil {
		s.keepLogin()
	}
	return err
}

// keepLogin has the store log in when it is opened again.
func (s *store) keepLogin() {
	s.mu.Lock()
	s.login = true
	s.mu.Unlock()
}

// Close closes the store in the process, if that still runs.
func (s *store) Close() error {
	s.closed.Store(true)
	s.opening <- struct{}{}
	defer func() { <-s.opening }()
	o := s.opened.Swap(nil)
	if o == nil || !o.process.alive.Load() {
		return nil
	}
	_, err := o.call(context.Background(), opCloseStore, s.owner, arguments{Store: o.number})
	if errors.Is(err, errEnded) {
		return nil // and its sessions with it
	}
	return err
}

// Public returns the key's public half.
func (s *store) Public(ctx context.Context) (crypto.PublicKey, error) {
	r, err := s.call(ctx, opPublic, arguments{})
	if err != nil {
		return nil, err
	}
	return r.public()
}

// Receives returns what the token says of the key as a recipient's.
func (s *store) Receives(ctx context.Context, public crypto.PublicKey) (key.Receives, error) {
	der, err := encodePublic(public)
	if err != nil {
		return key.Receives{}, err
	}
	r, err := s.call(ctx, opReceives, arguments{Public: der})
	if err != nil || r.Receives == nil {
		return key.Receives{}, orAnswer(err)
	}
	return *r.Receives, nil
}

// Leaf returns the one certificate with the key's own label and id, or nil.
func (s *store) Leaf(ctx context.Context) (*x509.Certificate, error) {
	found, err := s.certificates(ctx, opLeaf, arguments{})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0], nil
}

// Issuers returns the certificates whose subject is cert's issuer.
func (s *store) Issuers(ctx context.Context, cert *x509.Certificate) ([]*x509.Certificate, error) {
	return s.certificates(ctx, opIssuers, arguments{Chain: [][]byte{cert.Raw}})
}

// Certificates returns all certificates.
func (s *store) Certificates(ctx context.Context) ([]*x509.Certificate, error) {
	return s.certificates(ctx, opCertificates, arguments{})
}

func (s *store) certificates(ctx context.Context, k kind, a arguments) ([]*x509.Certificate, error) {
	r, err := s.call(ctx, k, a)
	if err != nil {
		return nil, err
	}
	found, err := decodeCertificates(r.Chain)
	if err != nil {
		return nil, errAnswer()
	}
	return found, nil
}

// Import stores a chain beside the key and returns how many certificates were not there before.
func (s *store) Import(ctx context.Context, k keystore.Key, chain []*x509.Certificate) (int, error) {
	r, err := s.withKey(ctx, opImportChain, k, arguments{Chain: encodeCertificates(chain)})
	return r.Count, err
}

// Delete removes a key with its public half and certificates.
func (s *store) Delete(ctx context.Context, k keystore.Key, certificates []*x509.Certificate) error {
	_, err := s.withKey(ctx, opDeleteKey, k, arguments{Chain: encodeCertificates(certificates)})
	return err
}

// withKey makes a call for a key of the store.
func (s *store) withKey(ctx context.Context, k kind, of keystore.Key, a arguments) (r results, err error) {
	own := of.(*remoteKey) // keys of this store are its own
	err = own.repeat(ctx, func(o *opened, number uint64) error {
		a.Store, a.Key = o.number, number
		r, err = o.call(ctx, k, s.owner, a)
		return once(k, err)
	})
	return r, ended(err)
}

// Discard deletes the objects that an interrupted Generate left behind.
func (s *store) Discard(ctx context.Context) error {
	_, err := s.call(ctx, opDiscard, arguments{})
	return err
}

// Taken reports whether a key on the token has this label, or this id.
func (s *store) Taken(ctx context.Context, name config.URI) (bool, error) {
	r, err := s.call(ctx, opTaken, arguments{Name: &name})
	return r.Taken, err
}

// WrappingKey returns the trusted wrapping key that the reference names.
func (s *store) WrappingKey(ctx context.Context, reference config.URI) (key.WrappingKey, error) {
	r, err := s.call(ctx, opFindWrapping, arguments{Name: &reference})
	return r.Wrapping, err
}

// Wrap has the module encrypt a private key under that wrapping key.
func (s *store) Wrap(ctx context.Context, k keystore.Key, reference config.URI) (key.Wrapped, error) {
	r, err := s.withKey(ctx, opWrap, k, arguments{Name: &reference})
	if err != nil || r.Wrapped == nil {
		return key.Wrapped{}, orAnswer(err)
	}
	return *r.Wrapped, nil
}

// Unwrap makes the key again, under the wrapping key that wrapped it.
func (s *store) Unwrap(ctx context.Context, wrapped key.Wrapped, usage key.Usage, label string, id []byte,
	public crypto.PublicKey) error {
	der, err := encodePublic(public)
	if err != nil {
		return err
	}
	_, err = s.call(ctx, opUnwrap, arguments{Wrapped: &wrapped, Usage: usage, Label: label, ID: id, Public: der})
	return err
}

// Authenticate returns a MAC of data under a wrapping key of the token.
func (s *store) Authenticate(ctx context.Context, data []byte, mechanism string, by key.WrappingKey) (key.MAC, error) {
	r, err := s.call(ctx, opAuthenticate, arguments{Data: data, Mechanism: mechanism, Wrapping: by})
	if err != nil || r.MAC == nil {
		return key.MAC{}, orAnswer(err)
	}
	return *r.MAC, nil
}

// Verify fails unless Authenticate made the MAC of this data under that wrapping key.
func (s *store) Verify(ctx context.Context, data []byte, mac key.MAC, mechanism string, by key.WrappingKey) error {
	_, err := s.call(ctx, opVerify, arguments{Data: data, MAC: &mac, Mechanism: mechanism, Wrapping: by})
	return err
}

// orAnswer returns err, or that the answer lacks what was asked for.
func orAnswer(err error) error {
	if err != nil {
		return err
	}
	return errAnswer()
}

// public returns the public key of an answer, which may be none.
func (r results) public() (crypto.PublicKey, error) {
	half, err := decodePublic(r.Public)
	if err != nil {
		return nil, errAnswer()
	}
	return half, nil
}

// info returns the attributes of a key of an answer.
func (r results) info() (key.Info, error) {
	half, err := r.public()
	if err != nil || r.Info == nil {
		return key.Info{}, orAnswer(err)
	}
	r.Info.Public = half
	return *r.Info, nil
}
