package custody

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// accepting is a key that is used for some formats alone: a broker's.
type accepting interface{ Formats() []payload.Format }

// formatsOf returns what a broker accepts for a key; nil for a key without a broker, which signs anything.
func formatsOf(k keystore.Key) []payload.Format {
	if limited, ok := k.(accepting); ok {
		return limited.Formats()
	}
	return nil
}

// checkAccepted fails unless a key signs Notation's payloads, where its broker limits what it signs.
func checkAccepted(formats []payload.Format) error {
	if formats == nil || slices.Contains(formats, payload.Notation) {
		return nil
	}
	return failure.New(failure.Denied, "its broker does not sign Notation's payloads with it").
		WithHint("start 'hsm-broker agent' with --formats notation, or list notation under formats in the broker's policy")
}

// blockable is a key that a broker can refuse to use for a while.
type blockable interface{ State() string }

// authenticated is a backend that shows credentials to what holds the keys.
type authenticated interface {
	Credentials(ctx context.Context, s *config.Settings) (string, error)
}

// ofBroker lists the checks of a key that is used through a broker, from this side: what is behind the broker, such as
// the login and how the key is kept, is examined where the module is.
func (e *examination) ofBroker() []step {
	return []step{
		{"credentials", "", e.checkCredentials},
		{"broker", "credentials", e.checkBroker},
		{"key", "broker", e.checkKey},
		{"state", "key", e.checkState},
		{"formats", "key", e.checkFormats},
		{"certificate", "key", e.checkCertificate},
		{"chain", "certificate", e.checkChain},
		{"expiry", "certificate", e.checkExpiry},
		{"plugin", "", checkPlugin},
		{"signing key", "key", e.checkSigningKey},
		{"trust policy", "chain", e.checkTrustPolicy},
		{"test signature", "key", untested},
	}
}

// checkCredentials looks for what authenticates this process to the broker, without showing it to the broker.
func (e *examination) checkCredentials(ctx context.Context) (Check, error) {
	backend, err := e.settings.Backend()
	if err != nil {
		return Check{}, err
	}
	shown := "none are needed"
	if a, ok := backend.(authenticated); ok {
		if shown, err = a.Credentials(ctx, &e.settings.Settings); err != nil {
			return Check{}, err
		}
	}
	return ok("%s", shown), nil
}

// checkState fails for a key that the broker does not use now.
func (e *examination) checkState(context.Context) (Check, error) {
	state := "ready"
	if b, ok := e.key.(blockable); ok && b.State() != "" {
		state = b.State()
	}
	switch state {
	case "ready":
		return ok("the broker uses the key"), nil
	case "blocked":
		return Check{}, failure.New(failure.Denied, "the key is blocked at the broker").
			WithHint("ask who runs the broker why, and request that it is unblocked")
	}
	return Check{}, failure.New(failure.Unavailable, "the broker cannot use the key now: its state is %q", state).
		WithHint("look at the broker's readiness, at " + e.settings.Broker + "/readyz")
}

func (e *examination) checkBroker(ctx context.Context) (_ Check, err error) {
	if e.store, err = e.settings.Open(ctx); err != nil {
		e.store = nil
		return Check{}, err
	}
	return describeBroker(e.settings, e.store.Describe()), nil
}

func describeBroker(s *keystore.Reference, t key.Token) Check {
	if t.URI == config.BrokerScheme { // a team's broker does not say where its keys are
		return ok("%s answers", s.Broker)
	}
	return ok("%s answers, and holds %s", s.Broker, t.URI)
}

func (e *examination) checkFormats(context.Context) (Check, error) {
	formats := formatsOf(e.key)
	names := make([]string, len(formats))
	for i, f := range formats {
		names[i] = string(f)
	}
	if err := checkAccepted(formats); err != nil {
		return Check{}, err
	}
	if isFalse(e.info.Sign) {
		return Check{}, failure.New(failure.Denied, "the key cannot sign (CKA_SIGN is false)").
			WithHint("use or generate a signing key")
	}
	return ok("the broker accepts %s", strings.Join(names, ", ")), nil
}

// untested says why no test signature is made.
func untested(context.Context) (Check, error) {
	return Check{Outcome: NotChecked, Detail: "a broker signs artifacts alone: sign an image to test the key"}, nil
}

// surveyBroker checks the broker that the settings name, by listing its keys.
func surveyBroker(ctx context.Context, s *keystore.Reference) (Check, error) {
	store, err := s.Open(ctx)
	if err != nil {
		return Check{}, err
	}
	defer store.Close()
	keys, err := store.Keys(ctx)
	if err != nil {
		return Check{}, err
	}
	c := describeBroker(s, store.Describe())
	c.Detail += fmt.Sprintf(", with %d key(s)", len(keys))
	return c, nil
}
