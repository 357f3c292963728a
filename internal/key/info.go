package key

import (
	"crypto"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Info describes a private key by the attributes that its module returned. An attribute that the module did not return
// is nil.
type Info struct {
	URI    string           // RFC 7512
	Label  string           // CKA_LABEL
	ID     []byte           // CKA_ID
	Public crypto.PublicKey // nil if the module shows no public key

	Sign, Decrypt, Unwrap, Derive *bool // CKA_SIGN, CKA_DECRYPT, CKA_UNWRAP, CKA_DERIVE

	Tags []string // of a key on a NetHSM: a user needs one of them to use the key; without any, all users may

	Sensitive        *bool // CKA_SENSITIVE: its value cannot be read in plain text
	AlwaysSensitive  *bool // CKA_ALWAYS_SENSITIVE
	Extractable      *bool // CKA_EXTRACTABLE: it can be wrapped
	NeverExtractable *bool // CKA_NEVER_EXTRACTABLE
	Local            *bool // CKA_LOCAL: it was generated on the token
	AlwaysAuth       *bool // CKA_ALWAYS_AUTHENTICATE: every signature needs the PIN
	WrapWithTrusted  *bool // CKA_WRAP_WITH_TRUSTED: only a key with CKA_TRUSTED can wrap it
}

// Receives tells whether a key can be a recipient's: whether its private key opens what is encrypted to its public key.
type Receives struct {
	Refusal string // why it cannot, such as "CKA_ENCRYPT is false"; empty if nothing says so
	Sure    bool   // the module says that it can
	// The hashes, of SHA-256 and SHA-1, that the module does OAEP with, SHA-256 first; nil if the module does not say.
	OAEP []crypto.Hash
}

// Token describes the token in a slot. It may not be initialized yet.
type Token struct {
	URI           string   `json:"uri"`  // RFC 7512
	Slot          uint     `json:"slot"` // slot ID as C_GetSlotList returns it
	Label         string   `json:"label"`
	Serial        string   `json:"serial"`
	Manufacturer  string   `json:"manufacturer"`
	Model         string   `json:"model"`
	Initialized   bool     `json:"initialized"`
	LoginRequired bool     `json:"loginRequired"`
	PINPad        bool     `json:"pinPad"` // CKF_PROTECTED_AUTHENTICATION_PATH: the PIN is entered on the device
	WriteProtect  bool     `json:"readOnly"`
	PIN           PINState `json:"pin"`
	Sessions      string   `json:"sessions,omitempty"` // "used/max"; empty if the module does not count them
}

// PINState is the state of the user PIN. Of several flags of the token it is the most serious one.
type PINState string

// The states, most serious first.
const (
	PINLocked   PINState = "locked"         // after too many wrong PINs; the security officer has to reset it
	PINFinalTry PINState = "final try"      // one more wrong PIN locks it
	PINCountLow PINState = "wrong PIN seen" // a wrong PIN was entered since the last correct one
	PINExpired  PINState = "must be changed"
	PINNotSet   PINState = "not set"
	PINReady    PINState = "ok"
	PINNotTold  PINState = "not told"
)

// Usage is what a key is generated for.
type Usage string

// The usages.
const (
	Sign    Usage = "sign"    // sign only
	Decrypt Usage = "decrypt" // decrypt, unwrap or derive, but not sign: a recipient's key
)

// ParseUsage returns the usage of this name.
func ParseUsage(name string) (Usage, error) {
	if usage := Usage(name); usage == Sign || usage == Decrypt {
		return usage, nil
	}
	return "", failure.New(failure.Invalid, "unknown usage %q", name).WithHint("use sign or decrypt")
}

// Request describes a key to generate.
type Request struct {
	Spec  Spec
	Usage Usage
	Label string // CKA_LABEL, required
	ID    []byte // CKA_ID; random when empty

	Tags []string // on a NetHSM only, as in Info

	// Wrappable lets a wrapping key with CKA_TRUSTED, and no other key, wrap the key.
	Wrappable bool
}

// WrappingKey names a secret key with CKA_TRUSTED, which wraps other keys.
type WrappingKey struct {
	Label string // CKA_LABEL
	ID    []byte // CKA_ID
}

// Wrapped is a private key that was encrypted in its module by a wrapping key.
type Wrapped struct {
	Bytes     []byte
	Mechanism string // name in PKCS#11, such as CKM_AES_KEY_WRAP_KWP
	By        WrappingKey
}

// MAC authenticates data under a wrapping key: an HMAC-SHA256 with a key that was generated in the module for this one
// use, and that key, wrapped. Only who can use the wrapping key can make a MAC that verifies.
type MAC struct {
	Key   []byte // wrapped
	Value []byte
}
