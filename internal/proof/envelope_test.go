package proof_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
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

// recorder signs for notation-core-go, and keeps what it was given and what a module made of it.
type recorder struct {
	key           crypto.Signer
	spec          signature.KeySpec
	cert          *x509.Certificate
	signed, value []byte // ECDSA in DER, as brokers log it
}

func newRecorder(t testing.TB, key crypto.Signer, spec signature.KeySpec) *recorder {
	t.Helper()
	r := &recorder{key: key, spec: spec}
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

// ecRecorder returns a recorder with a P-256 key.
func ecRecorder(t testing.TB) *recorder {
	t.Helper()
	return newRecorder(t, prooftest.Key(elliptic.P256(), 20), signature.KeySpec{Type: signature.KeyTypeEC, Size: 256})
}

// KeySpec says what the key is.
func (r *recorder) KeySpec() (signature.KeySpec, error) { return r.spec, nil }

// Sign signs as a broker does, and returns what the plugin makes of it: ECDSA as r||s.
func (r *recorder) Sign(data []byte) ([]byte, []*x509.Certificate, error) {
	hash := r.spec.SignatureAlgorithm().Hash()
	options := crypto.SignerOpts(hash)
	if r.spec.Type == signature.KeyTypeRSA {
		options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	var err error
	r.signed = data
	if r.value, err = crypto.SignMessage(r.key, rand.Reader, data, options); err != nil {
		return nil, nil, err
	}
	raw := r.value
	if r.spec.Type == signature.KeyTypeEC {
		var pair struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(r.value, &pair); err != nil {
			return nil, nil, err
		}
		size := (r.spec.Size + 7) / 8
		raw = append(pair.R.FillBytes(make([]byte, size)), pair.S.FillBytes(make([]byte, size))...)
	}
	return raw, []*x509.Certificate{r.cert}, nil
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
	recorders := []*recorder{}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		recorders = append(recorders, newRecorder(t, prooftest.Key(curve, 20), signature.KeySpec{Type: signature.KeyTypeEC,
			Size: curve.Params().BitSize}))
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	recorders = append(recorders, newRecorder(t, key, signature.KeySpec{Type: signature.KeyTypeRSA, Size: 2048}))
	for _, r := range recorders {
		for _, mediaType := range []string{jws.MediaTypeEnvelope, cose.MediaTypeEnvelope} {
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
}

// TestOfEnvelopeRefuses refuses envelopes that parsers can read in two ways.
func TestOfEnvelopeRefuses(t *testing.T) {
	t.Parallel()
	var good map[string]any
	text := ecRecorder(t).envelope(t, jws.MediaTypeEnvelope)
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
