package key

import (
	"crypto"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Info is what a module says of a private key. A nil attribute is one the module would not tell.
type Info struct {
	URI    string           // RFC 7512
	Label  string           // CKA_LABEL
	ID     []byte           // CKA_ID
	Public crypto.PublicKey // nil when the module holds no public half that can be read

	Sign, Decrypt, Unwrap, Derive *bool

	Tags []string // on a NetHSM, those of which a user must have one to use the key; none: all users may

	Sensitive        *bool // CKA_SENSITIVE: its value can't be read
	AlwaysSensitive  *bool // it never could
	Extractable      *bool // CKA_EXTRACTABLE: it can be wrapped and taken out
	NeverExtractable *bool // it never could
	Local            *bool // made on the token
	AlwaysAuth       *bool // CKA_ALWAYS_AUTHENTICATE: every signature asks for the PIN
	WrapWithTrusted  *bool // CKA_WRAP_WITH_TRUSTED: only a key that the security officer trusts can wrap it
}

// Receives is what a module tells of a key as a recipient's: whether its private half opens what is encrypted to its
// public half.
type Receives struct {
	Refusal string // why it can't, such as "CKA_ENCRYPT is false"; empty if nothing says so
	Sure    bool   // whether the module says that it can
	// of SHA-256 and SHA-1, those that the module does OAEP with, the safer one first; nil if it does not tell
	OAEP []crypto.Hash
}

// Token is a token in a slot of a module, or an empty promise of one.
type Token struct {
	URI           string   `json:"uri"`  // RFC 7512
	Slot          uint     `json:"slot"` // C_GetSlotList's number
	Label         string   `json:"label"`
	Serial        string   `json:"serial"`
	Manufacturer  string   `json:"manufacturer"`
	Model         string   `json:"model"`
	Initialized   bool     `json:"initialized"`
	LoginRequired bool     `json:"loginRequired"`
	PINPad        bool     `json:"pinPad"` // CKF_PROTECTED_AUTHENTICATION_PATH: the PIN is typed on the device
	WriteProtect  bool     `json:"readOnly"`
	PIN           PINState `json:"pin"`
	Sessions      string   `json:"sessions,omitempty"` // "used/max" where the module tells
}

// PINState is what the token says of the user PIN, worst thing first.
type PINState string

const (
	PINLocked   PINState = "locked"         // too many wrong PINs; the security officer must reset it
	PINFinalTry PINState = "final try"      // one more wrong PIN locks it
	PINCountLow PINState = "wrong PIN seen" // a wrong PIN was given since the last right one
	PINExpired  PINState = "must be changed"
	PINNotSet   PINState = "not set"
	PINReady    PINState = "ok"
	PINNotTold  PINState = "not told"
)

// Usage is what a key is made for.
type Usage string

const (
	Sign    Usage = "sign"    // and nothing else
	Decrypt Usage = "decrypt" // decrypt, unwrap or derive, and not sign: a recipient's key
)

// ParseUsage returns the usage of a name.
func ParseUsage(name string) (Usage, error) {
	if usage := Usage(name); usage == Sign || usage == Decrypt {
		return usage, nil
	}
	return "", failure.New(failure.Invalid, "%q is not a usage", name).WithHint("use sign or decrypt")
}

// Request says which key to make.
type Request struct {
	Spec  Spec
	Usage Usage
	Label string // CKA_LABEL, required
	ID    []byte // CKA_ID; random when empty

	Tags []string // as in Info; PKCS#11 has no such thing

	// Wrappable lets a trusted wrapping key, and no other, take the key out of the token, encrypted.
	Wrappable bool
}

// WrappingKey is a secret key that wraps others, and that the security officer trusts to do so.
type WrappingKey struct {
	Label string // CKA_LABEL
	ID    []byte // CKA_ID
}

// Wrapped is a private key outside its token: encrypted in the module.
type Wrapped struct {
	Bytes     []byte
	Mechanism string // by its name in PKCS#11
	By        WrappingKey
}

// MAC authenticates data under a wrapping key: an HMAC-SHA256 by a key that was made in the module for it alone, and
// that key, wrapped. Nobody can make one who can't use the wrapping key.
type MAC struct {
	Key   []byte // wrapped
	Value []byte
}
