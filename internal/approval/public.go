package approval

import (
	"bytes"
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
		if err != nil {
			return err
		}
		if again, err := x509.MarshalPKIXPublicKey(parsed); err != nil || !bytes.Equal(again, public) {
			return errors.New("it is not in the one encoding of its key") // or one key could be enrolled twice
		}
		return nil
	case Passkey:
		return checkCOSE(public)
	}
	return errors.New("there is no such kind of key")
}
