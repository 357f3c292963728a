package worker

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// kind says what a frame is.
type kind uint8

// The kinds that the parent sends: one for each operation, and those that belong to a call in progress.
const (
	opCancel    kind = iota // nobody waits for the answer of the call
	opGivePIN               // the PIN is the next packet of the other socket; or a failure is the body
	opPing                  // is answered at once
	opDropKey               // the number of a key that is not used any more; has no answer
	opStartLane             // the number of a lane on which calls follow; has no answer
	opOpenStore
	opListTokens
	opGenerate
	opImportWrapping
	opCloseStore
	opLogin
	opFindKey
	opFindKeys
	opPublic
	opReceives
	opLeaf
	opIssuers
	opCertificates
	opImportChain
	opDeleteKey
	opDiscard
	opTaken
	opFindWrapping
	opWrap
	opUnwrap
	opAuthenticate
	opVerify
	opReadPublic
	opInfo
	opSign
	opSignMessage
	opDecrypt
	opECDH
	operations // the number of kinds
)

// The kinds that the process of a module sends.
const (
	msgStarted  kind = iota // is the first frame
	msgAnswered             // the result of a call
	msgFailed               // the failure of a call
	msgWantPIN              // a call needs the PIN
	msgLoggedIn             // the login of a call that got the PIN has ended: with a failure, if there is a body
	msgProgress             // how far a call has come
)

const greeting = "notation-hsm worker 1"

// changes reports whether an operation may leave a trace on the token, so that it is not repeated.
func (k kind) changes() bool {
	switch k {
	case opGenerate, opImportWrapping, opImportChain, opDeleteKey, opDiscard, opUnwrap:
		return true
	}
	return false
}

// activity completes the sentence "... while ...".
func (k kind) activity() string {
	switch k {
	case opOpenStore:
		return "opening a session"
	case opPing:
		return "sending a call"
	case opLogin:
		return "logging in"
	case opSign, opSignMessage:
		return "signing"
	case opDecrypt:
		return "decrypting"
	case opECDH:
		return "deriving"
	case opGenerate:
		return "generating a key"
	case opImportWrapping:
		return "storing a wrapping key"
	case opImportChain:
		return "storing certificates"
	case opDeleteKey, opDiscard:
		return "deleting a key"
	case opUnwrap:
		return "unwrapping a key"
	}
	return "reading the token"
}

// arguments are those of every operation, in JSON, except of sign, signMessage, decrypt and ecdh.
type arguments struct {
	Store    uint64           `json:",omitempty"`
	Key      uint64           `json:",omitempty"`
	Settings *config.Settings `json:",omitempty"` // without a PIN and without its source

	Name      *config.URI `json:",omitempty"`
	Label     string      `json:",omitempty"`
	ID        []byte      `json:",omitempty"`
	Usage     key.Usage   `json:",omitempty"`
	Public    []byte      `json:",omitempty"` // SubjectPublicKeyInfo in DER
	Chain     [][]byte    `json:",omitempty"` // certificates in DER
	PINSource string      `json:",omitempty"` // as pinSource makes it

	Request   *key.Request    `json:",omitempty"`
	Wrapping  key.WrappingKey `json:",omitzero"`
	Wrapped   *key.Wrapped    `json:",omitempty"`
	MAC       *key.MAC        `json:",omitempty"`
	Mechanism string          `json:",omitempty"`
	Data      []byte          `json:",omitempty"`
}

// results are those of every operation, in JSON, except of sign, signMessage, decrypt and ecdh.
type results struct {
	Store  uint64          `json:",omitempty"`
	Keys   list[foundKey]  `json:",omitempty"`
	Token  *key.Token      `json:",omitempty"`
	Tokens list[key.Token] `json:",omitempty"`

	Public   []byte          `json:",omitempty"` // SubjectPublicKeyInfo in DER
	Chain    list[[]byte]    `json:",omitempty"` // certificates in DER
	Info     *key.Info       `json:",omitempty"` // without Public
	Receives *key.Receives   `json:",omitempty"`
	Count    int             `json:",omitempty"`
	Taken    bool            `json:",omitempty"`
	Wrapping key.WrappingKey `json:",omitzero"`
	Wrapped  *key.Wrapped    `json:",omitempty"`
	MAC      *key.MAC        `json:",omitempty"`
}

// maxListed bounds a list of an answer. So many keys with their public halves fill a frame; without them, or anything
// else in them, a frame could hold enough to take gigabytes.
const maxListed = 1 << 18

// list is a list that reads maxListed elements at most.
type list[T any] []T

// UnmarshalJSON reads a list, and fails as soon as it is too long.
func (l *list[T]) UnmarshalJSON(text []byte) error {
	in := json.NewDecoder(bytes.NewReader(text))
	if start, err := in.Token(); err != nil || start != json.Delim('[') {
		return errAnswer()
	}
	*l = nil
	for in.More() {
		if len(*l) == maxListed {
			return errAnswer()
		}
		var one T
		if err := in.Decode(&one); err != nil {
			return err
		}
		*l = append(*l, one)
	}
	return nil
}

// foundKey is a private key that the process of a module has found.
type foundKey struct {
	Key    uint64
	Public []byte `json:",omitempty"` // SubjectPublicKeyInfo in DER; empty if the module does not show it
}

// askedPIN is the body of wantPIN.
type askedPIN struct {
	Token string // its URI
	Name  string // as a person is asked for its PIN
}

// progress is the body of msgProgress: what keystore.ReportProgress is told.
type progress struct {
	Activity    string
	Done, Total int
}

// decodeProgress reads how far a call has come. It refuses an activity that a terminal would not show as it is.
func decodeProgress(body []byte) (made progress, err error) {
	err = json.Unmarshal(body, &made)
	odd := func(r rune) bool { return r < ' ' || r > '~' }
	if err == nil && (len(made.Activity) > 80 || strings.ContainsFunc(made.Activity, odd)) {
		err = errors.New("its activity is not a line of text")
	}
	return made, err
}

// failureText is a failure as it is sent.
type failureText struct {
	Kind failure.Kind
	What string
	Hint string `json:",omitempty"`
	CKR  string `json:",omitempty"`
}

func encodeFailure(err error) []byte {
	f := failure.From(err)
	text, _ := json.Marshal(failureText{f.Kind, f.What, f.Hint, f.CKR}) // strings and a number always marshal
	return text
}

// decodeFailure returns the failure that a process sent. One that cannot be read, or is of no kind, is Internal.
func decodeFailure(body []byte) *failure.Error {
	var text failureText
	if err := json.Unmarshal(body, &text); err != nil || text.What == "" {
		return errAnswer()
	}
	if text.Kind < failure.Internal || text.Kind > failure.Unsupported {
		text.Kind = failure.Internal
	}
	f := failure.New(text.Kind, "%s", text.What).WithHint(text.Hint)
	f.CKR = text.CKR
	return f
}

// errAnswer is the failure of a call whose answer cannot be read.
func errAnswer() *failure.Error {
	return failure.New(failure.Internal, "the process of the PKCS#11 module sent an invalid answer").
		WithHint("report it, with the module's name and version")
}

// errCall is the failure of a call that the process of a module cannot read, or for what is not open there.
func errCall() *failure.Error {
	return failure.New(failure.Internal, "the process of the PKCS#11 module got an invalid call").
		WithHint("set NOTATION_HSM_LOG=/path/to/log, run it again, and report it with the log")
}

// encodePublic returns a SubjectPublicKeyInfo in DER; nil for nil.
func encodePublic(public crypto.PublicKey) ([]byte, error) {
	if public == nil {
		return nil, nil
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, failure.New(failure.Unsupported, "cannot encode the public key: %w", err).
			WithHint("use an RSA or elliptic curve key")
	}
	return der, nil
}

// decodePublic is the inverse of encodePublic.
func decodePublic(der []byte) (crypto.PublicKey, error) {
	if len(der) == 0 {
		return nil, nil
	}
	return x509.ParsePKIXPublicKey(der)
}

func encodeCertificates(certs []*x509.Certificate) [][]byte {
	var ders [][]byte
	for _, cert := range certs {
		ders = append(ders, cert.Raw)
	}
	return ders
}

func decodeCertificates(ders [][]byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// scheme says how a key is used.
type scheme uint8

const (
	plain scheme = iota // PKCS #1 v1.5 signatures, ECDSA
	pss
	oaep
	pkcs1Decryption
)

// A use is one use of a private key: the number of the key in 8 bytes, the scheme, the hash and the mask generation
// function's hash in one byte each, a length in 4 bytes (of the salt, or of a session key), the length of the label in
// 4, the label, and the data.
type use struct {
	key    uint64
	scheme scheme
	hash   crypto.Hash
	mgf    crypto.Hash
	length int
	label  []byte
	data   []byte
}

const useSize = 8 + 3 + 4 + 4

// head returns all but the data.
func (u use) head() []byte {
	head := make([]byte, 0, useSize+len(u.label))
	head = binary.BigEndian.AppendUint64(head, u.key)
	head = append(head, byte(u.scheme), byte(u.hash), byte(u.mgf))      //nolint:gosec // hashes are small numbers
	head = binary.BigEndian.AppendUint32(head, uint32(int32(u.length))) //nolint:gosec // checked by its maker
	head = binary.BigEndian.AppendUint32(head, uint32(len(u.label)))    //nolint:gosec // a frame is shorter
	return append(head, u.label...)
}

func decodeUse(body []byte) (u use, ok bool) {
	if len(body) < useSize {
		return u, false
	}
	label := int64(binary.BigEndian.Uint32(body[15:]))
	if label > int64(len(body)-useSize) {
		return u, false
	}
	u = use{
		key: binary.BigEndian.Uint64(body), scheme: scheme(body[8]), hash: crypto.Hash(body[9]), mgf: crypto.Hash(body[10]),
		length: int(int32(binary.BigEndian.Uint32(body[11:]))), //nolint:gosec // it may be negative
		label:  body[useSize : useSize+label], data: body[useSize+label:],
	}
	return u, u.scheme <= pkcs1Decryption
}

// signing returns the use that signs with these options.
func signing(opts crypto.SignerOpts) use {
	if o, ok := opts.(*rsa.PSSOptions); ok {
		return use{scheme: pss, hash: o.HashFunc(), length: o.SaltLength}
	}
	return use{hash: opts.HashFunc()}
}

// signerOpts is the inverse of signing.
func (u use) signerOpts() crypto.SignerOpts {
	if u.scheme == pss {
		return &rsa.PSSOptions{Hash: u.hash, SaltLength: u.length}
	}
	return u.hash
}

// decrypting returns the use that decrypts with these options, and whether they are known.
func decrypting(opts crypto.DecrypterOpts) (u use, ok bool) {
	switch o := opts.(type) {
	case *rsa.OAEPOptions:
		return use{scheme: oaep, hash: o.Hash, mgf: o.MGFHash, label: o.Label}, true
	case *rsa.PKCS1v15DecryptOptions: //nolint:staticcheck // deprecated as dangerous, and what CMS in images has
		return use{scheme: pkcs1Decryption, length: o.SessionKeyLen}, true
	}
	return u, false
}

// decrypterOpts is the inverse of decrypting.
func (u use) decrypterOpts() crypto.DecrypterOpts {
	if u.scheme == oaep {
		return &rsa.OAEPOptions{Hash: u.hash, MGFHash: u.mgf, Label: u.label}
	}
	return &rsa.PKCS1v15DecryptOptions{SessionKeyLen: u.length} //nolint:staticcheck // as above
}
