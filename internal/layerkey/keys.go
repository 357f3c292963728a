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

// Keys are the private keys that may open layers. Their modules are opened for the first layer, with one login, and
// stay open until Close.
type Keys struct {
	keystore   *keystore.Keystore
	references []string
	origin     config.Origin
	stores     []keystore.Store
	candidates []*candidate
	prepared   bool  // the candidates were searched for
	unprepared error // why the search failed
	tries      int   // operations with private keys so far
}

// OpenKeys returns the keys that references name, by URI or alias; origin is where the references come from. Without
// references, they are all keys of the token that the settings name. It opens no module; Open does.
func OpenKeys(ks *keystore.Keystore, references []string, origin config.Origin) *Keys {
	return &Keys{keystore: ks, references: references, origin: origin}
}

// Close ends the sessions and, with the last of each token, the login.
func (k *Keys) Close() error {
	var first error
	for _, store := range slices.Backward(k.stores) {
		if err := store.Close(); err != nil && first == nil {
			first = err
		}
	}
	k.stores = nil
	return first
}

// Open returns the options of a layer (ocicrypt's JSON, with the layer's key) from the annotations of its descriptor.
// It uses a private key only for wrapped keys that fit it. It fails with Invalid when no key opens the layer, and with
// Denied or Timeout when the module refuses or does not answer; then it tries no other key.
func (k *Keys) Open(ctx context.Context, annotations map[string]string) ([]byte, error) {
	found, err := packets(annotations)
	if err != nil {
		return nil, err
	}
	if err := k.prepare(ctx); err != nil {
		return nil, err
	}
	layer := opening{keys: k}
	for _, p := range found {
		parsed, err := p.parse()
		if err != nil {
			return nil, err
		}
		if err := checkRecipients(len(layer.recipients) + len(parsed.keys)); err != nil {
			return nil, err
		}
		for _, wrapped := range parsed.keys {
			if options, err := layer.try(ctx, parsed, wrapped); options != nil || err != nil {
				return options, err
			}
		}
	}
	return nil, layer.failure()
}

// An opening is the search for the wrapped key of one layer that opens.
type opening struct {
	keys       *Keys
	recipients []string // of the wrapped keys so far
	failed     error    // of the last wrapped key that did not open
	tries      int
}

// try opens a wrapped key with the candidates that it fits. It returns options, or an error that ends the search, or
// neither.
func (o *opening) try(ctx context.Context, p parsedPacket, wrapped wrappedKey) ([]byte, error) {
	o.recipients = append(o.recipients, wrapped.String())
	for _, c := range o.keys.candidatesFor(wrapped) {
		if err := o.count(); err != nil {
			return nil, err
		}
		options, err := c.open(ctx, p, wrapped)
		if err == nil {
			return options, nil
		}
		slog.Debug("a wrapped key did not open", "recipient", wrapped.String(), "key", c.name, "error", err)
		o.failed = err
		if failure.Is(err, failure.Unsupported) { // the layer may have another wrapped key, in an algorithm that is supported
			continue
		}
		if wrapped.KeyID != "" || failure.Is(err, failure.Denied) || failure.Is(err, failure.Timeout) ||
			failure.Is(err, failure.Unavailable) {
			return nil, err
		}
	}
	return nil, nil
}

// count counts a use of a private key, and fails with Invalid when there were too many.
func (o *opening) count() error {
	if o.tries++; o.tries > triesLimit {
		return failure.New(failure.Invalid,
			"the layer has more wrapped keys than the %d that are tried: %w", triesLimit, o.failed).
			WithHint("encrypt the image with a tool that names recipients by kid, such as 'hsm-image encrypt'")
	}
	if o.keys.tries++; o.keys.tries > operationsLimit {
		return failure.New(failure.Invalid,
			"the layers have more wrapped keys than the %d that are tried at once", operationsLimit).
			WithHint("open the images of an index one at a time, with --platform")
	}
	return nil
}

// failure returns why no wrapped key opened.
func (o *opening) failure() error {
	if failure.Is(o.failed, failure.Unsupported) {
		return o.failed
	}
	if o.failed != nil {
		return failure.New(failure.Invalid, "none of the wrapped keys opens with %s: %w", o.keys.names(), o.failed).
			WithHint("name the recipient's key; if that is it, get the image's manifest again from where it was published")
	}
	if more := len(o.recipients) - 5; more > 0 {
		o.recipients = append(o.recipients[:5], fmt.Sprintf("%d more", more))
	}
	return failure.New(failure.Invalid, "no key here opens the layer: it is encrypted for %s; here is %s",
		strings.Join(o.recipients, ", "), o.keys.names()).
		WithHint("name a recipient's key, or have a recipient add yours with 'hsm-image recipients add'")
}

// How often private keys are used: triesLimit for one layer, operationsLimit for all layers that are opened together.
// An image has at most 127 layers with today's runtimes, and most indexes have fewer than 32 images.
const (
	triesLimit      = 32
	operationsLimit = 4096
)

// candidatesFor returns the keys that a wrapped key fits: the one with its kid, or for a wrapped key without a kid,
// those of its type and size. Of several keys that the user did not name, it returns none: an image must not make every
// key of a token decrypt.
func (k *Keys) candidatesFor(wrapped wrappedKey) []*candidate {
	var fitting []*candidate
	for _, c := range k.candidates {
		if c.fits(wrapped) {
			fitting = append(fitting, c)
		}
	}
	if len(fitting) > 1 && wrapped.KeyID == "" && len(k.references) == 0 {
		return nil
	}
	return fitting
}

// names returns the candidates for error messages.
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

// prepare finds the candidates, once. A later call returns the failure of the first: a PIN that was refused is not
// tried again.
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

// open opens the token that a reference names, until Close.
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

// prepareNamed finds the keys that the user named, without a login where the token allows that.
func (k *Keys) prepareNamed(ctx context.Context) error {
	for _, reference := range k.references {
		if reference == "" {
			return failure.New(failure.Invalid, "empty key reference").
				WithHint("name a key by URI or alias; check that no variable is empty")
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

// prepareAll finds all private keys of the token that the settings name.
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
