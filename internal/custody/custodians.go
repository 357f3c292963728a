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

// A share is encrypted and decrypted in memory. Encrypted to a key in a file, it is an age file
// (age-encryption.org/v1). Encrypted to a key in a module, it is a JWE (RFC 7516), as keys of image layers are: a
// module cannot decrypt age's formats.

// custodian is a recipient of one share.
type custodian struct {
	name      string // as given on the command line
	key       string // identifies the public key: equal for two names of one key
	extension string // of the share file
	encrypt   func(share []byte) ([]byte, error)
}

const custodianHint = "use an age1... or ssh-... public key, cert:FILE or pubkey:FILE; --folder names the folder"

// parseCustodian parses an age recipient (age1...), an SSH public key, cert:FILE or pubkey:FILE. It refuses age's
// plugins, which are programs to run.
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
		return c, failure.New(failure.Invalid, "cannot encrypt a share to a private key").
			WithHint("give the public key; and replace the private key, which other processes could read in the arguments")
	default:
		err = errors.New("it has an unknown form")
	}
	if err != nil {
		return c, failure.New(failure.Invalid, "cannot encrypt a share to %q: %w", name, err).WithHint(custodianHint)
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

// parseCustodians parses the custodians of n shares. It returns none for no names, and else fails unless there are n
// different public keys.
func parseCustodians(ctx context.Context, ks *keystore.Keystore, names []string, n int) ([]custodian, error) {
	if len(names) == 0 {
		return nil, nil
	}
	if len(names) != n {
		return nil, failure.New(failure.Invalid, "cannot encrypt %d shares to %d custodians", n, len(names)).
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
				WithHint("encrypt each share to another custodian")
		}
		custodians[i], seen[c.key] = c, i
	}
	return custodians, nil
}

// identities are the private keys that decrypt shares.
type identities struct {
	files []age.Identity // age and SSH keys in files
	keys  *layerkey.Keys // keys in modules; nil if there are none
}

const identityLimit = 64 << 10 // bytes; an RSA key of 16384 bits needs less than 16 thousand

// scryptLimit is the largest work factor of a passphrase, as a power of two. age uses 18.
const scryptLimit = 20

// openIdentities opens identities: URIs of keys in modules, and files with an age identity or an SSH private key. ask
// asks for the passphrase of a file.
func openIdentities(
	ctx context.Context, ks *keystore.Keystore, names []string,
	ask func(ctx context.Context, path string) ([]byte, error),
) (*identities, error) {
	ids := &identities{}
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

// Close closes the sessions of keys in modules.
func (ids *identities) Close() error {
	if ids.keys == nil {
		return nil
	}
	return ids.keys.Close()
}

// readIdentity reads a file with private keys. Its errors leave out causes of parsers, which may quote from the file.
func readIdentity(path string, ask func() ([]byte, error)) ([]age.Identity, error) {
	data, err := readSecret(path, identityLimit)
	defer clear(data)
	if err != nil {
		return nil, unreadable(path, err)
	}
	if isAge(data) {
		passphrase, err := ask()
		defer clear(passphrase)
		if err != nil {
			return nil, err
		}
		scrypt, err := age.NewScryptIdentity(string(passphrase))
		if err != nil {
			return nil, failure.New(failure.Denied, "cannot decrypt the identity %s: the passphrase is empty", path).
				WithHint("type the passphrase when asked")
		}
		scrypt.SetMaxWorkFactor(scryptLimit)
		plain, err := decryptAge(data, identityLimit, scrypt)
		defer clear(plain)
		if err != nil {
			return nil, wrongPassphrase(path)
		}
		return parseIdentity(path, plain, nil)
	}
	return parseIdentity(path, data, ask)
}

func wrongPassphrase(path string) error {
	return failure.New(failure.Denied, "cannot decrypt the identity %s: the passphrase is wrong", path).
		WithHint("check the passphrase")
}

func parseIdentity(path string, data []byte, ask func() ([]byte, error)) ([]age.Identity, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")) {
		found, err := age.ParseIdentities(bytes.NewReader(data))
		if err != nil {
			return nil, failure.New(failure.Invalid, "the file %s has no age identity", path).
				WithHint("name a file that age-keygen wrote, an SSH private key, or the URI of a key in a module")
		}
		return found, nil
	}
	found, err := agessh.ParseIdentity(data)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) && locked.PublicKey != nil && ask != nil {
		l := &lockedIdentity{path: path}
		passphrase := func() (answer []byte, err error) {
			answer, l.askErr = ask()
			return answer, l.askErr
		}
		l.EncryptedSSHIdentity, err = agessh.NewEncryptedSSHIdentity(locked.PublicKey, bytes.Clone(data), passphrase)
		found = l
	}
	if err != nil {
		return nil, failure.New(failure.Invalid, "the file %s has no SSH private key that can decrypt", path).
			WithHint("use an Ed25519 or RSA key in OpenSSH's format")
	}
	return []age.Identity{found}, nil
}

// lockedIdentity is an SSH private key with a passphrase. It asks for the passphrase when a share is encrypted to it.
type lockedIdentity struct {
	*agessh.EncryptedSSHIdentity
	path   string
	askErr error // why there is no passphrase
}

func (l *lockedIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	fileKey, err := l.EncryptedSSHIdentity.Unwrap(stanzas)
	switch {
	case l.askErr != nil:
		return nil, l.askErr
	case err != nil && !errors.Is(err, age.ErrIncorrectIdentity):
		return nil, wrongPassphrase(l.path)
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
	// The plaintext is shorter than the file, so the buffer never grows, which would leave a copy behind.
	buffer := bytes.NewBuffer(make([]byte, 0, len(data)+bytes.MinRead))
	_, err = buffer.ReadFrom(io.LimitReader(plain, limit))
	return buffer.Bytes(), err
}

// decrypt decrypts a share file, or copies one that is not encrypted. The caller clears the result.
func (ids *identities) decrypt(ctx context.Context, path string, data []byte) ([]byte, error) {
	var kind struct {
		Ciphertext string `json:"ciphertext"`
	}
	switch {
	case isAge(data):
		if len(ids.files) == 0 {
			return nil, needsIdentity(path, "an age or SSH identity")
		}
		plain, err := decryptAge(data, int64(shareBounds.Bytes), ids.files...)
		var none *age.NoIdentityMatchError
		var known *failure.Error
		switch {
		case errors.As(err, &none):
			return nil, failure.New(failure.Denied, "no identity can decrypt the share %s", path).
				WithHint("name the custodian's identity with --identity")
		case errors.As(err, &known): // of a passphrase
			return nil, known
		case err != nil:
			text := err.Error() // age quotes lines of any length
			return nil, damagedShare(path, errors.New(text[:min(len(text), 200)]))
		}
		return plain, nil
	case checkJSON(data, shareBounds) == nil && json.Unmarshal(data, &kind) == nil && kind.Ciphertext != "":
		if ids.keys == nil {
			return nil, needsIdentity(path, "a key in a module")
		}
		sealed := base64.StdEncoding.EncodeToString(bytes.TrimSpace(data))
		plain, err := ids.keys.Open(ctx, map[string]string{layerkey.Annotation: sealed})
		if err != nil {
			f := failure.From(err)
			f.What = fmt.Sprintf("no identity can decrypt the share %s: %s", path, f.What)
			if f.Kind == failure.Invalid {
				f.Hint = "name the custodian's key with --identity"
			}
			return nil, f
		}
		return plain, nil
	}
	return bytes.Clone(data), nil
}

func needsIdentity(path, identity string) error {
	return failure.New(failure.Denied, "cannot decrypt the share %s without %s", path, identity).
		WithHint("add --identity: a file with the custodian's age or SSH key, or the URI of a key in a module")
}
