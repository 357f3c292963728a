package custody

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Rotation replaces the key behind one of Notation's signing keys. Its JSON is the journal, which is written before
// anything is created and removed at the end. The journal has all decisions; the token and Notation's list show what is
// done already. So an interrupted rotation is finished by running it again, with no second key or certificate.
type Rotation struct {
	Name    string            `json:"name"` // of Notation's signing key
	Begun   time.Time         `json:"begun"`
	Spec    string            `json:"spec"`
	Source  CertificateSource `json:"way"`
	CA      string            `json:"ca,omitempty"`
	Subject string            `json:"subject"`
	Days    int               `json:"days"` // for which the new certificate is valid
	CRL     string            `json:"crl,omitempty"`
	OCSP    string            `json:"ocsp,omitempty"`

	OldID   string   `json:"oldID"`          // key reference in Notation's entry before the rotation
	OldName string   `json:"oldName"`        // name in Notation's list that the old key gets
	Label   string   `json:"label"`          // of the new key
	ID      string   `json:"id"`             // CKA_ID of the new key in hex
	Tags    []string `json:"tags,omitempty"` // of the old key and so of the new one, as in key.Info
	NewID   string   `json:"newID"`          // key reference in Notation's entry after the rotation
	Made    bool     `json:"made"`           // whether the new key exists and has made a signature; then it is kept

	PluginConfig map[string]string `json:"pluginConfig,omitempty"` // of Notation's entry for the new key
}

// CertificateSource is where the new key gets its certificate.
type CertificateSource string

// The sources.
const (
	SelfSigned CertificateSource = "self-signed"
	FromCA     CertificateSource = "ca"      // a CA of internal/ca
	ByRequest  CertificateSource = "request" // another CA, which gets a certificate request
)

// RotationRequest describes a rotation, as given on the command line.
type RotationRequest struct {
	Name        string            // of Notation's signing key
	Given       map[string]string // settings that override those of Notation's entry
	CAFolder    string
	CA          string // CA that issues the certificate; "" for the source of the old certificate
	Request     string // file for a certificate request; the rotation then waits for the certificate
	Certificate string // file with the certificate that the rotation waits for

	keystore *keystore.Keystore
}

// lockWait is how long Rotate waits for another rotation of this user.
const lockWait = 10 * time.Second

// Rotate starts a rotation or resumes an interrupted one. confirm gets the plan before anything is created, unless the
// rotation is resumed. notify gets each step; the last one comes before the journal is removed.
func Rotate(ctx context.Context, ks *keystore.Keystore, o RotationRequest, confirm func(*Rotation) error,
	notify Notify) error {
	o.keystore = ks
	journal, err := journalPath(o.Name)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	unlock, err := state.Lock(limited, filepath.Dir(journal))
	if err != nil {
		return err
	}
	defer unlock()
	r, err := readJournal(journal)
	switch {
	case err != nil:
		return err
	case r != nil:
		err = r.checkRequest(o, journal)
		if err == nil {
			notify("resuming the rotation of %q that was started on %s", r.Name, r.Begun.Format("2006-01-02 15:04:05 MST"))
		}
	default:
		r, err = startRotation(ctx, o, confirm, notify)
	}
	if err != nil {
		return err
	}
	done, err := r.resume(ctx, o, notify)
	if err != nil || !done {
		return err
	}
	if err := os.Remove(journal); err != nil {
		return failure.New(failure.Internal, "the rotation is finished, but its journal cannot be removed: %w", err).
			WithHint("remove the file")
	}
	return nil
}

// checkRequest fails unless a request can resume the rotation of a journal.
func (r *Rotation) checkRequest(o RotationRequest, journal string) error {
	if r.Name != o.Name {
		return failure.New(failure.Invalid, "the journal %s is damaged: it is of the rotation of %q", journal, r.Name).
			WithHint("restore the file; or remove it to start again")
	}
	if (o.Request != "" || o.Certificate != "") && r.Source != ByRequest || o.CA != "" && o.CA != r.CA {
		return failure.New(failure.Conflict,
			"the rotation of %q that was started on %s gets its certificate from another source", r.Name,
			r.Begun.Format(time.DateOnly)).
			WithHint("run it again without --csr, --cert and --ca; or, to start again, remove " + journal)
	}
	return nil
}

// startRotation plans a rotation and writes its journal.
func startRotation(ctx context.Context, o RotationRequest, confirm func(*Rotation) error, notify Notify) (*Rotation,
	error) {
	if o.Certificate != "" {
		return nil, failure.New(failure.NotFound, "no rotation of %q waits for a certificate", o.Name).
			WithHint("start with --csr FILE, have a CA answer the request, and then run this again with --cert")
	}
	r, err := planRotation(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := confirm(r); err != nil {
		return nil, err
	}
	// Settings of the config file under the old key's alias become those of Notation's entry, whose programs must be
	// listed.
	if err := Allow(ctx, r.NewID, r.PluginConfig, config.PluginConfig, notify); err != nil {
		return nil, err
	}
	return r, r.write()
}

// resume does the steps that are not done yet. It returns false if the rotation waits for a certificate.
func (r *Rotation) resume(ctx context.Context, o RotationRequest, notify Notify) (done bool, err error) {
	keys, err := loadSigningKeys()
	if err != nil {
		return false, err
	}
	entry := keys.find(r.Name)
	if entry == nil || !entry.isOwn() || entry.ID != r.OldID && entry.ID != r.NewID {
		journal, _ := journalPath(r.Name)
		return false, failure.New(failure.Conflict, "Notation's signing key %q was changed during its rotation", r.Name).
			WithHint("set it back to " + quoted(r.OldID) + "; or, to abandon the rotation, remove " + journal)
	}
	if entry.ID == r.OldID {
		s, err := o.keystore.ResolveStored(r.NewID, r.PluginConfig, config.PluginConfig, o.Given)
		if err != nil {
			return false, err
		}
		if err := r.ensureKey(ctx, s, notify); err != nil {
			return false, err
		}
		if done, err := r.ensureCertificate(ctx, s, o, notify); err != nil || !done {
			return false, err
		}
		if err := r.replaceEntry(keys); err != nil {
			return false, err
		}
	}
	notify("Notation's signing key %q is now %s", r.Name, r.NewID)
	notify("the old key is kept as %q: nothing signs with it any more, and its signatures still verify", r.OldName)
	if r.Source == SelfSigned {
		notify("next: give the new certificate to everyone who verifies: notation-hsm cert export %s", quoted(r.NewID))
	}
	return true, nil
}

// ensureKey generates the new key if it does not exist. Its random id is in the journal, so no other key has it. An
// interrupted module can leave an incomplete key. No certificate is issued for it yet, so a key that does not sign is
// deleted and generated again.
func (r *Rotation) ensureKey(ctx context.Context, s *keystore.Reference, notify Notify) error {
	if r.Made {
		return nil
	}
	exists, err := discardIncomplete(ctx, s)
	if err != nil {
		return err
	}
	if !exists {
		if err := r.generate(ctx, s); err != nil {
			return err
		}
	}
	r.Made = true
	if err := r.write(); err != nil {
		return err
	}
	notify("generated the key %q", r.Label)
	return nil
}

func (r *Rotation) generate(ctx context.Context, s *keystore.Reference) error {
	spec, err := key.ParseSpec(r.Spec)
	if err != nil {
		return err
	}
	id, err := hex.DecodeString(r.ID)
	if err != nil {
		return err
	}
	request := key.Request{Spec: spec, Usage: key.Sign, Label: r.Label, ID: id, Tags: r.Tags}
	if _, err := s.Generate(ctx, request); err != nil {
		return err
	}
	return s.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error { return proveSigning(ctx, k, k.Public()) })
}

// discardIncomplete reports whether the key of the settings exists and signs. It deletes the objects of a key that does
// not.
func discardIncomplete(ctx context.Context, s *keystore.Reference) (exists bool, err error) {
	store, err := s.Open(ctx)
	if err != nil {
		return false, err
	}
	defer store.Close()
	found, err := store.Keys(ctx)
	if err != nil {
		return false, err
	}
	if len(found) == 1 && proveSigning(ctx, found[0], found[0].Public()) == nil {
		return true, nil
	}
	return false, store.Discard(ctx)
}

// ensureCertificate gets the new key its certificate, if it has none, and checks that the key signs under it. It
// returns false if the rotation waits for a certificate.
func (r *Rotation) ensureCertificate(ctx context.Context, s *keystore.Reference, o RotationRequest,
	notify Notify) (done bool, err error) {
	missing, err := r.checkChain(ctx, s)
	if err != nil || missing == nil {
		return err == nil, err
	}
	switch r.Source {
	case SelfSigned:
		err = r.selfSign(ctx, s)
	case FromCA:
		err = r.issue(ctx, s, o.CAFolder)
	case ByRequest:
		if o.Certificate == "" {
			return false, r.request(ctx, s, o.Request, notify)
		}
		_, _, err = Import(ctx, s, o.Certificate)
	}
	if err != nil {
		return false, err
	}
	if missing, err = r.checkChain(ctx, s); err != nil || missing != nil {
		return false, errors.Join(err, missing)
	}
	notify("the key %q has its certificate", r.Label)
	return true, nil
}

// checkChain returns in missing which certificate of its chain the new key lacks. It is nil if the chain is complete;
// then the key has made a signature that verifies under it.
func (r *Rotation) checkChain(ctx context.Context, s *keystore.Reference) (missing, err error) {
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		known, err := certificates(ctx, store, s)
		if err != nil {
			return err
		}
		leaf := certs.LeafOf(k.Public(), known, time.Now())
		if leaf == nil {
			missing = withoutCertificate(r.NewID)
			return nil
		}
		var chain []*x509.Certificate
		if chain, missing = certs.Chain(leaf, known, nil, time.Now()); missing != nil {
			return nil //nolint:nilerr // it is returned as missing
		}
		if err := certs.Check(chain, time.Now()); err != nil {
			return err
		}
		return proveSigning(ctx, k, leaf.PublicKey)
	})
	return missing, err
}

// replaceEntry gives Notation's entry the new key and adds an entry with the old one, in one write.
func (r *Rotation) replaceEntry(keys *signingKeys) error {
	entry := keys.find(r.Name)
	old := *entry
	old.Name = r.OldName
	entry.ID, entry.PluginConfig = r.NewID, r.PluginConfig
	keys.Keys = append(keys.Keys, old)
	return keys.save()
}
