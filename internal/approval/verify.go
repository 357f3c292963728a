package approval

import (
	"errors"
	"fmt"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// maxPart is the length of the longest part of an envelope, in bytes. An armoured SSHSIG of the largest RSA key has
// some 6 KiB.
const maxPart = 16 << 10

// purpose is what documents are signed for. A signature for one purpose verifies for no other.
type purpose struct {
	namespace   string // of an SSHSIG
	payloadType string // of a DSSE
}

// The purposes. The challenge of a passkey is the SHA-256 of the document, which has its type in it.
var (
	approving = purpose{"approval@notation-hsm", "application/vnd.notation-hsm.approval.v1+json"}
	signingIn = purpose{"login@notation-hsm", "application/vnd.notation-hsm.login.v1+json"}
)

// Verify returns the approval of an envelope whose signature verifies under a credential. It fails with Denied for a
// signature that does not, and for an approval of another person or another credential.
//
// ECDSA signatures are malleable: whoever has one can make a second one of the same approval. An approval is therefore
// known by the SHA-256 of its document, and never by that of its envelope.
func (e *Envelope) Verify(c *Credential) (*Approval, error) {
	if err := e.verify(c, approving); err != nil {
		return nil, err
	}
	a, err := Decode(e.Approval)
	if err != nil {
		return nil, err
	}
	if a.Approver != c.Approver {
		return nil, denied(errors.New("it is of another person than its credential"))
	}
	return a, nil
}

// VerifyLogin returns the login of an envelope whose signature verifies under a credential. It fails with Denied for a
// signature that does not, and for an envelope of another credential.
func (e *Envelope) VerifyLogin(c *Credential) (*Login, error) {
	if err := e.verify(c, signingIn); err != nil {
		return nil, err
	}
	return DecodeLogin(e.Approval)
}

// VerifyPossession returns the login of an envelope without a credential, whose signature verifies under a public key
// that is to be enrolled. It fails with Denied for a signature that does not, and for a passkey, whose possession shows
// when it is registered.
func (e *Envelope) VerifyPossession(kind Kind, public []byte) (*Login, error) {
	if e.Credential != "" {
		return nil, denied(errors.New("it names a credential, and a new key has none"))
	}
	if kind == Passkey {
		return nil, denied(errors.New("a passkey is registered on the broker's page"))
	}
	if err := e.verifySignature(&Credential{Kind: kind, Public: public}, signingIn); err != nil {
		return nil, denied(err)
	}
	return DecodeLogin(e.Approval)
}

// verify verifies that an envelope is of a credential, and its signature.
func (e *Envelope) verify(c *Credential, p purpose) error {
	encoded, err := c.Encode()
	if err != nil {
		return invalid("credential", err)
	}
	if e.Credential != Hash(encoded) {
		return denied(errors.New("it is of another credential"))
	}
	if err := e.verifySignature(c, p); err != nil {
		return denied(err)
	}
	return nil
}

func (e *Envelope) verifySignature(c *Credential, p purpose) error {
	for _, part := range [][]byte{e.Approval, e.AuthenticatorData, e.ClientData, e.Signature, c.Public} {
		if len(part) > maxPart {
			return fmt.Errorf("a part of it has %d bytes, and %d are the most", len(part), maxPart)
		}
	}
	if c.Kind != Passkey && (e.AuthenticatorData != nil || e.ClientData != nil) {
		return errors.New("it has the data of a passkey")
	}
	switch c.Kind {
	case Key:
		return verifyKey(c.Public, p.payloadType, e.Approval, e.Signature)
	case SSH:
		return verifySSH(c.Public, p.namespace, e.Approval, e.Signature)
	case Passkey:
		return verifyPasskey(c, e)
	}
	return fmt.Errorf("the kind %.40q of its credential is unknown", c.Kind)
}

// denied is the failure of an envelope that does not verify.
func denied(err error) error {
	return failure.New(failure.Denied, "cannot verify the approval: %w", err).
		WithHint("sign again, with a credential that is enrolled with this broker")
}
