package proof_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/notaryproject/notation-core-go/signature"
	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
)

// recorder signs for notation-core-go, and keeps what it was given and what it made.
type recorder struct {
	key           *ecdsa.PrivateKey
	cert          *x509.Certificate
	signed, value []byte
}

func newRecorder(t testing.TB) *recorder {
	t.Helper()
	r := &recorder{key: prooftest.Key(elliptic.P256(), 20)}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "release",
		Organization: []string{"Example"}, Country: []string{"CH"}}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, r.key.Public(), r.key)
	if err == nil {
		r.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// KeySpec says what the key is.
func (r *recorder) KeySpec() (signature.KeySpec, error) {
	return signature.KeySpec{Type: signature.KeyTypeEC, Size: 256}, nil
}

// Sign signs as a module does: ECDSA as r||s.
func (r *recorder) Sign(data []byte) ([]byte, []*x509.Certificate, error) {
	digest := sha256.Sum256(data)
	a, b, err := ecdsa.Sign(rand.Reader, r.key, digest[:])
	if err != nil {
		return nil, nil, err
	}
	r.signed, r.value = data, append(a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))...)
	return r.value, []*x509.Certificate{r.cert}, nil
}

// envelope returns an envelope that notation-core-go makes.
func (r *recorder) envelope(t testing.TB, mediaType string) []byte {
	t.Helper()
	envelope, err := signature.NewEnvelope(mediaType)
	if err != nil {
		t.Fatal(err)
	}
	target := `{"targetArtifact":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` +
		`e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":528}}`
	if mediaType == jws.MediaTypeEnvelope { // sorted, as notation-core-go encodes it
		target = `{"targetArtifact":{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",` +
			`"mediaType":"application/vnd.oci.image.manifest.v1+json","size":528}}`
	}
	data, err := envelope.Sign(&signature.SignRequest{Payload: signature.Payload{
		ContentType: "application/vnd.cncf.notary.payload.v1+json", Content: []byte(target)}, Signer: r,
		SigningTime: time.Now(), SigningScheme: signature.SigningSchemeX509, SigningAgent: "notation-go/1.3.2"})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestOfEnvelope names signatures by what their key was given, and by what it made of it.
func TestOfEnvelope(t *testing.T) {
	t.Parallel()
	for _, mediaType := range []string{jws.MediaTypeEnvelope, cose.MediaTypeEnvelope} {
		r := newRecorder(t)
		data := r.envelope(t, mediaType)
		if _, err := payload.Read(r.signed); err != nil {
			t.Errorf("%s: %v", mediaType, err)
		}
		signed, value, err := proof.OfEnvelope(mediaType, data)
		if err != nil || signed != approval.Hash(r.signed) || value != approval.Hash(r.value) {
			t.Errorf("%s: %s, %s, %v", mediaType, signed, value, err)
		}
	}
}

// TestOfEnvelopeRefuses refuses envelopes that parsers can read in two ways.
func TestOfEnvelopeRefuses(t *testing.T) {
	t.Parallel()
	var good map[string]any
	text := newRecorder(t).envelope(t, jws.MediaTypeEnvelope)
	if err := json.Unmarshal(text, &good); err != nil {
		t.Fatal(err)
	}
	with := func(name string, value any) []byte {
		changed := maps.Clone(good)
		if changed[name] = value; value == nil {
			delete(changed, name)
		}
		data, err := json.Marshal(changed)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, data := range map[string][]byte{
		"other case":       with("Payload", good["payload"]),
		"other field":      with("signatures", []string{}),
		"no signature":     with("signature", nil),
		"empty signature":  with("signature", ""),
		"number":           with("signature", 1),
		"null":             append(bytes.TrimSuffix(with("protected", nil), []byte("}")), `,"protected":null}`...),
		"padding":          with("payload", good["payload"].(string)+"="),
		"line break":       with("payload", good["payload"].(string)+"\n"),
		"standard base64":  with("payload", base64.StdEncoding.EncodeToString([]byte{0xff, 0xff, 0xff})),
		"bits that remain": with("payload", "e31"),
		"twice":            append(bytes.TrimSuffix(text, []byte("}")), `,"payload":"e30"}`...),
		"not JSON":         []byte("{"),
		"list":             []byte("[]"),
	} {
		_, _, err := proof.OfEnvelope(jws.MediaTypeEnvelope, data)
		denies(t, name, err, "cannot read the signature's envelope")
	}
	if _, _, err := proof.OfEnvelope(jws.MediaTypeEnvelope, with("header", map[string]any{})); err != nil {
		t.Error(err)
	}
	tagged := func(number uint64, content any) []byte {
		data, err := cbor.Marshal(cbor.Tag{Number: number, Content: content})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	parts := []any{[]byte{0xa0}, map[int]int{}, []byte("{}"), []byte{1}}
	if _, _, err := proof.OfEnvelope(cose.MediaTypeEnvelope, tagged(18, parts)); err != nil {
		t.Error(err)
	}
	for name, data := range map[string][]byte{
		"no tag":          tagged(18, parts)[1:],
		"other tag":       tagged(98, parts),
		"three parts":     tagged(18, parts[:3]),
		"five parts":      tagged(18, append(parts[:4:4], 1)),
		"no payload":      tagged(18, []any{parts[0], parts[1], nil, parts[3]}),
		"no header":       tagged(18, []any{[]byte{}, parts[1], parts[2], parts[3]}),
		"empty signature": tagged(18, []any{parts[0], parts[1], parts[2], []byte{}}),
		"text":            tagged(18, []any{"a", parts[1], parts[2], parts[3]}),
		"something after": append(tagged(18, parts), 0),
		"indefinite":      {0xd2, 0x9f, 0x41, 0xa0, 0xa0, 0x41, 0, 0x41, 0, 0xff},
	} {
		_, _, err := proof.OfEnvelope(cose.MediaTypeEnvelope, data)
		denies(t, name, err, "cannot read the signature's envelope")
	}
	_, _, err := proof.OfEnvelope("application/json", text)
	denies(t, "media type", err, "media type")
}
