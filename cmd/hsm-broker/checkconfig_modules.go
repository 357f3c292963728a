package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"fmt"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// whichOf returns the path of one of the URIs of a key, from that of the key if it has one alone.
func whichOf(where string, uris []string, i int) string {
	if len(uris) == 1 {
		return where
	}
	if !strings.HasSuffix(where, logKeyPath) {
		where += ".key"
	}
	return fmt.Sprintf("%s[%d]", where, i)
}

// logKeyPath is the path of the log's key in the config.
const logKeyPath = ": log.key"

// modules logs in to the modules, and looks at each key in each of its modules.
func (f *findings) modules(ctx context.Context, c *brokerfile.File, p *policy.Policy) {
	refused, err := openRefusals(ctx, c)
	if err != nil {
		f.failed(f.file+": store", err)
		return
	}
	defer refused.Close()
	ks := backends.GuardedService(refused.Guard)
	defer ks.Close()
	look := &looking{findings: f, config: c, keystore: ks}
	logKey := look.at(ctx, f.file+logKeyPath, c.Log.Key, "", signedCheckpoint(c), func(_ keystore.Store,
		k keystore.Key) error {
		if _, ok := k.Public().(*ecdsa.PublicKey); !ok {
			return failure.New(failure.Unsupported, "the log's key is no EC key").WithHint("generate one with --spec EC-256")
		}
		return nil
	})
	for _, k := range p.Keys() {
		chain := c.Keys[k.Name].CertificateChain
		said := false
		look.at(ctx, c.Policy+": keys."+k.Name, k.URIs, chain, held.RightByChain(chain),
			func(s keystore.Store, opened keystore.Key) error {
				if own, ok := opened.Public().(*ecdsa.PublicKey); ok && logKey != nil && own.Equal(logKey) {
					return failure.New(failure.Denied, "it is the log's key").WithHint("make a key of its own for the log")
				}
				leaf, err := s.Leaf(ctx)
				if err == nil && leaf == nil && chain == "" && slices.Contains(k.Formats, payload.Notation) && !said {
					said = true
					f.warn(f.file, "keys.%s has no certificate beside it on the token, and no certificate-chain", k.Name)
				}
				return err
			})
	}
}

// looking looks at keys in modules.
type looking struct {
	*findings
	config   *brokerfile.File
	keystore *keystore.Keystore
}

// at looks at a key in each of its modules, and returns its public half, or nil. A module that fails is a mistake if
// the key is in no other that works. One with another public key always is.
func (l *looking) at(ctx context.Context, where string, uris []string, chain string,
	right func(crypto.PublicKey) (bool, error), do func(keystore.Store, keystore.Key) error) (public crypto.PublicKey) {
	failed := map[int]error{}
	for i, uri := range uris {
		r, err := reference(l.keystore, l.config, uri, chain)
		if err == nil {
			err = r.WithKey(ctx, func(s keystore.Store, k keystore.Key) error {
				if err := s.Login(ctx); err != nil {
					return err
				}
				if err := do(s, k); err != nil {
					return err
				}
				return l.same(whichOf(where, uris, i), len(uris) > 1, k, right, &public)
			})
		}
		if err != nil {
			failed[i] = err
		}
	}
	for i := range uris {
		switch err := failed[i]; {
		case err == nil:
		case public == nil || failure.Is(err, failure.Denied) || failure.Is(err, failure.Unsupported):
			l.failed(whichOf(where, uris, i), err)
		default:
			l.warn(whichOf(where, uris, i), "%s", failure.From(err).What)
		}
	}
	return public
}

// same reports a key whose public half is not the one that is right, if it is in several modules: that of the first.
func (l *looking) same(where string, several bool, k keystore.Key, right func(crypto.PublicKey) (bool, error),
	first *crypto.PublicKey) error {
	is := true
	if several && right != nil {
		var err error
		if is, err = right(k.Public()); err != nil {
			return err
		}
	}
	own, ok := k.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !is || *first != nil && (!ok || !own.Equal(*first)):
		l.mistake(where, "restore the key on that token, or remove its URI from the key",
			"the module has another key: its public key is not that of the others, or of the key's certificate")
	case *first == nil:
		*first = k.Public()
	}
	return nil
}
