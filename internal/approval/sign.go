package approval

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// purposeOf returns what a document is signed for, which its type says. It fails with Invalid for bytes that are
// neither an approval nor a login: nothing else is ever signed with an approver's key.
func purposeOf(document []byte) (purpose, error) {
	_, err := Decode(document)
	if err == nil {
		return approving, nil
	}
	if _, errLogin := DecodeLogin(document); errLogin == nil {
		return signingIn, nil
	}
	return purpose{}, err
}

// Namespace returns the namespace of the SSHSIG of an approval or a login, in its encoding. It fails with Invalid for
// other bytes.
func Namespace(document []byte) (string, error) {
	p, err := purposeOf(document)
	return p.namespace, err
}

// SignKey returns the envelope of an approval or a login, in its encoding, signed with a key in a module. The
// credential is the sha256:HEX of the one that the key is enrolled as; "" to show that one has a new key.
func SignKey(document []byte, credential string, signer crypto.Signer) (*Envelope, error) {
	p, err := purposeOf(document)
	if err != nil {
		return nil, err
	}
	return signKey(document, p, credential, signer)
}

func signKey(document []byte, p purpose, credential string, signer crypto.Signer) (*Envelope, error) {
	hash, err := hashOf(signer.Public())
	if err != nil {
		return nil, err
	}
	options := crypto.SignerOpts(hash)
	if _, ok := signer.Public().(*rsa.PublicKey); ok {
		options = pss
	}
	signature, err := crypto.SignMessage(signer, rand.Reader, dsse.PAE(p.payloadType, document), options)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	if err := verifyKey(public, p.payloadType, document, signature); err != nil {
		return nil, failure.New(failure.Internal, "cannot sign the approval: the key made a wrong signature").
			WithHint("update the module, or use another key")
	}
	return &Envelope{Approval: document, Credential: credential, Signature: signature}, nil
}
