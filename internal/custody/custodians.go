package custody

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
)

// A share is encrypted in memory, to its custodian alone, and opened in memory as well. For a key in a file it is an
// age file (age-encryption.org/v1); for a key in a module a JWE (RFC 7516), as image layers have, since age has no
// recipient that a module could open.

// custodian is someone whom a share is encrypted to.
type custodian struct {
	name      string // as it was given
	key       string // the same for the same key
	extension string // of the file
	encrypt   func(share []byte) ([]byte, error)
}

const custodianForms = "name an age1... or ssh-... key, cert:FILE or pubkey:FILE; the folder is named with --folder"

// parseCustodian reads age1..., an SSH public key, cert:FILE or pubkey:FILE. It makes no use of age's plugins, which
// are programs.
func parseCustodian(ctx context.Context, ks *keystore.Keystore, name string) (c custodian, err error) {
	c.name = name
	var to age.Recipient
	switch {
	case strings.HasPrefix(name, "cert:"), strings.HasPrefix(name, "pubkey:"):
		recipients, err := layerkey.ParseRecipients(ctx, ks, []string{name}, config.Flags)
		if err != nil {
			return c, err
		}
		c.key, c.extension = recipients[0].KeyID(), "jwe"
		c.encrypt = func(share []byte) ([]byte, error) {
			data, err := layerkey.Seal(share, recipients)
			return append(data, '\n'), err
		}
		return c, nil
	case strings.HasPrefix(name, "age1"):
		var all []age.Recipient
		if all, err = age.ParseRecipients(strings.NewReader(name)); err == nil {
			to = all[0]
		}
		c.key = name
	case strings.HasPrefix(name, "ssh-"):
		to, err = agessh.ParseRecipient(name)
		fields := strings.Fields(name) // type, key, comment
		c.key = strings.Join(fields[:min(2, len(fields))], " ")
	case strings.Contains(name, "SECRET-KEY-") || strings.Contains(name, "PRIVATE KEY"):
		return c, failure.New(failure.Invalid, "a custodian is named by a private key").
			WithHint("give the public key, and replace the private one: it was in an argument")
	default:
		err = errors.New("it is of no known form")
	}
	if err != nil {
		return c, failure.New(failure.Invalid, "cannot encrypt a share to %q: %w", name, err).WithHint(custodianForms)
	}
	c.extension = "age"
	c.encrypt = func(share []byte) ([]byte, error) {
		var file bytes.Buffer
		armored := armor.NewWriter(&file)
		w, err := age.Encrypt(armored, to)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(share); err != nil {
			return nil, err
		}
		err = errors.Join(w.Close(), armored.Close())
		return file.Bytes(), err
	}
	return c, nil
}

// parseCustodians reads the custodians of n shares, each of whom has one.
func parseCustodians(ctx context.Context, ks *keystore.Keystore, names []string, n int) ([]custodian, error) {
	if len(names) == 0 {
		return nil, nil
	}
	if len(names) != n {
		return nil, failure.New(failure.Invalid, "there are %d shares for %d custodians", n, len(names)).
			WithHint("give --to once for each share, in their order")
	}
	custodians := make([]custodian, n)
	seen := map[string]int{}
	for i, name := range names {
		c, err := parseCustodian(ctx, ks, name)
		if err != nil {
			return nil, err
		}
		if other, twice := seen[c.key]; twice {
			return nil, failure.New(failure.Invalid, "the custodians %d and %d have the same key", other+1, i+1).
				WithHint("give each share to someone else")
		}
		custodians[i], seen[c.key] = c, i
	}
	return custodians, nil
}

// Identities open encrypted shares: age and SSH keys from files, and keys in modules.
type Identities struct {
	files []age.Identity
	keys  *layerkey.Keys // nil if there are none
}

const identityLimit = 64 << 10 // bytes; an RSA key of 16384 bits has less than 16 thousand

// scryptLimit bounds the work of a passphrase, in powers of two. age uses 18.
const scryptLimit = 20

// openIdentities reads identities: the URI of a key in a module, or a file of age's or with an SSH private key. ask
// asks for the passphrase of a file that has one.
func openIdentities(
	ctx context.Context, ks *keystore.Keystore, names []string,
	ask func(ctx context.Context, what string) ([]byte, error),
) (*Identities, error) {
	ids := &Identities{}
	var references []string
	for _, name := range names {
		if strings.HasPrefix(name, config.Scheme) || strings.HasPrefix(name, config.NetHSMScheme) {
			references = append(references, name)
			continue
		}
		found, err := readIdentity(name, func() ([]byte, error) { return ask(ctx, name) })
		if err != nil {
			return nil, err
		}
		ids.files = append(ids.files, found...)
	}
	if len(references) > 0 {
		ids.keys = layerkey.OpenKeys(ks, references, config.Flags)
	}
	return ids, nil
}

// Close ends the sessions of keys in modules.
func (ids *Identities) Close() error {
	if ids.keys == nil {
		return nil
	}
	return ids.keys.Close()
}

// readIdentity reads a file with private keys. Its errors do not have the causes, which may quote from it.
func readIdentity(path string, ask func() ([]byte, error)) ([]age.Identity, error) {
	data, err := readSecret(path, identityLimit)
	defer clear(data)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read an identity: %w", err).
			WithHint("check the path, and that this user can read the file")
	}
	if isAge(data) {
		passphrase, err := ask()
		defer clear(passphrase)
		if err != nil {
			return nil, err
		}
		scrypt, err := age.NewScryptIdentity(string(passphrase))
		if err != nil {
			return nil, failure.New(failure.Denied, "the identity %s needs a passphrase", path).
				WithHint("type the passphrase when asked")
		}
		scrypt.SetMaxWorkFactor(scryptLimit)
		plain, err := decryptAge(data, identityLimit, scrypt)
		defer clear(plain)
		if err != nil {
			return nil, failure.New(failure.Denied, "the identity %s does not open with this passphrase", path).
				WithHint("check the passphrase")
		}
		return parseIdentity(path, plain, nil)
	}
	return parseIdentity(path, data, ask)
}

func parseIdentity(path string, data []byte, ask func() ([]byte, error)) ([]age.Identity, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")) {
		found, err := age.ParseIdentities(bytes.NewReader(data))
		if err != nil {
			return nil, failure.New(failure.Invalid, "%s has no identity of age", path).
				WithHint("name a file of age-keygen, an SSH private key, or a key in a module by its URI")
		}
		return found, nil
	}
	found, err := agessh.ParseIdentity(data)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) && locked.PublicKey != nil && ask != nil {
		l := &lockedIdentity{path: path}
		passphrase := func() (answer []byte, err error) {
			answer, l.unanswered = ask()
			return answer, l.unanswered
		}
		l.EncryptedSSHIdentity, err = agessh.NewEncryptedSSHIdentity(locked.PublicKey, bytes.Clone(data), passphrase)
		found = l
	}
	if err != nil {
		return nil, failure.New(failure.Invalid, "%s has no SSH private key that opens shares", path).
			WithHint("use an Ed25519 or RSA key in OpenSSH's format")
	}
	return []age.Identity{found}, nil
}

// lockedIdentity is an SSH key with a passphrase, which is asked for when a share is encrypted to that key.
type lockedIdentity struct {
	*agessh.EncryptedSSHIdentity
	path       string
	unanswered error // why there is no passphrase
}

func (l *lockedIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	fileKey, err := l.EncryptedSSHIdentity.Unwrap(stanzas)
	switch {
	case l.unanswered != nil:
		return nil, l.unanswered
	case err != nil && !errors.Is(err, age.ErrIncorrectIdentity):
		return nil, failure.New(failure.Denied, "the identity %s does not open with this passphrase", l.path).
			WithHint("check the passphrase")
	}
	return fileKey, err
}

const ageIntro = "age-encryption.org/"

func isAge(data []byte) bool {
	return bytes.HasPrefix(data, []byte(ageIntro)) || bytes.HasPrefix(bytes.TrimSpace(data), []byte(armor.Header))
}

func decryptAge(data []byte, limit int64, identities ...age.Identity) ([]byte, error) {
	var file io.Reader = bytes.NewReader(data)
	if !bytes.HasPrefix(data, []byte(ageIntro)) {
		file = armor.NewReader(file)
	}
	plain, err := age.Decrypt(file, identities...)
	if err != nil {
		return nil, err
	}
	// The text is shorter than the file, so the buffer does not grow and leave a copy behind.
	buffer := bytes.NewBuffer(make([]byte, 0, len(data)+bytes.MinRead))
	_, err = buffer.ReadFrom(io.LimitReader(plain, limit))
	return buffer.Bytes(), err
}

// decrypt returns a share file in the clear, which the caller clears.
func (ids *Identities) decrypt(ctx context.Context, path string, data []byte) ([]byte, error) {
	var kind struct {
		Ciphertext string `json:"ciphertext"`
	}
	switch {
	case isAge(data):
		if len(ids.files) == 0 {
			return nil, encrypted(path, "an age or SSH identity")
		}
		plain, err := decryptAge(data, int64(shareBounds.Bytes), ids.files...)
		var none *age.NoIdentityMatchError
		var known *failure.Error
		switch {
		case errors.As(err, &none):
			return nil, failure.New(failure.Denied, "no identity opens the share %s", path).
				WithHint("name the custodian's own with --identity")
		case errors.As(err, &known): // asking for a passphrase
			return nil, known
		case err != nil:
			text := err.Error() // age quotes lines of any length
			return nil, notWhole(path, errors.New(text[:min(len(text), 200)]))
		}
		return plain, nil
	case checkJSON(data, shareBounds) == nil && json.Unmarshal(data, &kind) == nil && kind.Ciphertext != "":
		if ids.keys == nil {
			return nil, encrypted(path, "a key in a module")
		}
		sealed := base64.StdEncoding.EncodeToString(bytes.TrimSpace(data))
		plain, err := ids.keys.Open(ctx, map[string]string{layerkey.Annotation: sealed})
		if err != nil {
			f := failure.From(err)
			f.What = fmt.Sprintf("no identity opens the share %s: %s", path, f.What)
			if f.Kind == failure.Invalid {
				f.Hint = "name the custodian's own key with --identity"
			}
			return nil, f
		}
		return plain, nil
	}
	return bytes.Clone(data), nil
}

func encrypted(path, identity string) error {
	return failure.New(failure.Denied,
		"the share %s is encrypted, and there is no identity of its kind: it needs %s", path, identity).
		WithHint("add --identity: a file with the custodian's age or SSH key, or the URI of a key in a module")
}
