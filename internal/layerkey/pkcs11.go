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

// pkcs11Packet is a packet of ocicrypt's experimental scheme pkcs11. It holds the options themselves, encrypted to each
// recipient with RSA-OAEP.
type pkcs11Packet struct {
	Version    uint `json:"version"`
	Recipients []struct {
		Blob []byte `json:"blob"`
		Hash string `json:"hash"`
	} `json:"recipients"`
}

// pkcs11Bounds are those of a packet with more recipients than a layer may have.
var pkcs11Bounds = bound.Limits{Bytes: packetLimit, Depth: bound.Depth, Elements: 16 * recipientsLimit}

func parsePKCS11(data []byte) (parsedPacket, error) {
	parsed := parsedPacket{open: decryptOptions}
	if err := bound.JSON(data, pkcs11Bounds); err != nil {
		return parsed, err
	}
	var p pkcs11Packet
	if err := json.Unmarshal(data, &p); err != nil {
		return parsed, err
	}
	if p.Version != 0 {
		return parsed, errors.New("its version is unknown")
	}
	for _, r := range p.Recipients {
		wrapped := wrappedKey{RecipientInfo: RecipientInfo{Algorithm: "RSA-OAEP"}, encrypted: r.Blob, rsaSize: len(r.Blob)}
		switch r.Hash {
		case "", "sha1": // the first versions of ocicrypt leave SHA-1 out
		case "sha256":
			wrapped.Algorithm = "RSA-OAEP-256"
		default:
			wrapped.Algorithm, wrapped.rsaSize = fmt.Sprintf("RSA-OAEP with %.20q", r.Hash), 0 // fits no key
		}
		parsed.keys = append(parsed.keys, wrapped)
	}
	return parsed, nil
}

// decryptOptions decrypts the options of a pkcs11Packet.
func decryptOptions(ctx context.Context, wrapped wrappedKey, k keystore.Key) ([]byte, error) {
	hash := crypto.SHA1
	if wrapped.Algorithm == "RSA-OAEP-256" {
		hash = crypto.SHA256
	}
	return k.Decrypt(ctx, wrapped.encrypted, &rsa.OAEPOptions{Hash: hash})
}
