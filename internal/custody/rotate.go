package custody

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Rotation replaces the key behind one of Notation's signing keys. It is also the journal: it is written before
// anything is made, with all that was decided, and removed when all is done. What has been done in between is told by
// the token and by Notation's list, so a rotation that was cut short anywhere is finished by running it again, with no
// second key and no second certificate.
type Rotation struct {
	Name    string    `json:"name"` // of Notation's signing key
	Begun   time.Time `json:"begun"`
	Spec    string    `json:"spec"`
	Way     Way       `json:"way"`
	CA      string    `json:"ca,omitempty"`
	Subject string    `json:"subject"`
	Days    int       `json:"days"`
	CRL     string    `json:"crl,omitempty"`
	OCSP    string    `json:"ocsp,omitempty"`

	OldID   string   `json:"oldID"`          // what Notation's entry says now
	OldName string   `json:"oldName"`        // the name that the old key is kept under
	Label   string   `json:"label"`          // of the new key
	ID      string   `json:"id"`             // CKA_ID of the new key, in hex
	Tags    []string `json:"tags,omitempty"` // who may use the old key, and so the new one
	NewID   string   `json:"newID"`          // what Notation's entry will say
	Made    bool     `json:"made"`           // the new key is there and has signed; from here on it is kept

	PluginConfig map[string]string `json:"pluginConfig,omitempty"` // of Notation's entry, for the new key
}

// Way is where the new certificate comes from: from where the old one did.
type Way string

const (
	SelfSigned Way = "self-signed"
	FromCA     Way = "ca"
	ByRequest  Way = "request" // a CA that is not ours answers a certificate request
)

// Order is a rotation as it was asked for.
type Order struct {
	Name        string
	Given       map[string]string // settings stronger than those of Notation's entry
	CAFolder    string
	CA          string // issue from this CA; "" finds out
	Request     string // write a certificate request to this file, and stop
	Certificate string // go on with the certificate in this file

	keystore *keystore.Keystore
}

// Rotate carries out an order. confirm sees the plan before anything is made, and is not asked again when a rotation
// goes on; say is told of each step, the last of them before the journal goes.
func Rotate(ctx context.Context, ks *keystore.Keystore, o Order, confirm func(*Rotation) error,
	say func(format string, args ...any)) error {
	o.keystore = ks
	journal, err := journalOf(o.Name)
	if err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	unlock, err := state.Lock(patience, filepath.Dir(journal))
	if err != nil {
		return err
	}
	defer unlock()
	r, err := readJournal(journal)
	if err != nil {
		return err
	}
	if r != nil && r.Name != o.Name {
		return failure.New(failure.Invalid, "the journal %s is damaged: it is of the rotation of %q", journal, r.Name).
			WithHint("restore the file, or remove it to begin anew")
	}
	if r != nil {
		if (o.Request != "" || o.Certificate != "") && r.Way != ByRequest || o.CA != "" && o.CA != r.CA {
			return failure.New(failure.Invalid,
				"the rotation of %q that was begun on %s gets its certificate in another way", r.Name,
				r.Begun.Format(time.DateOnly)).
				WithHint("run it again without --csr, --cert and --ca; or, to begin anew, remove " +
					journal)
		}
		say("going on with the rotation of %q that was begun on %s", r.Name, r.Begun.Format("2006-01-02 15:04:05 MST"))
	} else {
		if o.Certificate != "" {
			return failure.New(failure.Invalid, "no rotation of %q waits for a certificate", o.Name).
				WithHint("begin with --csr FILE, have that signed, and then give the certificate with --cert")
		}
		if r, err = plan(ctx, o); err != nil {
			return err
		}
		if err := confirm(r); err != nil {
			return err
		}
		// What the config file says under the alias of the old key is written to Notation's list, where it has to be
		// listed.
		if err := Allow(ctx, r.NewID, r.PluginConfig, config.PluginConfig, say); err != nil {
			return err
		}
		if err := r.write(); err != nil {
			return err
		}
	}
	done, err := r.advance(ctx, o, say)
	if err != nil || !done {
		return err
	}
	if err := os.Remove(journal); err != nil {
		return failure.New(failure.Internal, "all is done, but the journal is still there: %w", err).
			WithHint("remove the file")
	}
	return nil
}

// journalOf is the file of a rotation. A name of Notation's may hold anything, a file name not.
func journalOf(name string) (string, error) {
	dir, err := folders.Config()
	if err != nil {
		return "", failure.New(failure.Invalid, "can't tell where rotations are kept: %w",
			err).
			WithHint("set HOME to an absolute path")
	}
	return filepath.Join(dir, "notation-hsm", "rotations", url.QueryEscape(name)+".json"), nil
}

// journals returns the journals of all rotations that are not finished.
func journals() ([]string, error) {
	one, err := journalOf("one")
	if err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(filepath.Dir(one), "*.json"))
}

const journalLimit = 64 << 10 // bytes

func readJournal(path string) (*Rotation, error) {
	data, err := bound.ReadFile(path, journalLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no rotation is under way
	}
	if err != nil {
		return nil, failure.New(failure.Internal, "can't read the journal of the rotation: %w", err).
			WithHint("check its permissions")
	}
	if err := ownership.Check(path, os.Getuid()); err != nil { // what it says was agreed to, and is not asked again
		f := failure.From(err)
		return nil, failure.New(failure.Denied, "others decide what the journal %s says: %w", path, f).
			WithHint(f.Hint + "; or remove the journal to begin anew")
	}
	var r Rotation
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, failure.New(failure.Invalid, "the journal %s is damaged: %w", path, err).
			WithHint("restore the file, or remove it to begin anew")
	}
	return &r, nil
}

func (r *Rotation) write() error {
	journal, err := journalOf(r.Name)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return state.Write(journal, append(data, '\n'), 0o600)
}

// advance does what is not done yet. It returns false when it has to wait for a certificate.
func (r *Rotation) advance(ctx context.Context, o Order, say func(string, ...any)) (done bool, err error) {
	keys, err := loadSigningKeys()
	if err != nil {
		return false, err
	}
	entry := keys.find(r.Name)
	if entry == nil || !entry.isOwn() || entry.ID != r.OldID && entry.ID != r.NewID {
		journal, _ := journalOf(r.Name)
		return false, failure.New(failure.Invalid, "Notation's signing key %q was changed while it was rotated", r.Name).
			WithHint("set it back to " + quoted(r.OldID) + "; or, to give this rotation up, remove " + journal)
	}
	if entry.ID == r.OldID {
		s, err := o.keystore.ResolveStored(r.NewID, r.PluginConfig, config.PluginConfig, o.Given)
		if err != nil {
			return false, err
		}
		if err := r.makeKey(ctx, s, say); err != nil {
			return false, err
		}
		if done, err := r.certify(ctx, s, o, say); err != nil || !done {
			return false, err
		}
		if err := r.repoint(keys); err != nil {
			return false, err
		}
	}
	say("Notation's signing key %q is now %s", r.Name, r.NewID)
	say("the old key is kept, as %q: it is not used any more, and what it has signed still verifies", r.OldName)
	if r.Way == SelfSigned {
		say("next: give the new certificate to all who verify: notation-hsm cert export %s", quoted(r.NewID))
	}
	return true, nil
}

// makeKey makes the new key, unless it is there. Its id was drawn for the journal, so no other key has it. A module
// that was cut short can leave half a key; nobody has a certificate for it yet, so what does not sign is discarded and
// made anew.
func (r *Rotation) makeKey(ctx context.Context, s *keystore.Reference, say func(string, ...any)) error {
	if r.Made {
		return nil
	}
	whole, err := discardHalf(ctx, s)
	if err != nil {
		return err
	}
	if !whole {
		spec, err := key.ParseSpec(r.Spec)
		if err != nil {
			return err
		}
		id, err := hex.DecodeString(r.ID)
		if err != nil {
			return err
		}
		if _, err := s.Generate(ctx, key.Request{Spec: spec, Usage: key.Sign, Label: r.Label, ID: id, Tags: r.Tags}); err != nil {
			return err
		}
		err = s.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error { return prove(ctx, k, k.Public()) })
		if err != nil {
			return err
		}
	}
	r.Made = true
	if err := r.write(); err != nil {
		return err
	}
	say("made the key %q", r.Label)
	return nil
}

// discardHalf reports whether the key that the settings name is whole, and removes what there is of it if not.
func discardHalf(ctx context.Context, s *keystore.Reference) (whole bool, err error) {
	store, err := s.Open(ctx)
	if err != nil {
		return false, err
	}
	defer store.Close()
	found, err := store.Keys(ctx)
	if err != nil {
		return false, err
	}
	if len(found) == 1 && prove(ctx, found[0], found[0].Public()) == nil {
		return true, nil
	}
	return false, store.Discard(ctx)
}

// certify gets the new key its certificate, unless it has one, and has the key prove itself under it.
func (r *Rotation) certify(ctx context.Context, s *keystore.Reference, o Order, say func(string, ...any)) (done bool,
	err error) {
	missing, err := r.lacks(ctx, s)
	if err != nil || missing == nil {
		return err == nil, err
	}
	switch r.Way {
	case SelfSigned:
		err = r.selfSign(ctx, s)
	case FromCA:
		err = r.issue(ctx, s, o.CAFolder)
	case ByRequest:
		if o.Certificate == "" {
			return false, r.request(ctx, s, o.Request, say)
		}
		_, _, err = Import(ctx, s, o.Certificate)
	}
	if err != nil {
		return false, err
	}
	if missing, err = r.lacks(ctx, s); err != nil || missing != nil {
		return false, errors.Join(err, missing)
	}
	say("the key %q has its certificate", r.Label)
	return true, nil
}

// lacks returns what of its certificate chain the new key has not got, or nil once it signs under the whole of it.
func (r *Rotation) lacks(ctx context.Context, s *keystore.Reference) (missing, err error) {
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		known, err := certificates(ctx, store, s)
		if err != nil {
			return err
		}
		leaf := certs.LeafOf(k.Public(), known, time.Now())
		if leaf == nil {
			missing = failure.New(failure.Invalid, "the key %q has no certificate", r.Label)
			return nil
		}
		var chain []*x509.Certificate
		if chain, missing = certs.Chain(leaf, known, nil, time.Now()); missing != nil {
			return nil //nolint:nilerr // that is the answer
		}
		if err := certs.Check(chain, time.Now()); err != nil {
			return err
		}
		return prove(ctx, k, leaf.PublicKey)
	})
	return missing, err
}

// repoint gives Notation's entry the new key and keeps the old one under its new name, in one step.
func (r *Rotation) repoint(keys *signingKeys) error {
	entry := keys.find(r.Name)
	old := *entry
	old.Name = r.OldName
	entry.ID, entry.PluginConfig = r.NewID, r.PluginConfig
	keys.Keys = append(keys.Keys, old)
	return keys.save()
}

// leafFile reports whether a PEM file has a leaf, and not issuers alone.
func leafFile(path string) (bool, error) {
	file, err := certs.ReadFile(path)
	return len(certs.Leaves(file)) > 0, err
}

// lifetime is how many days a certificate was made for.
func lifetime(cert *x509.Certificate) int {
	return max(1, int(cert.NotAfter.Sub(cert.NotBefore).Hours()+12)/24)
}
