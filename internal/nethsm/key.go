package nethsm

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// Key is a private key on a NetHSM. It may be used from many goroutines, until its Store is closed.
type Key struct {
	store  *Store
	id     string
	public crypto.PublicKey // nil for a key of a list, until Info
}

// Public returns the key's public half.
func (k *Key) Public() crypto.PublicKey { return k.public }

func (k *Key) name() string { return config.NetHSMScheme + k.id }

// hashNames are as the modes of the API have them.
var hashNames = map[crypto.Hash]string{
	crypto.SHA1: "SHA1", crypto.SHA224: "SHA224", crypto.SHA256: "SHA256", crypto.SHA384: "SHA384",
	crypto.SHA512: "SHA512",
}

// signing is SignRequestData of the API.
type signing struct {
	Mode    string `json:"mode"`
	Message string `json:"message"` // base64
}

// Sign signs a digest: *rsa.PSSOptions select RSASSA-PSS (RFC 8017, section 8.1; the salt is as long as the digest,
// whatever they say), a crypto.Hash PKCS #1 v1.5 or ECDSA. An ECDSA signature is ASN.1 DER.
func (k *Key) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc()
	name, known := hashNames[hash]
	if !known || len(digest) != hash.Size() {
		return nil, failure.New(failure.Internal, "can't sign a digest of %d bytes with %v", len(digest), hash)
	}
	s := signing{Mode: "ECDSA"}
	if _, isRSA := k.public.(*rsa.PublicKey); isRSA {
		s.Mode = "PSS_" + name
		if _, pss := opts.(*rsa.PSSOptions); !pss {
			s.Mode = "PKCS1"
			var err error
			if digest, err = digestInfo(digest, hash); err != nil {
				return nil, err
			}
		}
	}
	s.Message = base64.StdEncoding.EncodeToString(digest)
	r := request{what: "signing with key " + k.name(), path: "/sign"}
	var answer struct {
		Signature string `json:"signature"`
	}
	if err := k.use(ctx, r, s, &answer); err != nil {
		return nil, err
	}
	signature, err := base64.StdEncoding.DecodeString(answer.Signature)
	if err != nil || len(signature) == 0 {
		return nil, malformed(r.what, errors.New("it has no signature"))
	}
	return signature, nil
}

// SignMessage is Sign for a whole message. NetHSM hashes nothing itself.
func (k *Key) SignMessage(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if !opts.HashFunc().Available() {
		return nil, failure.New(failure.Internal, "hash %v is not available", opts.HashFunc())
	}
	h := opts.HashFunc().New()
	h.Write(message)
	return k.Sign(ctx, h.Sum(nil), opts)
}

// hashOIDs are the identifiers of the hashes (RFC 8017, appendix B.1).
var hashOIDs = map[crypto.Hash]asn1.ObjectIdentifier{
	crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1}, crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2},
	crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
}

// digestInfo puts a digest into the structure that RSASSA-PKCS1-v1_5 signs (RFC 8017, section 9.2).
func digestInfo(digest []byte, hash crypto.Hash) ([]byte, error) {
	oid, ok := hashOIDs[hash]
	if !ok {
		return nil, failure.New(failure.Internal, "no signature with PKCS #1 v1.5 is made over %v", hash)
	}
	type algorithm struct {
		Algorithm  asn1.ObjectIdentifier
		Parameters asn1.RawValue
	}
	return asn1.Marshal(struct {
		Algorithm algorithm
		Digest    []byte
	}{algorithm{oid, asn1.NullRawValue}, digest})
}

// use has the key sign or decrypt, as the operator.
func (k *Key) use(ctx context.Context, r request, body, into any) error {
	var err error
	if r.body, err = json.Marshal(body); err != nil {
		return err
	}
	r.method, r.path = http.MethodPost, keyPath(k.id)+r.path
	a, err := k.store.ask(ctx, r, http.StatusOK)
	if err != nil {
		return err
	}
	return decode(r.what, a.body, into)
}

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

// description is PublicKey of the API.
type description struct {
	Mechanisms   []string     `json:"mechanisms"`
	Type         string       `json:"type"`
	Restrictions restrictions `json:"restrictions"`
	Operations   int64        `json:"operations"`
	Public       *struct {
		Modulus  []byte `json:"modulus"`
		Exponent []byte `json:"publicExponent"`
		Data     []byte `json:"data"`
	} `json:"public"`
}

// ReadPublic asks the NetHSM for the key's public half.
func (k *Key) ReadPublic(ctx context.Context) (crypto.PublicKey, error) {
	d, err := k.describe(ctx, k.store.ask)
	if err != nil {
		return nil, err
	}
	public, err := d.public()
	if err != nil {
		return nil, failure.New(failure.Invalid, "key %s can't be used: %w",
			k.name(), err).
			WithHint("use a key of one of the specs RSA-2048, RSA-3072, RSA-4096, EC-256, EC-384 and EC-521")
	}
	return public, nil
}

func (k *Key) describe(ctx context.Context, ask asker) (*description, error) {
	r := request{what: "looking for key " + k.name(), method: http.MethodGet, path: keyPath(k.id)}
	a, err := ask(ctx, r, http.StatusOK)
	if err != nil {
		return nil, err
	}
	d, err := parseKey(a.body)
	if err != nil {
		return nil, malformed(r.what, err)
	}
	return d, nil
}

func (k *Key) exists(ctx context.Context, ask asker) (bool, error) {
	a, err := ask(ctx, request{what: "looking for key " + k.name(), method: http.MethodGet, path: keyPath(k.id)}, http.StatusOK,
		http.StatusNotFound)
	return err == nil && a.status == http.StatusOK, err
}

// isAs reports whether the key is there, and as new as it was asked for.
func (k *Key) isAs(ctx context.Context, g generation) (bool, error) {
	if there, err := k.exists(ctx, k.store.change); err != nil || !there {
		return false, err
	}
	d, err := k.describe(ctx, k.store.change)
	if err != nil {
		return false, err
	}
	public, err := d.public()
	if err != nil {
		return false, nil //nolint:nilerr // then it is another
	}
	p, isRSA := public.(*rsa.PublicKey)
	var tags []string
	if g.Restrictions != nil {
		tags = g.Restrictions.Tags
	}
	return d.Type == g.Type && d.Operations == 0 && (!isRSA || p.N.BitLen() == g.Length) &&
		sameSet(d.Mechanisms, g.Mechanisms) &&
		sameSet(d.Restrictions.Tags, tags), nil
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func parseKey(body []byte) (*description, error) {
	var d description
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, err
	}
	if d.Type == "" {
		return nil, errors.New("it has no type")
	}
	return &d, nil
}

// maxModulus is the longest that NetHSM makes, in bytes.
const maxModulus = 8192 / 8

func (d *description) public() (crypto.PublicKey, error) {
	if d.Public == nil {
		return nil, fmt.Errorf("a key of type %q has no public half", clip(d.Type))
	}
	curve := map[string]elliptic.Curve{"EC_P256": elliptic.P256(), "EC_P384": elliptic.P384(),
		"EC_P521": elliptic.P521()}[d.Type]
	switch {
	case curve != nil:
		return ecdsa.ParseUncompressedPublicKey(curve, d.Public.Data)
	case d.Type != "RSA":
		return nil, fmt.Errorf("it is of type %q", clip(d.Type))
	}
	n, e := new(big.Int).SetBytes(d.Public.Modulus), new(big.Int).SetBytes(d.Public.Exponent)
	if len(d.Public.Modulus) > maxModulus || n.BitLen() < 1024 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
		return nil, errors.New("its modulus or exponent is out of bounds")
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// parseKeyList reads KeyList of the API. IDs that can't be named are refused: they would be put into paths.
func parseKeyList(body []byte) ([]string, error) {
	var list []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	ids := make([]string, len(list))
	for i, item := range list {
		if uri, err := config.ParseURI(config.NetHSMScheme + item.ID); err != nil || uri.Object == "" ||
			strings.HasSuffix(item.ID, "*") {
			return nil, fmt.Errorf("it has a key with the ID %q", clip(item.ID))
		}
		ids[i] = item.ID
	}
	return ids, nil
}

// Info returns what the NetHSM says of the key. It gives no private key out, and does not tell where one was made.
func (k *Key) Info(ctx context.Context) (key.Info, error) { return k.infoFrom(ctx, k.store.ask) }

func (k *Key) infoFrom(ctx context.Context, ask asker) (key.Info, error) {
	d, err := k.describe(ctx, ask)
	if err != nil {
		return key.Info{}, err
	}
	does := func(part string) *bool {
		is := slices.ContainsFunc(d.Mechanisms, func(m string) bool { return strings.Contains(m, part) })
		return &is
	}
	yes, no := true, false
	info := key.Info{
		URI: k.name(), Label: k.id, Sign: does("_Signature"), Decrypt: does("_Decryption"), Unwrap: &no, Derive: &no,
		Sensitive: &yes, Extractable: &no, AlwaysAuth: &no, Tags: d.Restrictions.Tags,
	}
	if public, err := d.public(); err == nil {
		k.public, info.Public = public, public
	}
	return info, nil
}
