package agent

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// fresh is how long the certificates of a key are used before they are read again: so a new one is seen, and a
// signature takes no calls for them.
const fresh = time.Minute

// session is a token with its login, from the first use of a key to the next Lock.
type session struct {
	keystore *keystore.Keystore
	token    *keystore.Reference

	mu      sync.Mutex
	root    keystore.Store           // the token; nil until it is opened
	held    map[string]*held         // by reference
	opening map[string]chan struct{} // by reference; closed when the one who opens the key is done
}

// held is an open key.
type held struct {
	reference *keystore.Reference
	store     keystore.Store
	key       keystore.Key
	public    crypto.PublicKey
	facts     *facts
	chain     []*x509.Certificate // leaf first; complete if it could be completed
	read      time.Time           // the chain
}

// login logs in to the token.
func (s *session) login(ctx context.Context) error {
	store, err := s.open(ctx)
	if err != nil {
		return err
	}
	return store.Login(ctx)
}

// open returns the store of the token.
func (s *session) open(ctx context.Context) (keystore.Store, error) {
	s.mu.Lock()
	root := s.root
	s.mu.Unlock()
	if root != nil {
		return root, nil
	}
	root, err := s.token.Open(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.root != nil {
		return s.root, root.Close()
	}
	s.root = root
	return root, nil
}

// find returns the key that a caller names: by its label, or by a URI of a key on the token. It fails with NotFound for
// a key of another token.
func (s *session) find(ctx context.Context, name string) (*held, error) {
	reference, err := s.resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	id := reference.Key.String()
	for {
		s.mu.Lock()
		found, busy := s.held[id], s.opening[id]
		if found != nil && time.Since(found.read) < fresh {
			s.mu.Unlock()
			return found, nil
		}
		if busy == nil {
			busy = make(chan struct{})
			s.opening[id] = busy
			s.mu.Unlock()
			return s.renew(ctx, id, found, reference)
		}
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// resolve returns the reference of a key on the token.
func (s *session) resolve(ctx context.Context, name string) (*keystore.Reference, error) {
	reference := *s.token
	if !strings.HasPrefix(name, s.token.Key.Scheme()) {
		reference.Key.Object, reference.Key.ID = name, nil
		return &reference, nil
	}
	uri, err := config.ParseURI(name)
	if err != nil {
		return nil, err
	}
	store, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	if len(uri.Query) > 0 || uri.Object == "" && len(uri.ID) == 0 || !s.keystore.Matches(uri, store.Describe()) {
		return nil, failure.New(failure.NotFound, "the agent does not hold the key %s", config.Redact(name)).
			WithHint("name a key of the token " + store.Describe().URI)
	}
	reference.Key.Object, reference.Key.ID = uri.Object, uri.ID
	return &reference, nil
}

// renew opens a key, or reads the chain of one that is open, for all who wait for it.
func (s *session) renew(ctx context.Context, id string, old *held, reference *keystore.Reference) (*held, error) {
	found, err := read(ctx, old, reference)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.opening[id])
	delete(s.opening, id)
	if err != nil {
		return nil, err
	}
	s.held[id] = found
	return found, nil
}

func read(ctx context.Context, old *held, reference *keystore.Reference) (*held, error) {
	h := &held{reference: reference, facts: &facts{}}
	if old != nil {
		*h = *old
	} else {
		var err error
		if h.store, err = reference.Open(ctx); err != nil {
			return nil, err
		}
		if h.key, err = h.store.Key(ctx, nil); err != nil {
			h.store.Close()
			return nil, err
		}
		h.public = h.key.Public()
	}
	chain, err := h.readChain(ctx)
	if err != nil {
		if old == nil {
			h.store.Close()
		}
		return nil, err
	}
	h.chain, h.read = chain, time.Now()
	return h, nil
}

// readChain returns the chain of the key's certificate, from the certificate-chain file and the token; the leaf alone if
// it is not complete, since the caller may have the rest; and none without a certificate.
func (h *held) readChain(ctx context.Context) ([]*x509.Certificate, error) {
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

// close ends the login, and closes the module.
func (s *session) close() error {
	s.mu.Lock()
	stores := []keystore.Store{}
	for _, h := range s.held {
		stores = append(stores, h.store)
	}
	if s.root != nil {
		stores = append(stores, s.root)
	}
	s.held, s.root = map[string]*held{}, nil
	s.mu.Unlock()
	failed := []error{s.keystore.Close()} // the process of a module ends, and its sessions with it
	for _, store := range stores {
		failed = append(failed, store.Close())
	}
	return errors.Join(failed...)
}
