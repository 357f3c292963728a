package approval

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/protocol/webauthncose"
)

// passkeyAlgorithms are the algorithms of passkeys that can sign approvals: those of today's authenticators, by their
// older and newer names, without SHA-1.
var passkeyAlgorithms = []webauthncose.COSEAlgorithmIdentifier{webauthncose.AlgES256, webauthncose.AlgESP256,
	webauthncose.AlgES384, webauthncose.AlgESP384, webauthncose.AlgES512, webauthncose.AlgESP512, webauthncose.AlgEdDSA,
	webauthncose.AlgEd25519, webauthncose.AlgRS256, webauthncose.AlgPS256}

// verifyPasskey verifies the assertion of an envelope, as WebAuthn Level 3 section 7.2 says. Its challenge is the
// SHA-256 of the document. The user must have been verified, not only present.
func verifyPasskey(c *Credential, e *Envelope) error {
	if c.Passkey == nil {
		return errors.New("its credential does not say where the passkey is used")
	}
	if err := checkCOSE(c.Public); err != nil {
		return err
	}
	assertion := protocol.ParsedCredentialAssertionData{}
	assertion.Raw.AssertionResponse.ClientDataJSON = e.ClientData
	assertion.Raw.AssertionResponse.AuthenticatorData = e.AuthenticatorData
	assertion.Response.Signature = e.Signature
	if err := json.Unmarshal(e.ClientData, &assertion.Response.CollectedClientData); err != nil {
		return fmt.Errorf("its client data is not JSON: %w", err)
	}
	data := &assertion.Response.AuthenticatorData
	if err := data.Unmarshal(e.AuthenticatorData); err != nil {
		return describe(err)
	}
	switch flags := data.Flags; {
	case flags.HasAttestedCredentialData():
		return errors.New("its authenticator data is that of a registration")
	case flags.HasBackupEligible() != c.Passkey.BackupEligible:
		return errors.New("its passkey has changed whether it can leave its authenticator")
	case flags.HasBackupState() && !flags.HasBackupEligible():
		return errors.New("its passkey was copied, and says that it cannot be")
	}
	challenge := sha256.Sum256(e.Approval)
	err := assertion.Verify(base64.RawURLEncoding.EncodeToString(challenge[:]), c.Passkey.RPID, "", c.Passkey.Origins, nil,
		nil, protocol.TopOriginExplicitVerificationMode, false, true, true, c.Public, protocol.SignaturePolicy{})
	if err != nil {
		return describe(err)
	}
	return nil
}

// checkCOSE fails for a COSE key that cannot sign approvals.
func checkCOSE(public []byte) error {
	key, err := webauthncose.ParsePublicKey(public)
	if err != nil {
		return describe(err)
	}
	var algorithm int64
	switch key := key.(type) {
	case webauthncose.EC2PublicKeyData:
		algorithm = key.Algorithm
	case webauthncose.OKPPublicKeyData:
		algorithm = key.Algorithm
	case webauthncose.RSAPublicKeyData:
		algorithm = key.Algorithm
		if err := checkRSA(new(big.Int).SetBytes(key.Modulus).BitLen()); err != nil {
			return err
		}
	}
	if !slices.Contains(passkeyAlgorithms, webauthncose.COSEAlgorithmIdentifier(algorithm)) {
		return fmt.Errorf("passkeys with the algorithm %d cannot sign approvals", algorithm)
	}
	return nil
}

// describe returns an error of the WebAuthn library with its details, which its message lacks.
func describe(err error) error {
	var failed *protocol.Error
	if errors.As(err, &failed) && failed.DevInfo != "" {
		return fmt.Errorf("%w: %.300q", err, failed.DevInfo)
	}
	return err
}

// Authenticator returns what the authenticator of a passkey says of itself in an envelope: how often it has signed,
// or 0 if it does not count, and whether the passkey was copied off it. It fails with Invalid for an envelope that is
// not of a passkey.
func (e *Envelope) Authenticator() (counter uint32, backedUp bool, err error) {
	var data protocol.AuthenticatorData
	if err := data.Unmarshal(e.AuthenticatorData); err != nil {
		return 0, false, invalid("authenticator data", describe(err))
	}
	return data.Counter, data.Flags.HasBackupState(), nil
}
