package nethsmtest

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	_ "crypto/md5" //nolint:gosec // the description's PSS_MD5 and OAEP_MD5
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" //nolint:gosec // the description's PSS_SHA1 and OAEP_SHA1
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/base64"
	"errors"
	"math/big"
	"net/http"
	"slices"
	"strings"
)

var hashes = map[string]crypto.Hash{
	"MD5": crypto.MD5, "SHA1": crypto.SHA1, "SHA224": crypto.SHA224,
	"SHA256": crypto.SHA256, "SHA384": crypto.SHA384, "SHA512": crypto.SHA512,
}

// usableKey returns the key for an operation, if its restrictions and mechanisms allow it.
func (c *call) usableKey(mechanism string) (*key, *reply) {
	k, refusal := c.key()
	if refusal != nil {
		return nil, refusal
	}
	if !k.usable(c.user) {
		return nil, fail(http.StatusForbidden, "tags restriction not met")
	}
	if !slices.Contains(k.mechanisms, mechanism) {
		return nil, fail(http.StatusBadRequest, "Key mechanisms do not allow %s.", mechanism)
	}
	return k, nil
}

func postSign(c *call) *reply {
	var wanted struct {
		Mode    string `json:"mode"`
		Message string `json:"message"`
	}
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	mechanism := wanted.Mode + "_Signature"
	if wanted.Mode == "PKCS1" || strings.HasPrefix(wanted.Mode, "PSS_") {
		mechanism = "RSA_Signature_" + wanted.Mode
	}
	k, refusal := c.usableKey(mechanism)
	if refusal != nil {
		return refusal
	}
	message, err := base64.StdEncoding.DecodeString(wanted.Message)
	if err != nil {
		return fail(http.StatusBadRequest, "message: %v", err)
	}
	signature, err := k.sign(wanted.Mode, message)
	if err != nil {
		return fail(http.StatusBadRequest, "Signing failure: %v", err)
	}
	c.state.count("sign", k)
	return answer(map[string]string{"signature": encode64(signature)})
}

// sign returns a signature in a mode that the type of the key supports.
func (k *key) sign(mode string, message []byte) ([]byte, error) {
	switch private := k.signer.(type) {
	case *rsa.PrivateKey:
		if mode == "PKCS1" { // the message has its DigestInfo already
			return rsa.SignPKCS1v15(nil, private, 0, message)
		}
		hash := hashes[strings.TrimPrefix(mode, "PSS_")]
		if len(message) != hash.Size() {
			return nil, errors.New("the message has not the length of the hash")
		}
		return rsa.SignPSS(rand.Reader, private, hash, message, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	case *ecdsa.PrivateKey:
		if len(message)*8 > private.Params().BitSize {
			return nil, errors.New("the message is longer than the curve's order")
		}
		return ecdsa.SignASN1(rand.Reader, private, message)
	case ed25519.PrivateKey:
		return ed25519.Sign(private, message), nil
	}
	return nil, errors.New("this key cannot sign")
}

type cipherRequest struct {
	Mode      string `json:"mode"`
	Encrypted string `json:"encrypted"`
	IV        string `json:"iv,omitempty"`
}

func postDecrypt(c *call) *reply {
	var wanted cipherRequest
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	mechanism := "RSA_Decryption_" + wanted.Mode
	if wanted.Mode == "AES_CBC" {
		mechanism = "AES_Decryption_CBC"
	}
	k, refusal := c.usableKey(mechanism)
	if refusal != nil {
		return refusal
	}
	encrypted, err := base64.StdEncoding.DecodeString(wanted.Encrypted)
	if err != nil {
		return fail(http.StatusBadRequest, "encrypted: %v", err)
	}
	iv, err := base64.StdEncoding.DecodeString(wanted.IV)
	if err != nil {
		return fail(http.StatusBadRequest, "iv: %v", err)
	}
	plain, err := k.decrypt(wanted.Mode, encrypted, iv)
	if err != nil {
		// no reason, as the real one: it would tell an attacker what the padding was
		return fail(http.StatusBadRequest, "Decryption failure")
	}
	c.state.count("decrypt", k)
	return answer(map[string]string{"decrypted": encode64(plain)})
}

func (k *key) decrypt(mode string, encrypted, iv []byte) ([]byte, error) {
	private, isRSA := k.signer.(*rsa.PrivateKey)
	switch {
	case mode == "AES_CBC":
		return k.cbc(cipher.NewCBCDecrypter, encrypted, iv)
	case !isRSA:
		return nil, errors.New("this key cannot decrypt")
	case mode == "RAW":
		number := new(big.Int).SetBytes(encrypted)
		if number.Cmp(private.N) >= 0 {
			return nil, errors.New("the message is bigger than the key")
		}
		return number.Exp(number, private.D, private.N).FillBytes(make([]byte, private.Size())), nil
	case mode == "PKCS1":
		return rsa.DecryptPKCS1v15(nil, private, encrypted) //nolint:staticcheck // the description's mode PKCS1
	}
	return rsa.DecryptOAEP(hashes[strings.TrimPrefix(mode, "OAEP_")].New(), nil, private, encrypted, nil)
}

func (k *key) cbc(mode func(cipher.Block, []byte) cipher.BlockMode, data, iv []byte) ([]byte, error) {
	block, err := aes.NewCipher(k.secret)
	if err != nil {
		return nil, err
	}
	if len(iv) != aes.BlockSize || len(data)%aes.BlockSize != 0 {
		return nil, errors.New("AES-CBC takes an IV of 16 bytes and whole blocks")
	}
	done := make([]byte, len(data))
	mode(block, iv).CryptBlocks(done, data)
	return done, nil
}

func postEncrypt(c *call) *reply {
	var wanted struct {
		Mode    string `json:"mode"`
		Message string `json:"message"`
		IV      string `json:"iv,omitempty"`
	}
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	mechanism := strings.Replace(wanted.Mode, "AES_", "AES_Encryption_", 1)
	k, refusal := c.usableKey(mechanism)
	if refusal != nil {
		return refusal
	}
	message, err := base64.StdEncoding.DecodeString(wanted.Message)
	if err != nil {
		return fail(http.StatusBadRequest, "message: %v", err)
	}
	iv, err := base64.StdEncoding.DecodeString(wanted.IV)
	if err != nil {
		return fail(http.StatusBadRequest, "iv: %v", err)
	}
	if wanted.IV == "" {
		iv = randomBytes(aes.BlockSize)
	}
	encrypted, err := k.cbc(cipher.NewCBCEncrypter, message, iv)
	if err != nil {
		return fail(http.StatusBadRequest, "Encryption failed: %v", err)
	}
	c.state.count("encrypt", k)
	return answer(map[string]string{"encrypted": encode64(encrypted), "iv": encode64(iv)})
}
