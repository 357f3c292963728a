package agent

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// fresh is how long the certificates of a key are used before they are read again, so that a new one is seen.
const fresh = time.Minute

// held is an open key, with its certificates as they were read last.
type held struct {
	*opened
	chain []*x509.Certificate // leaf first; complete if it could be completed
	read  time.Time           // the chain; zero if it was not
}

// opened is a key in a store of its own.
type opened struct {
	reference *keystore.Reference
	store     keystore.Store
	key       keystore.Key
	public    crypto.PublicKey
	facts     *facts

	// Guarded by the lock of the session.
	users   int  // uses of the key in flight
	dropped bool // the last of them closes the store
}

// opening is the work of one caller on a key, for which the others wait.
type opening struct {
	done chan struct{} // closed at its end
	err  error         // for those who wait; nil if the work succeeded, or if its caller has left
}

// find returns the key that a caller names, to use it. It does not read certificates: a use takes no calls for them.
func (s *session) find(ctx context.Context, name string) (*held, error) {
	reference, err := s.resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	return s.look(ctx, reference, false)
}

// findFresh returns the key that a caller names, with its certificates. When it is time to read them again, one caller
// does so, and the others get the old ones meanwhile.
func (s *session) findFresh(ctx context.Context, name string) (*held, error) {
	reference, err := s.resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	return s.look(ctx, reference, true)
}

// look opens a key unless it is held, and reads its certificates if they are wanted and not fresh.
func (s *session) look(ctx context.Context, reference *keystore.Reference, certificates bool) (*held, error) {
	id, began := reference.Key.String(), time.Now()
	for {
		s.mu.Lock()
		found, busy := s.held[id], s.opening[id]
		if found != nil {
			stale := certificates && found.read.Before(began) && time.Since(found.read) >= fresh
			if !stale || busy != nil && !found.read.IsZero() {
				s.mu.Unlock()
				return found, nil
			}
		}
		if s.closed {
			s.mu.Unlock()
			return nil, errLocked()
		}
		if busy == nil {
			busy = &opening{done: make(chan struct{})}
			s.opening[id] = busy
			s.mu.Unlock()
			if err := s.work(ctx, id, busy, found, reference); err != nil {
				return nil, s.met(err)
			}
			continue
		}
		s.mu.Unlock()
		select {
		case <-busy.done:
			if busy.err != nil {
				return nil, s.met(busy.err)
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// work opens a key, or reads the certificates of an old one, for all who wait. An old key that is gone is dropped.
func (s *session) work(ctx context.Context, id string, mine *opening, old *held, reference *keystore.Reference) (
	err error) {
	var found *held
	defer func() { // also after a panic
		s.mu.Lock()
		delete(s.opening, id)
		late := s.closed && found != nil && old == nil
		if found != nil && !s.closed {
			s.held[id] = found
		}
		if ctx.Err() == nil {
			mine.err = err
		}
		close(mine.done)
		s.mu.Unlock()
		if late {
			found.store.Close()
		}
	}()
	if old == nil {
		found, err = openKey(ctx, reference)
		return err
	}
	if found, err = old.renew(ctx); gone(err) {
		s.drop(old)
		return nil
	}
	return err
}

// openKey opens a key. Its certificates are not read.
func openKey(ctx context.Context, reference *keystore.Reference) (*held, error) {
	store, err := reference.Open(ctx)
	if err != nil {
		return nil, away(err)
	}
	k, err := store.Key(ctx, nil)
	if err != nil {
		store.Close()
		return nil, err
	}
	return &held{opened: &opened{reference: reference, store: store, key: k, public: k.Public(), facts: &facts{}}}, nil
}

// away returns the failure to open the token: as Unavailable if it is not found, since it was there when the agent
// started.
func away(err error) error {
	if !failure.Is(err, failure.NotFound) {
		return err
	}
	f := *failure.From(err)
	f.Kind = failure.Unavailable
	return &f
}

// renew returns the key with its certificates as they are now. When they cannot be read, it returns the old ones. It
// fails with NotFound or Conflict if the key has been deleted or replaced.
func (h *held) renew(ctx context.Context) (*held, error) {
	chain, err := h.readChain(ctx)
	if err != nil && (gone(err) || ctx.Err() != nil || h.read.IsZero()) {
		return nil, err
	}
	if err != nil {
		slog.Warn("cannot read the certificates of a key again", "key", h.reference.Key.String(), "error", err)
		chain = h.chain
	}
	return &held{opened: h.opened, chain: chain, read: time.Now()}, nil
}

// readChain returns the chain of the key's certificate, from the certificate-chain file and the token; the leaf alone
// if it is not complete, since the caller may have the rest; and none without a certificate. Again, it first verifies
// that the key is still there.
func (h *held) readChain(ctx context.Context) ([]*x509.Certificate, error) {
	if !h.read.IsZero() {
		now, err := h.store.Key(ctx, nil)
		if err != nil {
			return nil, err
		}
		if !equal(now.Public(), h.public) {
			return nil, h.replaced()
		}
	}
	var known []*x509.Certificate
	if file := h.reference.CertificateChain; file != "" {
		var err error
		if known, err = certs.ReadFile(file); err != nil {
			return nil, err
		}
	}
	beside, err := h.store.Leaf(ctx)
	if err != nil {
		return nil, err
	}
	if beside != nil {
		known = append(known, beside)
	}
	leaf := certs.LeafOf(h.public, known, time.Now())
	if leaf == nil {
		on, err := h.store.Certificates(ctx)
		if err != nil {
			return nil, err
		}
		known = append(known, on...)
		if leaf = certs.LeafOf(h.public, known, time.Now()); leaf == nil {
			return nil, nil
		}
	}
	chain, err := certs.Chain(leaf, known, keystore.IssuerLookup(ctx, h.store), time.Now())
	if err != nil {
		return []*x509.Certificate{leaf}, nil //nolint:nilerr // who uses the chain says what is wrong with it
	}
	return chain, nil
}
