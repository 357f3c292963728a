package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// heldKeys returns the keys of the policy, which stay open. key returns one by its name, or nil.
func heldKeys(ks *keystore.Keystore, f *brokerfile.File, keys *held.Keys,
	key func(name string) *policy.Key) *broker.HeldKeys {
	known := &references{known: map[string]*keystore.Reference{}}
	return &broker.HeldKeys{Held: keys, Reference: func(name string) (*keystore.Reference, error) {
		k := key(name)
		if k == nil {
			return nil, failure.New(failure.NotFound, "the broker has no key %q", name).WithHint("name a key of the policy")
		}
		return known.find(ks, f, k.URI, f.Keys[name].CertificateChain)
	}}
}

// references keeps where keys are: resolving settings takes as long as a fifth of a signature.
type references struct {
	mu    sync.Mutex
	known map[string]*keystore.Reference // by URI and chain
}

func (r *references) find(ks *keystore.Keystore, f *brokerfile.File, uri, chain string) (*keystore.Reference, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := uri + "\n" + chain
	if found := r.known[id]; found != nil {
		return found, nil
	}
	found, err := reference(ks, f, uri, chain)
	if err == nil {
		r.known[id] = found
	}
	return found, err
}

// reference returns where a key is, by its URI and the module of the config file that has its token.
func reference(ks *keystore.Keystore, f *brokerfile.File, uri, chain string) (*keystore.Reference, error) {
	u, err := config.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	module, err := f.ModuleOf(u)
	if err != nil {
		return nil, err
	}
	given := maps.Clone(map[string]string(module))
	delete(given, config.Token) // the key's URI names it
	if chain != "" {
		given[config.CertificateChain] = chain
	}
	return ks.Direct().Resolve(uri, given, config.Flags)
}

// logKey is the key of the log, which stays open.
type logKey struct {
	keys      *held.Keys
	reference *keystore.Reference
	public    crypto.PublicKey
}

// openLogKey opens the key of the log. It fails for a key that signs no checkpoints.
func openLogKey(ctx context.Context, ks *keystore.Keystore, f *brokerfile.File, keys *held.Keys) (*logKey, error) {
	r, err := reference(ks, f, f.Log.Key, "")
	if err != nil {
		return nil, err
	}
	found, err := keys.Find(ctx, r)
	if err != nil {
		return nil, err
	}
	if _, err := translog.NewVerifier(f.Log.Origin, found.Public); err != nil {
		return nil, err
	}
	return &logKey{keys: keys, reference: r, public: found.Public}, nil
}

// sign signs a checkpoint.
func (k *logKey) sign(ctx context.Context, c translog.Checkpoint) ([]byte, error) {
	found, err := k.keys.Find(ctx, k.reference)
	if err != nil {
		return nil, err
	}
	return c.Sign(&logSigner{ctx, found})
}

// logSigner signs checkpoints.
type logSigner struct {
	ctx context.Context //nolint:containedctx // crypto.Signer has none
	key *held.Key
}

// Public returns the public half of the log's key.
func (s *logSigner) Public() crypto.PublicKey { return s.key.Public }

// Sign signs the SHA-256 of a checkpoint.
func (s *logSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if len(digest) != sha256.Size || opts.HashFunc() != crypto.SHA256 {
		return nil, failure.New(failure.Internal, "the log is signed with SHA-256")
	}
	return s.key.Use(s.ctx, func(k keystore.Key) ([]byte, error) { return k.Sign(s.ctx, digest, opts) })
}

// logVerifier returns the verifier of a broker's log under a name, by the public half of the key in the module.
func logVerifier(ctx context.Context, f *brokerfile.File, origin string) (_ *translog.Verifier, err error) {
	ks := backends.GuardedService(refusalsOf(f).Guard)
	defer func() { err = errors.Join(err, ks.Close()) }()
	key, err := reference(ks, f, f.Log.Key, "")
	if err != nil {
		return nil, err
	}
	var v *translog.Verifier
	err = key.WithKey(ctx, func(_ keystore.Store, k keystore.Key) (err error) {
		v, err = translog.NewVerifier(origin, k.Public())
		return err
	})
	return v, err
}
