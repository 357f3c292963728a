package held

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

// Key is an open key, with its certificates as they were read last.
type Key struct {
	*opened
	Chain []*x509.Certificate // leaf first; complete if it could be completed; nil by Find before FindFresh
	read  time.Time           // the chain; zero if it was not
}

// opened is a key in a store of its own.
type opened struct {
	Public crypto.PublicKey

	keys      *Keys
	reference *keystore.Reference
	store     keystore.Store
	key       keystore.Key
	facts     *facts

	// Guarded by the lock of the keys.
	users   int  // uses of the key in flight
	dropped bool // the last of them closes the store
}

// opening is the work of one caller on a key, for which the others wait.
type opening struct {
	done chan struct{} // closed at its end
	err  error         // for those who wait; nil if the work succeeded, or if its caller has left
}

// Find returns the key of a reference, to use it. It does not read certificates: a use takes no calls for them.
func (k *Keys) Find(ctx context.Context, reference *keystore.Reference) (*Key, error) {
	return k.look(ctx, reference, false)
}

// FindFresh returns the key of a reference, with its certificates. When it is time to read them again, one caller does
// so, and the others get the old ones meanwhile.
func (k *Keys) FindFresh(ctx context.Context, reference *keystore.Reference) (*Key, error) {
	return k.look(ctx, reference, true)
}

// look opens a key unless it is held, and reads its certificates if they are wanted and not fresh.
func (k *Keys) look(ctx context.Context, reference *keystore.Reference, certificates bool) (*Key, error) {
	id, began := identify(reference), time.Now()
	for {
		k.mu.Lock()
		found, busy := k.held[id], k.opening[id]
		if found != nil {
			stale := certificates && found.read.Before(began) && time.Since(found.read) >= fresh
			if !stale || busy != nil && !found.read.IsZero() {
				k.mu.Unlock()
				return found, nil
			}
		}
		if k.closed {
			k.mu.Unlock()
			return nil, k.closedBy
		}
		if busy == nil {
			busy = &opening{done: make(chan struct{})}
			k.opening[id] = busy
			k.mu.Unlock()
			if err := k.work(ctx, id, busy, found, reference); err != nil {
				return nil, k.Cause(err)
			}
			continue
		}
		k.mu.Unlock()
		select {
		case <-busy.done:
			if busy.err != nil {
				return nil, k.Cause(busy.err)
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// work opens a key, or reads the certificates of an old one, for all who wait. An old key that is gone is dropped.
func (k *Keys) work(ctx context.Context, id string, mine *opening, old *Key, reference *keystore.Reference) (
	err error) {
	var found *Key
	defer func() { // also after a panic
		k.mu.Lock()
		delete(k.opening, id)
		late := k.closed && found != nil && old == nil
		if found != nil && !k.closed {
			k.held[id] = found
		}
		if ctx.Err() == nil {
			mine.err = err
		}
		close(mine.done)
		k.mu.Unlock()
		if late {
			found.store.Close()
		}
	}()
	if old == nil {
		found, err = k.openKey(ctx, reference)
		return err
	}
	if found, err = old.renew(ctx); gone(err) {
		k.drop(old)
		return nil
	}
	return err
}

// openKey opens a key. Its certificates are not read.
func (k *Keys) openKey(ctx context.Context, reference *keystore.Reference) (*Key, error) {
	store, err := reference.Open(ctx)
	if err != nil {
		return nil, away(err)
	}
	found, err := store.Key(ctx, nil)
	if err != nil {
		store.Close()
		return nil, err
	}
	return &Key{opened: &opened{Public: found.Public(), keys: k, reference: reference, store: store, key: found,
		facts: &facts{}}}, nil
}

// away returns the failure to open the token: as Unavailable if it is not found, since it was there when the program
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
func (h *Key) renew(ctx context.Context) (*Key, error) {
	chain, err := h.readChain(ctx)
	if err != nil && (gone(err) || ctx.Err() != nil || h.read.IsZero()) {
		return nil, err
	}
	if err != nil {
		slog.Warn("cannot read the certificates of a key again", "key", h.reference.Key.String(), "error", err)
		chain = h.Chain
	}
	return &Key{opened: h.opened, Chain: chain, read: time.Now()}, nil
}

// readChain returns the chain of the key's certificate, from the certificate-chain file and the token; the leaf alone
// if it is not complete, since the caller may have the rest; and none without a certificate. Again, it first verifies
// that the key is still there.
func (h *Key) readChain(ctx context.Context) ([]*x509.Certificate, error) {
	if !h.read.IsZero() {
		now, err := h.store.Key(ctx, nil)
		if err != nil {
			return nil, err
		}
		if !equal(now.Public(), h.Public) {
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
	leaf := certs.LeafOf(h.Public, known, time.Now())
	if leaf == nil {
		on, err := h.store.Certificates(ctx)
		if err != nil {
			return nil, err
		}
		known = append(known, on...)
		if leaf = certs.LeafOf(h.Public, known, time.Now()); leaf == nil {
			return nil, nil
		}
	}
	chain, err := certs.Chain(leaf, known, keystore.IssuerLookup(ctx, h.store), time.Now())
	if err != nil {
		return []*x509.Certificate{leaf}, nil //nolint:nilerr // who uses the chain says what is wrong with it
	}
	return chain, nil
}
