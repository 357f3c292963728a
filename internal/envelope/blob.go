package envelope

import (
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"

	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// blobs is what ocicrypt's experimental pkcs11 scheme makes: the options, encrypted to each recipient by RSA-OAEP itself.
type blobs struct {
	Version    uint `json:"version"`
	Recipients []struct {
		Blob []byte `json:"blob"`
		Hash string `json:"hash"`
	} `json:"recipients"`
}

func blobLocks(p packet) ([]lock, error) {
	var b blobs
	if err := json.Unmarshal(p.data, &b); err != nil {
		return nil, damaged(p.scheme, err)
	}
	if b.Version != 0 {
		return nil, damaged(p.scheme, errors.New("its version is not known here"))
	}
	var locks []lock
	for i, r := range b.Recipients {
		l := lock{Holder: Holder{Scheme: p.scheme, Algorithm: "RSA-OAEP"}, index: i, encrypted: r.Blob, rsaSize: len(r.Blob)}
		switch r.Hash {
		case "", "sha1": // nothing stands for SHA-1, as in the first versions
		case "sha256":
			l.Algorithm = "RSA-OAEP-256"
		default:
			l.Algorithm, l.rsaSize = "RSA-OAEP with "+base64.RawURLEncoding.EncodeToString([]byte(r.Hash)), 0 // fits no key
		}
		locks = append(locks, l)
	}
	if len(locks) == 0 {
		return nil, damaged(p.scheme, errors.New("it has no recipients"))
	}
	return locks, nil
}

func openBlob(l lock, k keystore.Key) ([]byte, error) {
	hash := crypto.SHA1
	if l.Algorithm == "RSA-OAEP-256" {
		hash = crypto.SHA256
	}
	return k.Decrypt(nil, l.encrypted, &rsa.OAEPOptions{Hash: hash})
}
