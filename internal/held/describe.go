package held

import (
	"context"
	"crypto"
	"crypto/x509"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// facts are what the module says of a key. They are read once, so that describing a key again takes no call.
type facts struct {
	mu       sync.Mutex
	read     bool
	info     key.Info
	receives *brokerapi.Receives // nil if the key does not unwrap layer keys
}

// Info returns what the module says of the key, and, if receives is set, of the key as one that unwraps layer keys. It
// asks the module the first time that it succeeds; receives must be the same each time.
func (h *Key) Info(ctx context.Context, receives bool) (key.Info, *brokerapi.Receives, error) {
	f := h.facts
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.read {
		return f.info, f.receives, nil
	}
	info, err := h.key.Info(ctx)
	if err != nil {
		return key.Info{}, nil, err
	}
	if receives {
		said, err := h.store.Receives(ctx, h.Public)
		if err != nil {
			return key.Info{}, nil, err
		}
		f.receives = &brokerapi.Receives{Refusal: said.Refusal, Sure: said.Sure}
		for _, hash := range said.OAEP {
			f.receives.OAEP = append(f.receives.OAEP, hash.String())
		}
	}
	f.info, f.read = info, true
	return f.info, f.receives, nil
}

// Token returns the token of the key, as the module describes it.
func (h *Key) Token() key.Token { return h.store.Describe() }

// Describe returns what callers are told of a key, without where it is: its URI, token, label and id. It fails with
// Unsupported for a public key of an unknown type.
func Describe(name string, info key.Info, public crypto.PublicKey, chain []*x509.Certificate) (*brokerapi.Key, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, failure.New(failure.Unsupported, "the key %q is of a type that callers cannot use: %w", name, err)
	}
	k := &brokerapi.Key{Name: name, Public: der, Sign: info.Sign, Decrypt: info.Decrypt, Derive: info.Derive}
	if spec, err := key.SpecOf(public); err == nil {
		k.Spec = string(spec.Name)
	}
	for _, cert := range chain {
		k.Chain = append(k.Chain, cert.Raw)
	}
	return k, nil
}
