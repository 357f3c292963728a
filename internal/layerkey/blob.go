package layerkey

import (
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// blobs is what ocicrypt's experimental pkcs11 scheme makes: the options, encrypted to each recipient by RSA-OAEP
// itself.
type blobs struct {
	Version    uint `json:"version"`
	Recipients []struct {
		Blob []byte `json:"blob"`
		Hash string `json:"hash"`
	} `json:"recipients"`
}

// blobBounds allow for more recipients than a layer may have.
var blobBounds = bound.Limits{Bytes: packetLimit, Depth: bound.Depth, Elements: 16 * recipientsLimit}

func parseBlobs(data []byte) (wrapping, error) {
	w := wrapping{open: openBlob}
	if err := bound.JSON(data, blobBounds); err != nil {
		return w, err
	}
	var b blobs
	if err := json.Unmarshal(data, &b); err != nil {
		return w, err
	}
	if b.Version != 0 {
		return w, errors.New("its version is not known here")
	}
	for _, r := range b.Recipients {
		l := lock{Holder: Holder{Algorithm: "RSA-OAEP"}, encrypted: r.Blob, rsaSize: len(r.Blob)}
		switch r.Hash {
		case "", "sha1": // nothing stands for SHA-1, as in the first versions
		case "sha256":
			l.Algorithm = "RSA-OAEP-256"
		default:
			l.Algorithm, l.rsaSize = fmt.Sprintf("RSA-OAEP with %.20q", r.Hash), 0 // fits no key
		}
		w.locks = append(w.locks, l)
	}
	return w, nil
}

func openBlob(ctx context.Context, l lock, k keystore.Key) ([]byte, error) {
	hash := crypto.SHA1
	if l.Algorithm == "RSA-OAEP-256" {
		hash = crypto.SHA256
	}
	return k.Decrypt(ctx, l.encrypted, &rsa.OAEPOptions{Hash: hash})
}
