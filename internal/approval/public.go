package approval

import (
	"crypto/x509"
	"errors"
)

// CheckPublic fails for a public key that approvals of a kind cannot be verified with. Those of passkeys are checked
// when a passkey is registered.
func CheckPublic(kind Kind, public []byte) error {
	switch kind {
	case SSH:
		_, err := ParseSSH(public)
		return err
	case Key:
		parsed, err := x509.ParsePKIXPublicKey(public)
		if err == nil {
			_, err = hashOf(parsed)
		}
		return err
	case Passkey:
		return checkCOSE(public)
	}
	return errors.New("there is no such kind of key")
}
