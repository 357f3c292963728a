package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/approval/sshkey"
	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// keyFlags name a key of an approver.
type keyFlags struct{ prefix, ssh, key string }

// addKey adds flags that name a key of an approver. what says what the key is for.
func addKey(c *cobra.Command, prefix, what string) *keyFlags {
	f := &keyFlags{prefix: prefix}
	c.Flags().StringVar(&f.ssh, prefix+"ssh", "",
		"SSH key "+what+": file of the private key, or of the public key (.pub) of one in ssh-agent or on a security key")
	c.Flags().StringVar(&f.key, prefix+"key", "", "key in a module "+what+": pkcs11: or nethsm: URI, or its alias")
	return f
}

// given reports whether a flag names a key.
func (f *keyFlags) given() bool { return f.ssh != "" || f.key != "" }

// signer is a key of an approver that can sign.
type signer struct {
	kind   approval.Kind
	public []byte // as approval.Credential has it
	sign   func(ctx context.Context, document []byte, credential string) (*approval.Envelope, error)
	close  func()
}

// keySettings are the settings of a key in a module.
var keySettings = []string{config.ModulePath, config.PINSource, config.Timeout}

// open opens the key that the flags name. given are the flags for its settings.
func (f *keyFlags) open(ctx context.Context, c *cobra.Command, given map[string]string) (*signer, error) {
	switch {
	case f.ssh != "" && f.key != "":
		return nil, cli.Usage(c, failure.New(failure.Invalid, "--%[1]sssh and --%[1]skey are both given", f.prefix).
			WithHint("give one"))
	case f.ssh != "":
		return openSSH(c, f.ssh)
	case f.key == "":
		return nil, cli.Required(c, f.prefix+"ssh", "~/.ssh/id_ed25519, or --"+f.prefix+"key with a key in a module")
	}
	settings := map[string]string{}
	for _, name := range keySettings {
		if value, exists := given[name]; exists {
			settings[name] = value
		}
	}
	return openKey(ctx, f.key, settings)
}

// openSSH opens an SSH key. A passphrase is asked for once.
func openSSH(c *cobra.Command, path string) (*signer, error) {
	var passphrase []byte
	key, err := sshkey.Open(path, sshkey.Options{Agent: os.Getenv("SSH_AUTH_SOCK"), Messages: c.ErrOrStderr(),
		Passphrase: func(ctx context.Context, path string) ([]byte, error) {
			if passphrase == nil {
				typed, err := cli.AskPassphrase(ctx, path)
				if err != nil {
					return nil, err
				}
				passphrase = typed
			}
			return bytes.Clone(passphrase), nil // the copy is cleared
		}})
	if err != nil {
		return nil, err
	}
	return &signer{kind: approval.SSH, public: key.Public.Marshal(), sign: key.Sign,
		close: func() { clear(passphrase) }}, nil
}

// openKey opens a key in a module, at this machine: never through a broker. Its PIN is asked for, unless the settings
// say where it comes from.
func openKey(ctx context.Context, reference string, settings map[string]string) (*signer, error) {
	ks := backends.Keystore()
	named, err := ks.Direct().Resolve(reference, settings, config.Flags)
	if err != nil {
		return nil, err
	}
	if named.PINSource == "" && named.PIN == "" {
		named.PINSource = pin.Prompt
	}
	store, err := named.Open(ctx)
	if err != nil {
		return nil, err
	}
	end := func() { _, _ = store.Close(), ks.Close() }
	opened, err := store.Key(ctx, nil)
	if err != nil {
		end()
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(opened.Public())
	if err != nil {
		end()
		return nil, failure.New(failure.Unsupported, "cannot sign approvals with %s: %w", named.Key, err).
			WithHint("name an RSA, EC or Ed25519 key")
	}
	return &signer{kind: approval.Key, public: public, close: end,
		sign: func(ctx context.Context, document []byte, credential string) (*approval.Envelope, error) {
			return approval.SignKey(document, credential, keystore.Signer(ctx, opened))
		}}, nil
}

// login returns a new login at a broker, signed, as a message. It shows that the approver has the key.
func (s *signer) login(ctx context.Context, broker string) ([]byte, error) {
	l := approval.Login{Broker: broker, Time: time.Now().UTC().Truncate(time.Second)}
	_, _ = rand.Read(l.Random[:]) // does not fail
	document, err := l.Encode()
	if err != nil {
		return nil, err
	}
	envelope, err := s.sign(ctx, document, "")
	if err != nil {
		return nil, err
	}
	return envelope.Encode()
}

// anonymous reports whether nothing that settings name authenticates this process to the broker: neither a certificate
// nor a token nor a Unix socket.
func anonymous(s *config.Settings) bool {
	c := s.Credentials
	return c != nil && c.Certificate == "" && c.Token == (config.TokenSource{})
}

// signIn gets a session for the owner of a key, and makes all further calls in it: neither the certificate nor the
// token that the settings name is used. On the Unix socket, the user id is all that authenticates.
func (a *asker) signIn(ctx context.Context) error {
	if a.settings.Credentials == nil {
		return nil
	}
	own := *a.settings
	own.Credentials = &config.Credentials{CA: a.settings.Credentials.CA}
	a.settings = &own
	envelope, err := a.signer.login(ctx, own.Broker)
	if err != nil {
		return err
	}
	session, err := a.SignIn(ctx, a.settings, brokerapi.Login{Envelope: envelope, Kind: string(a.signer.kind),
		Public: a.signer.public})
	a.expires = session.Expires
	return err
}

// stay signs in again if the session is about to end: people take their time before they answer a question.
func (a *asker) stay(ctx context.Context) error {
	if a.expires.IsZero() || time.Until(a.expires) > time.Minute {
		return nil
	}
	return a.signIn(ctx)
}
