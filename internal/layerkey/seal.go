package layerkey

import (
	"crypto"
	"crypto/rsa"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Seal encrypts the options of a layer to recipients, any one of whom can decrypt them. It returns a JWE in JSON (RFC
// 7516 section 7.2) with A256GCM and, for each recipient by its kid, RSA-OAEP-256, RSA-OAEP or ECDH-ES+A256KW (RFC 7518
// sections 4.3 and 4.6). It fails with Invalid for no or too many recipients, and for one that is given twice.
func Seal(options []byte, recipients []Recipient) ([]byte, error) {
	if len(recipients) == 0 || len(recipients) > jose.MaxRecipients {
		return nil, failure.New(failure.Invalid,
			"cannot wrap a layer's key for %d recipients at once: the limit is %d", len(recipients), jose.MaxRecipients).
			WithHint("add the others afterwards, with 'hsm-image recipients add'")
	}
	seen := map[string]string{}
	to := make([]jose.Recipient, len(recipients))
	for i, r := range recipients {
		kid := r.KeyID()
		if other, twice := seen[kid]; twice {
			return nil, failure.New(failure.Invalid, "the recipients %q and %q are the same key", other, r.Name).
				WithHint("name it once")
		}
		seen[kid] = r.Name
		to[i] = jose.Recipient{Algorithm: algorithm(r), Key: r.Public, KeyID: kid}
	}
	encrypter, err := jose.NewMultiEncrypter(jose.A256GCM, to, nil)
	if err != nil {
		return nil, err
	}
	jwe, err := encrypter.Encrypt(options)
	if err != nil {
		return nil, err
	}
	return []byte(jwe.FullSerialize()), nil
}

// algorithm returns the algorithm that wraps the content's key for a recipient.
func algorithm(r Recipient) jose.KeyAlgorithm {
	if _, ok := r.Public.(*rsa.PublicKey); !ok {
		return jose.ECDH_ES_A256KW
	}
	if r.OAEP == crypto.SHA1 {
		return jose.RSA_OAEP
	}
	return jose.RSA_OAEP_256
}
