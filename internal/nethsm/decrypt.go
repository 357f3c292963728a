package nethsm

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// decryption is DecryptRequestData of the API.
type decryption struct {
	Mode      string `json:"mode"`
	Encrypted string `json:"encrypted"` // base64
}

// Decrypt decrypts an RSA ciphertext: RSAES-OAEP without a label (*rsa.OAEPOptions) or RSAES-PKCS1-v1_5
// (*rsa.PKCS1v15DecryptOptions). With SessionKeyLen, it returns a random key for a ciphertext that cannot be decrypted,
// so that errors do not tell which ciphertexts are well formed.
func (k *Key) Decrypt(ctx context.Context, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	public, err := k.knownPublic(ctx)
	if err != nil {
		return nil, err
	}
	if _, isRSA := public.(*rsa.PublicKey); !isRSA {
		return nil, failure.New(failure.Invalid, "key %s does not decrypt: it is no RSA key", k.name()).
			WithHint("use an RSA key")
	}
	switch o := opts.(type) {
	case *rsa.OAEPOptions:
		name, known := hashNames[o.Hash]
		if !known || len(o.Label) > 0 || (o.MGFHash != 0 && o.MGFHash != o.Hash) {
			return nil, failure.New(failure.Unsupported, "a NetHSM does not support OAEP with %v, MGF1 with %v and a label of "+
				"%d bytes", o.Hash, cmp.Or(o.MGFHash, o.Hash), len(o.Label)).
				WithHint("use one of SHA-1, SHA-224, SHA-256, SHA-384 and SHA-512 for both hashes, and no label")
		}
		return k.decrypt(ctx, "OAEP_"+name, ciphertext)
	case *rsa.PKCS1v15DecryptOptions: //nolint:staticcheck // deprecated as dangerous, and what CMS in images has
		plain, err := k.decrypt(ctx, "PKCS1", ciphertext)
		if o.SessionKeyLen == 0 || (err != nil && !errors.Is(err, errBadRequest)) {
			return plain, err
		}
		if err != nil || len(plain) != o.SessionKeyLen {
			plain = make([]byte, o.SessionKeyLen)
			_, err = rand.Read(plain)
		}
		return plain, err
	}
	return nil, failure.New(failure.Internal, "no decryption with options of type %T", opts)
}

func (k *Key) decrypt(ctx context.Context, mode string, ciphertext []byte) ([]byte, error) {
	d := decryption{mode, base64.StdEncoding.EncodeToString(ciphertext)}
	r := request{what: "decrypting with key " + k.name(), path: "/decrypt"}
	var answer struct {
		Decrypted *string `json:"decrypted"`
	}
	if err := k.use(ctx, r, d, &answer); err != nil {
		return nil, err
	}
	if answer.Decrypted == nil {
		return nil, malformed(r.what, errors.New("no plaintext"))
	}
	plain, err := base64.StdEncoding.DecodeString(*answer.Decrypted)
	if err != nil {
		return nil, malformed(r.what, errors.New("the plaintext is not base64")) // err could show it
	}
	return plain, nil
}

// ECDH fails with Unsupported.
func (k *Key) ECDH(context.Context, *ecdh.PublicKey) ([]byte, error) {
	return nil, failure.New(failure.Unsupported, "key %s does not decrypt: a NetHSM does not support ECDH", k.name()).
		WithHint("use an RSA key")
}
