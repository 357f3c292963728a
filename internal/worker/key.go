package worker

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"math"
	"runtime"
	"sync/atomic"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// remoteKey is a private key that the process of its module knows by a number. When the process has been started again,
// the key is found again at the next use.
type remoteKey struct {
	store  *store
	public crypto.PublicKey
	der    []byte // public as a SubjectPublicKeyInfo
	known  bool   // the caller knew public before
	listed bool   // it was found by Keys
	nth    int    // of the listed keys with this public half
	read   atomic.Bool
	search chan struct{} // is held by the one who finds it again
	found  *atomic.Pointer[found]
}

// found is a key in one process.
type found struct {
	opened *opened
	number uint64
}

// newKey returns a key that is to be found. The process forgets a key that nobody uses any more, before its store is
// closed: a program may keep a store for long, and ask it for keys time and again.
func newKey(s *store) *remoteKey {
	k := &remoteKey{store: s, search: make(chan struct{}, 1), found: &atomic.Pointer[found]{}}
	runtime.AddCleanup(k, func(last *atomic.Pointer[found]) {
		if f := last.Load(); f != nil && f.opened.process.alive.Load() {
			f.opened.process.drops.Add(1)
			_ = f.opened.process.shared.out.send(f.number, opDropKey)
		}
	}, k.found)
	return k
}

// Key finds the private key that the settings name.
func (s *store) Key(ctx context.Context, public crypto.PublicKey) (keystore.Key, error) {
	k := newKey(s)
	k.public, k.known = public, public != nil
	var err error
	if k.der, err = encodePublic(public); err != nil {
		return nil, err
	}
	err = s.repeat(ctx, func(o *opened) error {
		keys, err := s.find(ctx, o, opFindKey, arguments{Public: k.der})
		if err != nil {
			return err
		}
		k.found.Store(&found{o, keys[0].Key})
		if k.known {
			return nil
		}
		k.der = keys[0].Public
		k.public, err = results{Public: k.der}.public()
		return err
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// Keys returns all private keys that the settings match.
func (s *store) Keys(ctx context.Context) (all []keystore.Key, err error) {
	err = s.repeat(ctx, func(o *opened) error {
		keys, err := s.find(ctx, o, opFindKeys, arguments{})
		if err != nil {
			return err
		}
		all = nil
		seen := map[string]int{}
		for _, one := range keys {
			k := newKey(s)
			k.der, k.listed, k.nth = one.Public, true, seen[string(one.Public)]
			if k.public, err = (results{Public: k.der}).public(); err != nil {
				return err
			}
			seen[string(one.Public)]++
			k.found.Store(&found{o, one.Key})
			all = append(all, k)
		}
		return nil
	})
	return all, err
}

// find finds keys in the process. The store logs in again from then on.
func (s *store) find(ctx context.Context, o *opened, k kind, a arguments) ([]foundKey, error) {
	a.Store = o.number
	r, err := o.call(ctx, k, s.owner, a)
	if err != nil {
		return nil, err
	}
	if k == opFindKey && len(r.Keys) != 1 {
		return nil, errAnswer()
	}
	s.keepLogin()
	return r.Keys, nil
}

// in returns the key in the running process.
func (k *remoteKey) in(ctx context.Context) (*found, error) {
	if f := k.found.Load(); f.opened.process.alive.Load() {
		return f, nil
	}
	o, err := k.store.in(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case k.search <- struct{}{}:
		defer func() { <-k.search }()
	case <-ctx.Done():
		return nil, interrupted(ctx, opFindKey)
	}
	if f := k.found.Load(); f.opened.process.alive.Load() {
		return f, nil
	}
	number, err := k.again(ctx, o)
	if err != nil {
		return nil, err
	}
	f := &found{o, number}
	if k.read.Load() { // the module's own name of the key is known to the process from then on
		if _, err := o.call(ctx, opReadPublic, k.store.owner, arguments{Key: number}); err != nil {
			return nil, err
		}
	}
	k.found.Store(f)
	return f, nil
}

// again finds the key in a new process. It fails with Conflict if there is another key in its place.
func (k *remoteKey) again(ctx context.Context, o *opened) (uint64, error) {
	kind, a := opFindKey, arguments{}
	if k.listed {
		kind = opFindKeys
	}
	if k.known {
		a.Public = k.der
	}
	keys, err := k.store.find(ctx, o, kind, a)
	if err != nil {
		return 0, err
	}
	nth := 0
	for _, one := range keys {
		if k.known || bytes.Equal(one.Public, k.der) {
			if nth == k.nth {
				return one.Key, nil
			}
			nth++
		}
	}
	return 0, failure.New(failure.Conflict, "the key on %s is another since the module was started again",
		k.store.Describe().URI).
		WithHint("open the key again")
}

// repeat calls do with the key in the running process, and once more in the next one if that process ends.
func (k *remoteKey) repeat(ctx context.Context, do func(o *opened, number uint64) error) error {
	defer runtime.KeepAlive(k) // the process forgets it later
	for tries := (attempts{}); ; {
		f, err := k.in(ctx)
		began := err == nil
		if began {
			err = do(f.opened, f.number)
		}
		if !tries.again(ctx, began, err) {
			return err
		}
	}
}

// Public returns the public half.
func (k *remoteKey) Public() crypto.PublicKey { return k.public }

// Sign signs a digest.
func (k *remoteKey) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.use(ctx, opSign, signing(opts), digest)
}

// SignMessage signs a message.
func (k *remoteKey) SignMessage(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.use(ctx, opSignMessage, signing(opts), message)
}

// Decrypt decrypts an RSA ciphertext.
func (k *remoteKey) Decrypt(ctx context.Context, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	u, ok := decrypting(opts)
	if !ok || u.length < 0 || u.length > math.MaxInt32 {
		return nil, failure.New(failure.Internal, "no decryption with options of type %T", opts)
	}
	return k.use(ctx, opDecrypt, u, ciphertext)
}

// ECDH returns the x coordinate shared with a public key on the same curve.
func (k *remoteKey) ECDH(ctx context.Context, remote *ecdh.PublicKey) ([]byte, error) {
	der, err := encodePublic(remote)
	if err != nil {
		return nil, err
	}
	return k.use(ctx, opECDH, use{}, der)
}

// use uses the private key. The operation changes nothing on the token, so it is repeated once if the process ends.
func (k *remoteKey) use(ctx context.Context, kind kind, u use, data []byte) (answer []byte, err error) {
	err = k.repeat(ctx, func(o *opened, number uint64) error {
		u.key = number
		answer, err = o.process.use(ctx, kind, k.store.owner, u.head(), data)
		return err
	})
	return answer, err
}

// ReadPublic asks the module for the public half, even if the key was opened with one.
func (k *remoteKey) ReadPublic(ctx context.Context) (crypto.PublicKey, error) {
	r, err := k.call(ctx, opReadPublic)
	if err != nil {
		return nil, err
	}
	k.read.Store(true)
	return r.public()
}

// Info returns the attributes that the module shows of the key.
func (k *remoteKey) Info(ctx context.Context) (key.Info, error) {
	r, err := k.call(ctx, opInfo)
	if err != nil {
		return key.Info{}, err
	}
	return r.info()
}

func (k *remoteKey) call(ctx context.Context, kind kind) (r results, err error) {
	err = k.repeat(ctx, func(o *opened, number uint64) error {
		r, err = o.call(ctx, kind, k.store.owner, arguments{Key: number})
		return err
	})
	return r, err
}
