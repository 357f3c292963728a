// Package sshkey signs approvals and logins with an SSH key: one in a file, in an SSH agent, or in a security key,
// which OpenSSH itself asks.
package sshkey

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// maxFile is the size of the largest file of a key, in bytes.
const maxFile = 64 << 10

// Options are what a Key may use.
type Options struct {
	// Agent is the socket of the SSH agent, as the variable SSH_AUTH_SOCK has it; "" for none.
	Agent string
	// Passphrase asks for the passphrase of a file. It is called only if the agent does not have the key.
	Passphrase func(ctx context.Context, path string) ([]byte, error)
	// Messages gets what ssh-keygen tells the user, such as to touch a security key.
	Messages io.Writer
}

// Key is an SSH key that can sign approvals.
type Key struct {
	Public  ssh.PublicKey
	Comment string // of the public key's file; may be empty

	path    string
	private []byte // the file of the private key; nil without one
	options Options
}

// Open opens the key of a file: a private key in OpenSSH's format, or a public key whose private half is in the agent
// or in the file of the same name without .pub. It asks nobody anything. It fails with Unsupported for a key that
// cannot sign approvals.
func Open(path string, o Options) (*Key, error) {
	k := &Key{path: path, options: o}
	data, err := bound.ReadFile(path, maxFile)
	if err != nil {
		return nil, unreadable(path, err)
	}
	if isPrivate(data) {
		k.private = data
		if k.Public, err = publicOf(data); err != nil {
			return nil, invalid(path)
		}
	} else {
		if k.Public, k.Comment, _, _, err = ssh.ParseAuthorizedKey(data); err != nil {
			return nil, invalid(path)
		}
		if err := k.findPrivate(); err != nil {
			return nil, err
		}
	}
	if _, err := approval.ParseSSH(k.Public.Marshal()); err != nil {
		return nil, failure.New(failure.Unsupported, "cannot use the SSH key %s: %w", path, err).
			WithHint("make one with: ssh-keygen -t ed25519")
	}
	return k, nil
}

// findPrivate reads the private key beside a public one, if it is that of the public key.
func (k *Key) findPrivate() error {
	path, found := strings.CutSuffix(k.path, ".pub")
	if !found {
		return nil
	}
	data, err := bound.ReadFile(path, maxFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil // it is in the agent
	case err != nil:
		return unreadable(path, err)
	}
	if public, err := publicOf(data); err == nil && bytes.Equal(public.Marshal(), k.Public.Marshal()) {
		k.private, k.path = data, path
	}
	return nil
}

// Sign signs an approval or a login, in its encoding. The credential is the sha256:HEX of the one that the key is
// enrolled as; "" to show that one has a new key. It fails for other bytes. A private key in a file without a
// passphrase signs by itself; for others, the agent is asked first.
func (k *Key) Sign(ctx context.Context, document []byte, credential string) (*approval.Envelope, error) {
	namespace, err := approval.Namespace(document)
	if err != nil {
		return nil, err
	}
	armoured, err := k.sign(ctx, document, namespace)
	if err != nil {
		return nil, err
	}
	signature, err := approval.ReadSSHSIG(armoured)
	if err == nil {
		err = sshsig.Verify(bytes.NewReader(document), signature, k.Public, signature.HashAlgorithm, namespace)
	}
	if err != nil {
		return nil, failure.New(failure.Internal, "cannot sign with the SSH key %s: its signature is wrong: %w", k.path, err).
			WithHint("check the key with: ssh-keygen -y -f " + k.path)
	}
	return &approval.Envelope{Approval: document, Credential: credential, Signature: armoured}, nil
}

// sign returns an armoured SSHSIG of a document.
func (k *Key) sign(ctx context.Context, document []byte, namespace string) ([]byte, error) {
	if k.private != nil && !isSecurityKey(k.Public) {
		private, err := ssh.ParsePrivateKey(k.private)
		if err == nil {
			return armour(private, document, namespace)
		}
		if missing := (*ssh.PassphraseMissingError)(nil); !errors.As(err, &missing) {
			return nil, invalid(k.path)
		}
	}
	signature, askErr := k.askAgent(ctx, document, namespace)
	switch {
	case signature != nil:
		return signature, nil
	case !errors.Is(askErr, errNoAgentKey):
		return nil, askErr
	case k.private == nil:
		return nil, failure.New(failure.NotFound, "cannot sign with the SSH key %s: %w", k.path, askErr).
			WithHint("add it with ssh-add, or name the file of the private key")
	case isSecurityKey(k.Public):
		return k.runKeygen(ctx, document, namespace)
	}
	private, err := k.unlock(ctx)
	if err != nil {
		return nil, err
	}
	return armour(private, document, namespace)
}

// armour returns an armoured SSHSIG of a document by a key.
func armour(signer ssh.Signer, document []byte, namespace string) ([]byte, error) {
	signature, err := sshsig.Sign(bytes.NewReader(document), signer, sshsig.HashSHA512, namespace)
	if err != nil {
		return nil, err
	}
	return sshsig.Armor(signature), nil
}

func isSecurityKey(public ssh.PublicKey) bool {
	return public.Type() == ssh.KeyAlgoSKED25519 || public.Type() == ssh.KeyAlgoSKECDSA256
}
