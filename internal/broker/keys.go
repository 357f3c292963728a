package broker

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// HeldKeys are Keys that stay open.
type HeldKeys struct {
	Held *held.Keys
	// Reference returns where a key of the policy is.
	Reference func(key string) (*keystore.Reference, error)
}

// Describe returns the public half of a key and its chain.
func (k *HeldKeys) Describe(ctx context.Context, key string) (crypto.PublicKey, []*x509.Certificate, error) {
	reference, err := k.Reference(key)
	if err != nil {
		return nil, nil, err
	}
	found, err := k.Held.FindFresh(ctx, reference)
	if err != nil {
		return nil, nil, hide(key, err)
	}
	return found.Public, found.Chain, nil
}

// Sign signs bytes and verifies the signature.
func (k *HeldKeys) Sign(ctx context.Context, key string, data []byte, algorithm string) ([]byte, error) {
	reference, err := k.Reference(key)
	if err != nil {
		return nil, err
	}
	found, err := k.Held.Find(ctx, reference)
	if err != nil {
		return nil, hide(key, err)
	}
	signature, err := found.Sign(ctx, key, data, algorithm)
	return signature, hide(key, err)
}

// hide returns a failure of a module as callers see it: without the module, the token and the key's URI there. It logs
// the cause.
func hide(key string, err error) error {
	if err == nil {
		return nil
	}
	f := failure.From(err)
	slog.Error("cannot use a key", "key", key, "error", err)
	shown := failure.New(f.Kind, "cannot use key %q: %s", key, reasons[f.Kind]).
		WithHint("try again later; the operator of the broker finds the cause in its log")
	shown.CKR = f.CKR
	return shown
}

// reasons are what callers are told of a module's failures, by kind.
var reasons = map[failure.Kind]string{
	failure.Internal:    "the module misbehaved",
	failure.Invalid:     "the module refused the operation",
	failure.NotFound:    "the module does not have it",
	failure.Denied:      "the module refused the login or the operation",
	failure.Conflict:    "the module has another key in its place",
	failure.Unavailable: "the module is not available",
	failure.Throttled:   "the module has no free session",
	failure.Timeout:     "the module did not answer in time",
	failure.Unsupported: "the module does not support the operation",
}
