package sshkey

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"os"

	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Of a file with private keys, errors leave out causes of parsers, which may quote from it.

func isPrivate(data []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")) }

// publicOf returns the public key of the file of a private key, which OpenSSH's format has in the clear, also beside
// the handle of a security key.
func publicOf(data []byte) (ssh.PublicKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("it is not PEM")
	}
	if block.Type != "OPENSSH PRIVATE KEY" {
		private, err := ssh.ParsePrivateKey(data)
		if err != nil {
			return nil, err
		}
		return private.PublicKey(), nil
	}
	wire, found := bytes.CutPrefix(block.Bytes, []byte("openssh-key-v1\x00"))
	var file struct {
		Cipher, KDF, KDFOptions string
		Keys                    uint32
		Public                  []byte
		Rest                    []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(wire, &file); err != nil || !found || file.Keys != 1 {
		return nil, errors.New("it is not in OpenSSH's format")
	}
	return ssh.ParsePublicKey(file.Public)
}

// unlock returns the private key of a file with a passphrase.
func (k *Key) unlock(ctx context.Context) (ssh.Signer, error) {
	if k.options.Passphrase == nil {
		return nil, failure.New(failure.Denied, "cannot read the SSH key %s: it has a passphrase", k.path).
			WithHint("add it to the agent with: ssh-add " + k.path)
	}
	passphrase, err := k.options.Passphrase(ctx, k.path)
	defer clear(passphrase)
	if err != nil {
		return nil, err
	}
	private, err := ssh.ParsePrivateKeyWithPassphrase(k.private, passphrase)
	if err != nil {
		return nil, failure.New(failure.Denied, "cannot read the SSH key %s: the passphrase is wrong", k.path).
			WithHint("check the passphrase")
	}
	if !bytes.Equal(private.PublicKey().Marshal(), k.Public.Marshal()) {
		return nil, invalid(k.path)
	}
	return private, nil
}

func invalid(path string) error {
	return failure.New(failure.Invalid, "cannot read the SSH key %s: it is no key in OpenSSH's format", path).
		WithHint("name a file that ssh-keygen wrote; ssh-keygen -p -f FILE converts older formats")
}

func unreadable(path string, err error) error {
	kind := failure.Invalid
	switch {
	case errors.Is(err, os.ErrNotExist):
		kind = failure.NotFound
	case errors.Is(err, os.ErrPermission):
		kind = failure.Denied
	}
	return failure.New(kind, "cannot read the SSH key %s: %w", path, err).
		WithHint("name the file of an SSH key, such as ~/.ssh/id_ed25519")
}
