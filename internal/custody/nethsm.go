package custody

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/nethsm"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// NetHSMOrder is what a pipeline needs of a NetHSM, in the words of the command.
type NetHSMOrder struct {
	Spec, Usage, Tag    string
	Subject             string // of a self-signed certificate; "" for none
	Days                int
	Root, RootPINSource string // as in nethsm.Order
}

// SetUpNetHSM makes, for the key that the settings name, all that is not there: namespace and administrator, operator
// with a tag, key for that tag alone, and a self-signed certificate. confirm sees the plan before anything is made; say
// is told of each step.
func SetUpNetHSM(ctx context.Context, s *keystore.Reference, o NetHSMOrder, confirm func([]nethsm.Step) error,
	say func(what string)) error {
	spec, err := key.ParseSpec(o.Spec)
	if err != nil {
		return err
	}
	usage, err := key.ParseUsage(o.Usage)
	if err != nil {
		return err
	}
	if o.Subject != "" {
		if _, err := certs.ParseSubject(o.Subject); err != nil {
			return err
		}
		if usage != key.Sign {
			return failure.New(failure.Invalid, "a key that does not sign can't sign its certificate").
				WithHint("leave out --subject")
		}
	}
	setup, err := nethsm.Prepare(ctx, &s.Settings, nethsm.Order{
		Request: key.Request{Spec: spec, Usage: usage, Label: s.Key.Object}, Tag: o.Tag, Root: o.Root,
		RootPINSource: o.RootPINSource,
	})
	if err != nil {
		return err
	}
	defer setup.Close()
	plan := setup.Steps
	certificate := nethsm.Step{What: fmt.Sprintf("self-signed certificate of %q for key %s, for %d days, if it has none",
		o.Subject, s.Key, o.Days)}
	if o.Subject != "" {
		plan = append(plan[:len(plan):len(plan)], certificate)
	}
	if err := confirm(plan); err != nil {
		return err
	}
	if err := setup.Run(say); err != nil {
		return err
	}
	if o.Subject != "" {
		say(certificate.What)
		if err := certifyNetHSM(ctx, s, o); err != nil {
			return err
		}
	}
	if usage == key.Decrypt {
		return nil
	}
	return s.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error { return prove(ctx, k, k.Public()) })
}

func certifyNetHSM(ctx context.Context, s *keystore.Reference, o NetHSMOrder) error {
	return s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		there, err := store.Certificates(ctx)
		if err != nil || certs.LeafOf(k.Public(), there, time.Now()) != nil {
			return err
		}
		subject, err := certs.ParseSubject(o.Subject)
		if err != nil {
			return err
		}
		return selfCertify(ctx, store, k, subject, o.Days)
	})
}

// NetHSMStatus asks the instances of the settings for their state.
func NetHSMStatus(ctx context.Context, s *keystore.Reference) (*nethsm.Status, error) {
	return nethsm.Ask(ctx, &s.Settings)
}

// NetHSMModule returns the configuration of Nitrokey's PKCS#11 module for the NetHSM of the settings.
func NetHSMModule(s *keystore.Reference, label, log string) ([]byte, error) {
	return nethsm.ModuleConfig(&s.Settings, label, log)
}

// BackUpNetHSM writes a backup of the whole NetHSM to a file, readable for its owner alone, once it is there from its
// beginning to its end; and reads it back. It returns its size in bytes and its SHA-256 in hex.
func BackUpNetHSM(ctx context.Context, s *keystore.Reference, path string) (size int, digest string, err error) {
	data, err := nethsm.Backup(ctx, &s.Settings)
	if err != nil {
		return 0, "", err
	}
	if err := state.Write(path, data, 0o600); err != nil {
		return 0, "", err
	}
	written, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(written, data) {
		err = errors.New("it holds something else than the NetHSM gave")
	}
	if err != nil {
		return 0, "", failure.New(failure.Internal,
			"the backup %s can't be read back, and is removed: %w", path, errors.Join(err, os.Remove(path))).
			WithHint("write it to another disk")
	}
	sum := sha256.Sum256(data)
	return len(data), hex.EncodeToString(sum[:]), nil
}
