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

// NetHSMSetup describes what SetUpNetHSM creates, as given on the command line.
type NetHSMSetup struct {
	Spec, Usage, Tag    string
	Subject             string // of a self-signed certificate; "" for none
	Days                int    // for which that certificate is valid
	Root, RootPINSource string // as in nethsm.SetupRequest
}

// SetUpNetHSM creates what the key of the settings needs and what does not exist yet: the namespace and its
// administrator, the operator with a tag, the key for that tag alone, and a self-signed certificate. confirm gets the
// plan before anything is created. notify gets each step before it is done.
func SetUpNetHSM(ctx context.Context, s *keystore.Reference, o NetHSMSetup, confirm func([]nethsm.Step) error,
	notify func(step string)) error {
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
			return failure.New(failure.Invalid, "a key with usage %s cannot sign a certificate", usage).
				WithHint("leave out --subject")
		}
	}
	backend, err := netHSM(s)
	if err != nil {
		return err
	}
	setup, err := backend.Prepare(ctx, &s.Settings, nethsm.SetupRequest{
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
	if err := setup.Run(ctx, notify); err != nil {
		return err
	}
	if o.Subject != "" {
		notify(certificate.What)
		if err := certifyNetHSM(ctx, s, o); err != nil {
			return err
		}
	}
	if usage == key.Decrypt {
		return nil
	}
	return s.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error { return proveSigning(ctx, k, k.Public()) })
}

// certifyNetHSM stores a self-signed certificate for the key, if it has no certificate yet.
func certifyNetHSM(ctx context.Context, s *keystore.Reference, o NetHSMSetup) error {
	return s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		known, err := store.Certificates(ctx)
		if err != nil || certs.LeafOf(k.Public(), known, time.Now()) != nil {
			return err
		}
		subject, err := certs.ParseSubject(o.Subject)
		if err != nil {
			return err
		}
		return selfCertify(ctx, store, k, subject, o.Days)
	})
}

// NetHSMStatus asks each instance of the settings for its state.
func NetHSMStatus(ctx context.Context, s *keystore.Reference) (*nethsm.Status, error) {
	backend, err := netHSM(s)
	if err != nil {
		return nil, err
	}
	return backend.Status(ctx, &s.Settings)
}

// netHSM returns the backend of a reference to a NetHSM.
func netHSM(s *keystore.Reference) (*nethsm.Backend, error) {
	backend, err := s.Backend()
	if err != nil {
		return nil, err
	}
	if b, ok := backend.(*nethsm.Backend); ok {
		return b, nil
	}
	return nil, failure.New(failure.Invalid, "%s is not a NetHSM", s.Key).WithHint("name it as nethsm:")
}

// NetHSMModule returns the configuration of Nitrokey's PKCS#11 module for the NetHSM of the settings.
func NetHSMModule(s *keystore.Reference, label, log string) ([]byte, error) {
	backend, err := netHSM(s)
	if err != nil {
		return nil, err
	}
	return backend.ModuleConfig(&s.Settings, label, log)
}

// BackUpNetHSM writes a backup of the whole NetHSM to a file that only this user can read, and reads it back. It
// returns its size in bytes and its SHA-256 in hex. An interrupted backup leaves no file.
func BackUpNetHSM(ctx context.Context, s *keystore.Reference, path string) (size int, digest string, err error) {
	backend, err := netHSM(s)
	if err != nil {
		return 0, "", err
	}
	data, err := backend.Backup(ctx, &s.Settings)
	if err != nil {
		return 0, "", err
	}
	if err := state.Write(path, data, 0o600); err != nil {
		return 0, "", err
	}
	written, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(written, data) {
		err = errors.New("the file differs from what the NetHSM sent")
	}
	if err != nil {
		return 0, "", failure.New(failure.Internal, "cannot read back the backup %s, which was removed: %w", path,
			errors.Join(err, os.Remove(path))).
			WithHint("write it to another disk")
	}
	sum := sha256.Sum256(data)
	return len(data), hex.EncodeToString(sum[:]), nil
}
