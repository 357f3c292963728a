// Package brokerapi is the HTTP API of hsm-broker, version 1, as its servers and its client share it: paths, messages,
// and failures as problem details (RFC 9457). openapi.yaml describes it.
//
// Bytes are in base64 (RFC 4648 section 4, with padding) in JSON.
package brokerapi

import (
	"net/url"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// KeysPath is the path of all keys.
const KeysPath = "/v1/keys"

// KeyPath returns the path of a key: of its name, or of its URI without a query.
func KeyPath(key string) string { return KeysPath + "/" + url.PathEscape(key) }

// SignaturesPath returns the path to which a SignatureRequest is posted.
func SignaturesPath(key string) string { return KeyPath(key) + "/signatures" }

// LayerKeysPath returns the path to which a LayerKeyRequest is posted.
func LayerKeysPath(key string) string { return KeyPath(key) + "/layer-keys" }

// Key is a key that a broker uses for its callers.
type Key struct {
	Name    string           `json:"name"`
	URI     string           `json:"uri"`   // RFC 7512, without a query
	Token   string           `json:"token"` // URI of its token, likewise
	Label   string           `json:"label"`
	ID      []byte           `json:"id,omitempty"`      // CKA_ID
	Spec    string           `json:"spec,omitempty"`    // as Notation names it; "" if Notation does not sign with the key
	Public  []byte           `json:"public"`            // SubjectPublicKeyInfo in DER
	Chain   [][]byte         `json:"chain,omitempty"`   // certificates in DER, leaf first
	Formats []payload.Format `json:"formats"`           // what the broker accepts for this key
	State   string           `json:"state,omitempty"`   // of a broker of a team: "ready", "blocked" or "unavailable"
	Sign    *bool            `json:"sign,omitempty"`    // CKA_SIGN
	Decrypt *bool            `json:"decrypt,omitempty"` // CKA_DECRYPT
	Derive  *bool            `json:"derive,omitempty"`  // CKA_DERIVE
	// Receives is what the module says of the key as a recipient's; nil unless Formats has layer-key, and in a list.
	Receives *Receives `json:"receives,omitempty"`
}

// Receives tells whether a key opens what is encrypted to its public key.
type Receives struct {
	Refusal string   `json:"refusal,omitempty"` // why it does not
	Sure    bool     `json:"sure"`              // the module says that it does
	OAEP    []string `json:"oaep,omitempty"`    // hashes that OAEP works with, of "SHA-256" and "SHA-1"
}

// Keys lists the keys of a broker.
type Keys struct {
	Token string `json:"token"` // URI (RFC 7512) of the token that has them
	Keys  []Key  `json:"keys"`
}

// SignatureRequest asks for a signature.
type SignatureRequest struct {
	Payload   Bytes  `json:"payload"`   // all bytes to be signed, not their hash
	Algorithm string `json:"algorithm"` // as payload.Artifact has it
	// Repository is where the artifact is, without tag and digest: a broker of a team fetches the digest there before
	// rules see it. An agent ignores it.
	Repository string `json:"repository,omitempty"`
}

// Signature is the answer to a SignatureRequest.
type Signature struct {
	Signature []byte           `json:"signature"` // RSA (RFC 8017), or ECDSA in ASN.1 DER (RFC 3279 section 2.2.3)
	Algorithm string           `json:"algorithm"`
	Artifact  payload.Artifact `json:"artifact"`          // what the broker read from the payload
	Request   string           `json:"request,omitempty"` // ID of the request, of a broker of a team
}

// LayerKeyRequest asks for the options of an encrypted image layer.
type LayerKeyRequest struct {
	JWE Bytes `json:"jwe"` // JSON, as ocicrypt writes it
}

// LayerKey is the answer to a LayerKeyRequest.
type LayerKey struct {
	Options []byte `json:"options"` // ocicrypt's JSON, with the key of the layer
}

// ProblemType is the media type of a Problem.
const ProblemType = "application/problem+json"

// Problem is a failure as it is answered.
type Problem struct {
	Title  string `json:"title"`          // of the status
	Status int    `json:"status"`         // of HTTP
	Kind   string `json:"kind"`           // of internal/failure
	Detail string `json:"detail"`         // the message
	Hint   string `json:"hint,omitempty"` // one instruction
	CKR    string `json:"ckr,omitempty"`  // PKCS#11 return value by name
}

// Failure returns the problem as a failure.
func (p Problem) Failure() *failure.Error {
	f := failure.New(failure.ParseKind(p.Kind), "%s", p.Detail).WithHint(p.Hint)
	f.CKR = p.CKR
	return f
}
