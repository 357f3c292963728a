package nethsm

import (
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

// Decrypt opens an RSA ciphertext: RSAES-OAEP without a label (*rsa.OAEPOptions) or RSAES-PKCS1-v1_5
// (*rsa.PKCS1v15DecryptOptions). With its SessionKeyLen, a ciphertext that does not open gives a random key, so that
// nobody learns from errors which ones are well formed.
func (k *Key) Decrypt(ctx context.Context, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	if _, isRSA := k.public.(*rsa.PublicKey); !isRSA {
		return nil, failure.New(failure.Invalid, "key %s is no RSA key, so it decrypts nothing", k.name()).
			WithHint("use an RSA key")
	}
	switch o := opts.(type) {
	case *rsa.OAEPOptions:
		name, known := hashNames[o.Hash]
		if !known || len(o.Label) > 0 || (o.MGFHash != 0 && o.MGFHash != o.Hash) {
			return nil, failure.New(failure.Invalid, "a NetHSM does not do OAEP in this way (%v)", o.Hash).
				WithHint("use one of SHA-1, SHA-224, SHA-256, SHA-384 and SHA-512 for both hashes, and no label")
		}
		return k.decrypt(ctx, "OAEP_"+name, ciphertext)
	case *rsa.PKCS1v15DecryptOptions: //nolint:staticcheck // deprecated as dangerous, and what CMS in images has
		plain, err := k.decrypt(ctx, "PKCS1", ciphertext)
		if o.SessionKeyLen == 0 || (err != nil && !errors.Is(err, errRefused)) {
			return plain, err
		}
		if err != nil || len(plain) != o.SessionKeyLen {
			plain = make([]byte, o.SessionKeyLen)
			_, err = rand.Read(plain)
		}
		return plain, err
	}
	return nil, failure.New(failure.Internal, "can't decrypt with options of type %T", opts)
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
		return nil, malformed(r.what, errors.New("it has no plaintext"))
	}
	plain, err := base64.StdEncoding.DecodeString(*answer.Decrypted)
	if err != nil {
		return nil, malformed(r.what, errors.New("its plaintext is not base64")) // which is not shown
	}
	return plain, nil
}

// ECDH fails: NetHSM does not have it.
func (k *Key) ECDH(context.Context, *ecdh.PublicKey) ([]byte, error) {
	return nil, failure.New(failure.Invalid, "a NetHSM agrees on no keys (ECDH), so key %s can't open this", k.name()).
		WithHint("use an RSA key for what is to be opened with a NetHSM")
}
