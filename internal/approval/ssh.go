package approval

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
)

// sshKeys are the types of SSH keys that can sign approvals. Certificates are not among them: who is enrolled is what
// the broker lists, and no authority's word.
var sshKeys = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384,
	ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256, ssh.KeyAlgoRSA}

// ParseSSH returns the SSH key of a credential: its wire format (RFC 4253 section 6.6). It fails for a key that cannot
// sign approvals.
func ParseSSH(public []byte) (ssh.PublicKey, error) {
	key, err := ssh.ParsePublicKey(public)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(sshKeys, key.Type()) || !bytes.Equal(key.Marshal(), public) {
		return nil, fmt.Errorf("SSH keys of type %.60q cannot sign approvals", key.Type())
	}
	if wrapped, ok := key.(ssh.CryptoPublicKey); ok {
		if key, ok := wrapped.CryptoPublicKey().(*rsa.PublicKey); ok {
			if err := checkRSA(key.N.BitLen()); err != nil {
				return nil, err
			}
		}
	}
	return key, nil
}

// verifySSH verifies an armoured SSHSIG of a document in a namespace under an SSH key. RSA with SHA-1 is refused. A
// security key (sk) must say that it was touched; the application is the one that the key has.
func verifySSH(public []byte, namespace string, document, armoured []byte) error {
	key, err := ParseSSH(public)
	if err != nil {
		return err
	}
	signature, err := ReadSSHSIG(armoured)
	if err != nil {
		return err
	}
	isSK := key.Type() == ssh.KeyAlgoSKED25519 || key.Type() == ssh.KeyAlgoSKECDSA256
	if !isSK && len(signature.Signature.Rest) > 0 {
		return errors.New("something follows its signature")
	}
	return sshsig.Verify(bytes.NewReader(document), signature, key, signature.HashAlgorithm, namespace)
}

// ReadSSHSIG reads an armoured SSHSIG. It fails unless encoding what was read gives the same bytes again, in lines of
// 70 (OpenSSH), 64 or 76 characters: otherwise a signature would have many encodings.
func ReadSSHSIG(armoured []byte) (*sshsig.Signature, error) {
	block, rest := pem.Decode(armoured)
	if block == nil || block.Type != sshsig.PEMType || len(rest) > 0 {
		return nil, errors.New("its signature is not an armoured SSHSIG")
	}
	signature, err := sshsig.ParseSignature(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(signature.Marshal(), block.Bytes) {
		return nil, errors.New("its SSHSIG has a field that is reserved")
	}
	for _, width := range []int{70, 64, 76} {
		if bytes.Equal(armour(block.Bytes, width), armoured) {
			return signature, nil
		}
	}
	return nil, errors.New("its SSHSIG has blanks or lines that OpenSSH does not write")
}

// armour returns an SSHSIG in its armour, with lines of a width.
func armour(signature []byte, width int) []byte {
	var out bytes.Buffer
	out.WriteString("-----BEGIN " + sshsig.PEMType + "-----\n")
	for line := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString(signature)), width) {
		out.Write(line)
		out.WriteByte('\n')
	}
	out.WriteString("-----END " + sshsig.PEMType + "-----\n")
	return out.Bytes()
}
