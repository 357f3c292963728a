package layerkey

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Keys are the private keys that may open layers. A module is opened when the first layer needs it, and logged in to
// once, however many layers there are.
type Keys struct {
	keystore   *keystore.Keystore
	references []string
	origin     config.Origin
	stores     []keystore.Store
	candidates []*candidate
	prepared   bool  // the candidates were looked for
	unprepared error // why there are none
	tries      int   // how often a key was used
}

// OpenKeys prepares the keys that references name, by URI or alias; they stand in origin. Without any, they are the
// keys of the token that the settings name, and only a layer that names its recipients by kid finds the right one.
func OpenKeys(ks *keystore.Keystore, references []string, origin config.Origin) *Keys {
	return &Keys{keystore: ks, references: references, origin: origin}
}

// Close ends the sessions and, with them, the logins.
func (k *Keys) Close() error {
	var first error
	for _, store := range slices.Backward(k.stores) { // the first is the one that ends the module
		if err := store.Close(); err != nil && first == nil {
			first = err
		}
	}
	k.stores = nil
	return first
}

// Open returns the options of a layer (JSON, as ocicrypt has them), which hold its key, by the annotations of its
// descriptor. Only the key that fits a wrapped key is used. It fails with Invalid when none does, with Denied or
// Timeout when the module does not let it be used.
func (k *Keys) Open(ctx context.Context, annotations map[string]string) ([]byte, error) {
	found, err := packets(annotations)
	if err != nil {
		return nil, err
	}
	if err := k.prepare(ctx); err != nil {
		return nil, err
	}
	var holders []string
	var failed error
	tries := 0
	for _, p := range found {
		w, err := p.parse()
		if err != nil {
			return nil, err
		}
		if err := checkRecipients(len(holders) + len(w.locks)); err != nil {
			return nil, err
		}
		for _, l := range w.locks {
			holders = append(holders, l.String())
			for _, c := range k.candidatesFor(l) {
				if tries++; tries > triesLimit {
					return nil, failure.New(failure.Invalid,
						"the layer has more wrapped keys than the %d that are tried: %w", triesLimit, failed).
						WithHint("ask who published the image, or have it encrypted to a kid")
				}
				if k.tries++; k.tries > operationsLimit {
					return nil, failure.New(failure.Invalid,
						"the layers have more wrapped keys than the %d that are tried at once", operationsLimit).
						WithHint("open the images of an index one at a time, with --platform")
				}
				options, err := c.open(ctx, w, l)
				if err == nil {
					return options, nil
				}
				slog.Debug("a wrapped key did not open", "holder", l.String(), "key", c.name, "error", err)
				failed = err
				if failure.Is(err, failure.Unsupported) { // it may be wrapped in another way as well
					continue
				}
				if l.KeyID != "" || failure.Is(err, failure.Denied) || failure.Is(err, failure.Timeout) {
					return nil, err
				}
			}
		}
	}
	if failure.Is(failed, failure.Unsupported) {
		return nil, failed
	}
	if failed != nil {
		return nil, failure.New(failure.Invalid, "none of the wrapped keys opens with %s: %w", k.names(), failed).
			WithHint("the image may be encrypted to another key of the same kind, or its annotations were changed")
	}
	if more := len(holders) - 5; more > 0 {
		holders = append(holders[:5], fmt.Sprintf("%d more", more))
	}
	return nil, failure.New(failure.Invalid,
		"no key here opens the layer: it is encrypted for %s; here is %s", strings.Join(holders, ", "), k.names()).
		WithHint("name the right key, or have one who can open the image add yours with 'hsm-image recipients add'")
}

// What images can ask of a module: triesLimit for one layer, operationsLimit for all that are opened together. An image
// has at most 127 layers with today's runtimes, and most indexes have fewer than 32 images.
const (
	triesLimit      = 32
	operationsLimit = 4096
)

// candidatesFor returns the keys that fit a lock: the one with its kid, or for a lock without one, those of its kind
// that the user named. On a token whose keys nobody named, several of the kind are none: which one is meant is not to
// be found by trying.
func (k *Keys) candidatesFor(l lock) []*candidate {
	var fitting []*candidate
	for _, c := range k.candidates {
		if c.fits(l) {
			fitting = append(fitting, c)
		}
	}
	if len(fitting) > 1 && l.KeyID == "" && len(k.references) == 0 {
		return nil
	}
	return fitting
}

func (k *Keys) names() string {
	if len(k.candidates) == 0 {
		return "no key"
	}
	var names []string
	for _, c := range k.candidates {
		names = append(names, fmt.Sprintf("%s (kid %s)", c.name, c.kid))
	}
	return strings.Join(names, ", ")
}

// prepare finds the candidates, once; a later call returns the failure of the first.
func (k *Keys) prepare(ctx context.Context) error {
	if k.prepared {
		return k.unprepared
	}
	k.prepared = true
	if len(k.references) == 0 {
		k.unprepared = k.prepareAll(ctx)
	} else {
		k.unprepared = k.prepareNamed(ctx)
	}
	return k.unprepared
}

// open opens the store of a reference, until Close.
func (k *Keys) open(ctx context.Context, reference string) (keystore.Store, error) {
	s, err := k.keystore.Resolve(reference, nil, k.origin)
	if err != nil {
		return nil, err
	}
	store, err := s.Open(ctx)
	if err == nil {
		k.stores = append(k.stores, store)
	}
	return store, err
}

func (k *Keys) prepareNamed(ctx context.Context) error {
	for _, reference := range k.references {
		if reference == "" {
			return failure.New(failure.Invalid, "a key to open with was given, and has no name").WithHint("is a variable empty?")
		}
		store, err := k.open(ctx, reference)
		if err != nil {
			return err
		}
		public, err := store.Public(ctx)
		if err != nil {
			return err
		}
		k.candidates = append(k.candidates, newCandidate(config.Redact(reference), public, store, nil))
	}
	return nil
}

func (k *Keys) prepareAll(ctx context.Context) error {
	store, err := k.open(ctx, "")
	if err != nil {
		return err
	}
	keys, err := store.Keys(ctx)
	if err != nil {
		return err
	}
	for _, key := range keys {
		info, err := key.Info(ctx)
		if err != nil {
			return err
		}
		k.candidates = append(k.candidates, newCandidate(info.URI, info.Public, store, key))
	}
	return nil
}
