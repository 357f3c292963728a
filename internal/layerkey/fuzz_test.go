package layerkey

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	ocicrypt "github.com/containers/ocicrypt/config"
	ocijwe "github.com/containers/ocicrypt/keywrap/jwe"
	ocipkcs11 "github.com/containers/ocicrypt/keywrap/pkcs11"
	ocipkcs7 "github.com/containers/ocicrypt/keywrap/pkcs7"
	"github.com/smallstep/pkcs7"

	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// plainKey is a key in memory, for what must hold with any key and is tried too often for a module.
type plainKey struct {
	keystore.Key
	rsa *rsa.PrivateKey
	ec  *ecdh.PrivateKey
}

func (k plainKey) Public() crypto.PublicKey { return k.rsa.Public() }

func (k plainKey) Decrypt(_ context.Context, c []byte, o crypto.DecrypterOpts) ([]byte, error) {
	return k.rsa.Decrypt(rand.Reader, c, o)
}

func (k plainKey) ECDH(_ context.Context, remote *ecdh.PublicKey) ([]byte, error) {
	return k.ec.ECDH(remote)
}

func plainKeys(f testing.TB) []*candidate {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	ec, err := e.ECDH()
	if err != nil {
		f.Fatal(err)
	}
	return []*candidate{
		newCandidate("rsa", r.Public(), nil, plainKey{rsa: r}),
		newCandidate("ec", e.Public(), nil, plainKey{ec: ec}),
	}
}

// FuzzAnnotation opens untrusted annotations: they fail in an orderly way or open to JSON, and cost no more than their
// size allows.
func FuzzAnnotation(f *testing.F) {
	candidates := plainKeys(f)
	public := publicPEM(f, candidates[0].public)
	for i, scheme := range schemes {
		for _, packet := range [][]byte{ours(f, candidates), theirs(f, scheme, public, candidates[0].key.(plainKey)),
			jweFor(3), blobsFor(3, "sha1")} {
			f.Add(i, string(packet))
		}
	}
	f.Fuzz(func(t *testing.T, scheme int, packet string) {
		keys := &Keys{references: []string{"rsa", "ec"}, candidates: candidates, prepared: true}
		annotations := map[string]string{AnnotationPrefix +
			schemes[uint(scheme)%uint(len(schemes))]: base64.StdEncoding.EncodeToString([]byte(packet))}
		openCost.Check(t, len(packet), func() {
			keys.tries = 0
			if opened, err := keys.Open(t.Context(), annotations); err == nil && !json.Valid(opened) {
				t.Errorf("it opened to %q", opened)
			}
		})
		if keys.tries > triesLimit {
			t.Errorf("keys were used %d times", keys.tries)
		}
		if !Encrypted(annotations) {
			t.Error("it counts as not encrypted")
		}
	})
}

func ours(f testing.TB, candidates []*candidate) []byte {
	var recipients []Recipient
	for _, c := range candidates {
		recipients = append(recipients, Recipient{Name: c.name, Public: c.public, OAEP: crypto.SHA256})
	}
	jwe, err := Seal([]byte(options), recipients)
	if err != nil {
		f.Fatal(err)
	}
	return jwe
}

// theirs is what ocicrypt makes in its schemes.
func theirs(f testing.TB, scheme string, public []byte, k plainKey) (packet []byte) {
	var err error
	switch scheme {
	case schemePKCS7:
		packet, err = ocipkcs7.NewKeyWrapper().WrapKeys(
			&ocicrypt.EncryptConfig{Parameters: map[string][][]byte{"x509s": {selfSigned(f, k)}}}, []byte(options))
	case schemePKCS11:
		packet, err = ocipkcs11.NewKeyWrapper().WrapKeys(
			&ocicrypt.EncryptConfig{Parameters: map[string][][]byte{"pkcs11-pubkeys": {public}}}, []byte("{}"))
	default:
		packet, err = ocijwe.NewKeyWrapper().WrapKeys(
			&ocicrypt.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {public}}}, []byte(options))
	}
	if err != nil {
		f.Fatal(err)
	}
	return packet
}

func publicPEM(f testing.TB, public crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		f.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func selfSigned(f testing.TB, k plainKey) []byte {
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k.rsa)
	if err != nil {
		f.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestOnlyGCM refuses CMS with a content cipher that has no authentication before a key is used: what the module had
// decrypted would show in how it fails.
func TestOnlyGCM(t *testing.T) {
	candidates := plainKeys(t)
	before := pkcs7.ContentEncryptionAlgorithm
	defer func() { pkcs7.ContentEncryptionAlgorithm = before }()
	pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmAES256CBC
	block, _ := pem.Decode(selfSigned(t, candidates[0].key.(plainKey)))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	packet, err := pkcs7.Encrypt([]byte(options), []*x509.Certificate{cert})
	if err != nil {
		t.Fatal(err)
	}
	keys := &Keys{references: []string{"rsa"}, candidates: candidates, prepared: true}
	if _, err := keys.Open(t.Context(), annotation(schemePKCS7, packet)); err == nil ||
		!strings.Contains(err.Error(), "not encrypted with AES-GCM") {
		t.Errorf("a packet with CBC: %v", err)
	}
}
