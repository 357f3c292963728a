package payload_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/notaryproject/notation-core-go/signature"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// cost is the memory that reading may allocate.
var cost = boundtest.Budget{Bytes: 8 << 20, BytesPerByte: 200}

// FuzzRead verifies that reading any bytes costs no more than their size allows, and fails with a message or returns an
// artifact that can be encoded.
func FuzzRead(f *testing.F) {
	for encoding := range mediaTypes {
		r := newRequest(encoding, "ECDSA-SHA-256")
		f.Add(r.bytes(f))
		r.expiry = r.signingTime.Add(time.Hour)
		r.target.Annotations = map[string]string{"build": "<42>", "é": "\u2028"}
		f.Add(r.bytes(f))
	}
	for _, seed := range []string{"DSSEv1 28 application/vnd.in-toto+json 2 {}", `{"critical":{}}`, `{"signed":{}}`,
		`{"protected":"e30","recipients":[]}`, "\x30\x03\x02\x01\x01", "eyJ9.e30", "\x84\x6aSignature1\x40\x40\x40", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var a *payload.Artifact
		var err error
		cost.Check(t, len(data), func() { a, err = payload.Read(data) })
		switch {
		case (a == nil) == (err == nil):
			t.Errorf("read as %v with %v", a, err)
		case err != nil && len(err.Error()) > 3000:
			t.Errorf("the message has %d bytes", len(err.Error()))
		case err == nil:
			if _, err := json.Marshal(a); err != nil {
				t.Error(err)
			}
			if a.Format == payload.Notation {
				checkWritten(t, data, a)
			}
		}
	})
}

// FuzzNotation verifies for protected headers and payloads in both encodings that what is read is what
// notation-core-go would ask to be signed, and what it reads from the signature.
func FuzzNotation(f *testing.F) {
	const expiry = `"io.cncf.notary.expiry"`
	f.Add(false, []byte(header), []byte(body))
	f.Add(false, []byte(strings.NewReplacer("06Z", "06+02:00", "ES256", "PS256").Replace(header)), []byte(body))
	f.Add(false, []byte(strings.NewReplacer(`Scheme"]`, `Scheme",`+expiry+`]`, `,"io.cncf.notary.signingScheme":`,
		`,`+expiry+`:"2027-11-26T21:36:06Z","io.cncf.notary.signingScheme":`).Replace(header)), []byte(body))
	f.Add(true, encode(f, headers()), []byte(coseBody))
	long := headers()
	long[1], long[2] = -35, []any{"io.cncf.notary.signingScheme", "io.cncf.notary.expiry"}
	long["io.cncf.notary.expiry"] = cbor.Tag{Number: 1, Content: 1795728967}
	f.Add(true, encode(f, long), []byte(coseBody))
	for i, test := range bodies {
		f.Add(false, []byte(header), []byte(strings.Replace(body, test.old, test.replacement, 1)))
		if i%2 == 0 {
			f.Add(true, encode(f, headers()), []byte(strings.Replace(coseBody, test.old, test.replacement, 1)))
		}
	}
	f.Fuzz(func(t *testing.T, inCOSE bool, protected, text []byte) {
		data := []byte(signingInput(string(protected), string(text)))
		if inCOSE {
			data = structure(t, protected, string(text))
		}
		a, err := payload.Read(data)
		if err != nil {
			return
		}
		checkWritten(t, data, a)
		checkVerified(t, data, a)
	})
}

// checkWritten verifies that notation-core-go writes the bytes that were read as an artifact.
func checkWritten(t *testing.T, data []byte, a *payload.Artifact) {
	t.Helper()
	r := request{encoding: a.Encoding, algorithm: a.Algorithm, scheme: signature.SigningSchemeX509,
		signingTime: a.SigningTime, expiry: a.Expiry, target: ocispec.Descriptor{MediaType: a.MediaType,
			Digest: digest.Digest(a.Digest), Size: a.Size, Annotations: a.Annotations}}
	if a.Encoding == "JWS" { // whose times have the signer's zone
		times := struct {
			SigningTime time.Time `json:"io.cncf.notary.signingTime"`
			Expiry      time.Time `json:"io.cncf.notary.expiry"`
		}{}
		protected, _, _ := strings.Cut(string(data), ".")
		text, err := base64.RawURLEncoding.DecodeString(protected)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &times); err != nil {
			t.Fatal(err)
		}
		r.signingTime, r.expiry = times.SigningTime, times.Expiry
		if !r.signingTime.Equal(a.SigningTime) || !r.expiry.Equal(a.Expiry) {
			t.Errorf("times %v and %v were read as %v and %v", r.signingTime, r.expiry, a.SigningTime, a.Expiry)
		}
	}
	if written := r.bytes(t); !bytes.Equal(written, data) {
		t.Errorf("%q was read, and is written as %q", data, written)
	}
}

// checkVerified signs the bytes, and verifies that notation-core-go accepts the envelope and reads the same from it.
func checkVerified(t *testing.T, data []byte, a *payload.Artifact) {
	t.Helper()
	key := keyFor(t, a.Algorithm)
	envelope, err := signature.ParseEnvelope(mediaTypes[a.Encoding], envelop(t, a.Encoding, data, key))
	if err != nil {
		t.Fatalf("%q: %v", data, err)
	}
	verified, err := envelope.Verify()
	if err != nil {
		t.Fatalf("%q: %v", data, err)
	}
	var signed content // which notation-go reads in the same way
	if err := json.Unmarshal(verified.Payload.Content, &signed); err != nil {
		t.Fatal(err)
	}
	target := signed.TargetArtifact
	if target.MediaType != a.MediaType || target.Digest.String() != a.Digest || target.Size != a.Size ||
		!maps.Equal(target.Annotations, a.Annotations) || target.Digest.Validate() != nil {
		t.Errorf("%+v was read as %+v", target, a)
	}
	if target.URLs != nil || target.Data != nil || target.Platform != nil || target.ArtifactType != "" {
		t.Errorf("%+v was read as %+v", target, a)
	}
	attributes := verified.SignerInfo.SignedAttributes
	if !attributes.SigningTime.Equal(a.SigningTime) || !attributes.Expiry.Equal(a.Expiry) ||
		attributes.SigningScheme != signature.SigningSchemeX509 || len(attributes.ExtendedAttributes) > 0 {
		t.Errorf("%+v was read as %+v", attributes, a)
	}
	if verified.Payload.ContentType != "application/vnd.cncf.notary.payload.v1+json" {
		t.Error(verified.Payload.ContentType)
	}
}

// envelop signs bytes with a key and returns the envelope.
func envelop(t *testing.T, encoding string, data []byte, key pair) []byte {
	t.Helper()
	signed := key.sign(t, data)
	if encoding == "COSE" {
		var s struct {
			_         struct{} `cbor:",toarray"`
			Context   string
			Protected []byte
			External  []byte
			Payload   []byte
		}
		if err := cbor.Unmarshal(data, &s); err != nil {
			t.Fatal(err)
		}
		return encode(t, cbor.Tag{Number: 18, Content: []any{s.Protected, map[any]any{33: []any{key.cert.Raw}}, s.Payload,
			signed}})
	}
	protected, text, _ := strings.Cut(string(data), ".")
	envelope, err := json.Marshal(map[string]any{"protected": protected, "payload": text,
		"signature": base64.RawURLEncoding.EncodeToString(signed), "header": map[string]any{"x5c": [][]byte{key.cert.Raw}}})
	if err != nil {
		t.Fatal(err)
	}
	return envelope
}

// TestVerified verifies with each key that notation-core-go reads from a signature what was read before it was made.
func TestVerified(t *testing.T) {
	t.Parallel()
	for algorithm := range keySpecs {
		for encoding := range mediaTypes {
			r := newRequest(encoding, algorithm)
			r.expiry = r.signingTime.Add(time.Hour)
			r.target.Annotations = map[string]string{"build": "<42> & é \u2028"}
			data := r.bytes(t)
			a, err := payload.Read(data)
			if err != nil {
				t.Fatal(err)
			}
			checkWritten(t, data, a)
			checkVerified(t, data, a)
		}
	}
}
