package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
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
	"github.com/notation-hsm/notation-hsm/internal/logflags"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// heldKeys returns the keys of the policy, which stay open. key returns one by its name, or nil.
func heldKeys(ks *keystore.Keystore, f *brokerfile.File, keys *held.Keys,
	key func(name string) *policy.Key) *broker.HeldKeys {
	known := &references{known: map[string]*keystore.Reference{}}
	return &broker.HeldKeys{Held: keys, References: func(name string) ([]*keystore.Reference, error) {
		k := key(name)
		if k == nil {
			return nil, failure.New(failure.NotFound, "the broker has no key %q", name).WithHint("name a key of the policy")
		}
		all := make([]*keystore.Reference, len(k.URIs))
		for i, uri := range k.URIs {
			var err error
			if all[i], err = known.find(ks, f, uri, f.Keys[name].CertificateChain); err != nil {
				return nil, err
			}
		}
		return all, nil
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
	*held.Copies
	public crypto.PublicKey
}

// openLogKey opens the key of the log. It fails for a key that signs no checkpoints.
func openLogKey(ctx context.Context, ks *keystore.Keystore, f *brokerfile.File, keys *held.Keys) (*logKey, error) {
	all, err := logReferences(ks, f)
	if err != nil {
		return nil, err
	}
	k := &logKey{Copies: held.NewCopies(keys, broker.LogKeyName, all, signedCheckpoint(f))}
	if k.public, err = k.Public(ctx); err != nil {
		return nil, err
	}
	if _, err := translog.NewVerifier(f.Log.Origin, k.public); err != nil {
		return nil, err
	}
	return k, nil
}

// logReferences returns where the key of the log is.
func logReferences(ks *keystore.Keystore, f *brokerfile.File) (all []*keystore.Reference, err error) {
	for _, uri := range f.Log.Key {
		r, err := reference(ks, f, uri, "")
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// signedCheckpoint returns a function that reports whether a public key is that of the newest checkpoint of the log;
// nil if the log has none.
func signedCheckpoint(f *brokerfile.File) func(crypto.PublicKey) (bool, error) {
	checkpoint, err := logflags.ReadFile(f.Log.CheckpointFile)
	if err != nil { // it does not exist before the first start; the broker says so if it cannot be read
		return nil
	}
	origin, err := originIn(f, checkpoint)
	if err != nil { // it is of another log
		return nil
	}
	return func(public crypto.PublicKey) (bool, error) {
		v, err := translog.NewVerifier(origin, public)
		if err != nil {
			return false, err
		}
		_, err = translog.Open(checkpoint, []*translog.Verifier{v})
		if failure.Is(err, failure.Denied) {
			return false, nil
		}
		return err == nil, err
	}
}

// sign signs a checkpoint.
func (k *logKey) sign(ctx context.Context, c translog.Checkpoint) ([]byte, error) {
	return c.Sign(&logSigner{ctx, k})
}

// logSigner signs checkpoints.
type logSigner struct {
	ctx context.Context //nolint:containedctx // crypto.Signer has none
	key *logKey
}

// Public returns the public half of the log's key.
func (s *logSigner) Public() crypto.PublicKey { return s.key.public }

// Sign signs the SHA-256 of a checkpoint. The signature is verified before it is returned: that of one module may be
// wrong.
func (s *logSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if len(digest) != sha256.Size || opts.HashFunc() != crypto.SHA256 {
		return nil, failure.New(failure.Internal, "the log is signed with SHA-256")
	}
	return s.key.Use(s.ctx, func(held *held.Key) ([]byte, error) {
		signature, err := held.Use(s.ctx, func(k keystore.Key) ([]byte, error) { return k.Sign(s.ctx, digest, opts) })
		if err != nil {
			return nil, err
		}
		if public, ok := s.key.public.(*ecdsa.PublicKey); ok && !ecdsa.VerifyASN1(public, digest, signature) {
			return nil, failure.New(failure.Internal, "cannot sign the log: the module's signature does not verify").
				WithHint("report the wrong signature to the vendor of the module")
		}
		return signature, nil
	})
}

// logVerifier returns the verifier of a broker's log under a name, by the public half of the key in the modules.
func logVerifier(ctx context.Context, f *brokerfile.File, origin string) (_ *translog.Verifier, err error) {
	refused, err := openRefusals(ctx, f)
	if err != nil {
		return nil, err
	}
	ks := backends.GuardedService(refused.Guard)
	keys := held.New(ks, failure.New(failure.Unavailable, "the command is ending").WithHint("run it again"))
	defer func() { err = errors.Join(err, keys.Close(), refused.Close()) }()
	all, err := logReferences(ks, f)
	if err != nil {
		return nil, err
	}
	public, err := held.NewCopies(keys, broker.LogKeyName, all, signedCheckpoint(f)).Public(ctx)
	if err != nil {
		return nil, err
	}
	return translog.NewVerifier(origin, public)
}
