package gate

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/tspclient-go"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// envelopeCost is what the verification of an envelope may allocate: its parts are decoded twice, by the check and by
// Notation, and its certificates parsed.
var envelopeCost = boundtest.Budget{Bytes: 4 << 20, BytesPerByte: 64}

// indexCost is what parsing a manifest or an index may allocate: an empty descriptor has 3 bytes in it, and 120 in
// memory.
var indexCost = boundtest.Budget{Bytes: 128 << 10, BytesPerByte: 300}

var signedImage = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("image"),
	Size: 5}

// verifyEnvelope verifies an envelope as the gate does after it has fetched it.
func (g *Gate) verifyEnvelope(t testing.TB, mediaType string, envelope []byte) (accepted bool, reason string) {
	t.Helper()
	statement, err := g.policy.GetApplicableTrustPolicy("example.com/app@" + signedImage.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	e := &examination{gate: g, statement: statement, reference: "example.com/app@" + signedImage.Digest.String(),
		descriptor: signedImage}
	outcome, err := e.verifyEnvelope(t.Context(), mediaType, envelope)
	if outcome != nil {
		_ = e.describe(outcome)
	}
	if err != nil {
		return false, err.Error()
	}
	return true, ""
}

// FuzzEnvelope verifies that no envelope crashes, that none is accepted but a trusted one, and that none costs more
// than its size allows: also at level audit, at which Notation continues with untrusted ones.
func FuzzEnvelope(f *testing.F) {
	mallory := newForger(f)
	for _, mediaType := range []string{jws.MediaTypeEnvelope, cose.MediaTypeEnvelope} {
		envelope, err := mallory.Sign(mediaType, signedImage,
			map[string]string{"io.cncf.notary.verificationPlugin": "a/../../evil"})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(mediaType == cose.MediaTypeEnvelope, envelope)
		for _, hostile := range hostileEnvelopes(f, mediaType, envelope, mallory.Certificate) {
			if len(hostile.data) < 32<<10 { // with long ones the fuzzer is slow
				f.Add(mediaType == cose.MediaTypeEnvelope, hostile.data)
			}
		}
	}
	g := openGate(f, Options{TrustDir: trusting(f, "audit")})
	strict := openGate(f, Options{TrustDir: trusting(f, "strict")})
	f.Fuzz(func(t *testing.T, isCOSE bool, envelope []byte) {
		mediaType := jws.MediaTypeEnvelope
		if isCOSE {
			mediaType = cose.MediaTypeEnvelope
		}
		envelopeCost.Check(t, len(envelope), func() { g.verifyEnvelope(t, mediaType, envelope) })
		if accepted, _ := strict.verifyEnvelope(t, mediaType, envelope); accepted {
			t.Error("it was accepted")
		}
	})
}

type hostileEnvelope struct {
	name, reason string
	data         []byte
}

// hostileEnvelopes makes envelopes that cost much to parse, of a good one.
func hostileEnvelopes(t testing.TB, mediaType string, good []byte, certificate *x509.Certificate) []hostileEnvelope {
	t.Helper()
	long := bytes.Repeat([]byte{0}, maxCertificate+1)
	deepDER := []byte{5, 0}
	for range 20 {
		deepDER = append([]byte{0x30, byte(len(deepDER))}, deepDER...)
	}
	var list []hostileEnvelope
	add := func(name, reason string, data []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, hostileEnvelope{mediaType + ": " + name, reason, data})
	}
	if mediaType == cose.MediaTypeEnvelope {
		change := func(how func(message []cbor.RawMessage, unprotected map[any]any)) ([]byte, error) {
			var tag cbor.RawTag
			var message []cbor.RawMessage
			var unprotected map[any]any
			for _, err := range []error{cbor.Unmarshal(good, &tag), cbor.Unmarshal(tag.Content, &message),
				cbor.Unmarshal(message[1], &unprotected)} {
				if err != nil {
					return nil, err
				}
			}
			how(message, unprotected)
			var err error
			if tag.Content, err = cbor.Marshal([]any{message[0], unprotected, message[2], message[3]}); err != nil {
				return nil, err
			}
			return cbor.Marshal(tag)
		}
		chain := func(certificates ...any) ([]byte, error) {
			return change(func(_ []cbor.RawMessage, unprotected map[any]any) { unprotected[coseLabelX5Chain] = certificates })
		}
		data, err := chain(slices.Repeat([]any{certificate.Raw}, maxCertificates+1)...)
		add("a long chain", "its chain has 17 certificates", data, err)
		data, err = chain(certificate.Raw, long)
		add("a long certificate", "certificate 2 of its chain: it has 16385 bytes", data, err)
		data, err = chain(certificate.Raw, deepDER)
		add("a deep certificate", "nested deeper than 16", data, err)
		data, err = change(func(_ []cbor.RawMessage, unprotected map[any]any) {
			unprotected["many"] = slices.Repeat([]any{[]any{}}, 100000)
		})
		add("many items", "more than 2000 elements", data, err)
		data, err = change(func(message []cbor.RawMessage, _ map[any]any) {
			message[0], _ = cbor.Marshal(bytes.Repeat([]byte{0x81}, 1000))
		})
		add("a deep protected header", "its protected header: it is nested deeper than 16", data, err)
		data, err = change(func(message []cbor.RawMessage, _ map[any]any) {
			message[2], _ = cbor.Marshal([]byte(strings.Repeat("[", 1000)))
		})
		add("a deep payload", "its payload: it is nested deeper than 16", data, err)
		data, err = change(func(_ []cbor.RawMessage, unprotected map[any]any) {
			unprotected["io.cncf.notary.timestampSignature"] = make([]byte, maxTimestamp+1)
		})
		add("a long timestamp", "its timestamp has 65537 bytes", data, err)
		add("deep", "nested deeper than 16", bytes.Repeat([]byte{0x81}, 1<<20), nil)
		return list
	}
	change := func(how func(envelope, header map[string]any)) ([]byte, error) {
		var envelope map[string]any
		if err := json.Unmarshal(good, &envelope); err != nil {
			return nil, err
		}
		how(envelope, envelope["header"].(map[string]any))
		return json.Marshal(envelope)
	}
	chain := func(certificates ...[]byte) ([]byte, error) {
		return change(func(_, header map[string]any) { header["x5c"] = certificates })
	}
	data, err := chain(slices.Repeat([][]byte{certificate.Raw}, maxCertificates+1)...)
	add("a long chain", "its chain has 17 certificates", data, err)
	data, err = chain(certificate.Raw, long)
	add("a long certificate", "certificate 2 of its chain: it has 16385 bytes", data, err)
	data, err = chain(certificate.Raw, deepDER)
	add("a deep certificate", "nested deeper than 16", data, err)
	data, err = chain(slices.Repeat([][]byte{{}}, 100000)...)
	add("many items", "more than 2000 elements", data, err)
	for _, part := range []string{"protected", "payload"} {
		data, err = change(func(envelope, _ map[string]any) {
			envelope[part] = base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("[", 1000)))
		})
		add("a deep "+part, "nested deeper than 16", data, err)
		data, err = change(func(envelope, _ map[string]any) { envelope[part] = strings.Repeat(".", 700000) })
		add("a "+part+" of dots", "illegal base64", data, err)
	}
	data, err = change(func(envelope, _ map[string]any) { envelope["signature"] = strings.Repeat(".", 700000) })
	add("a signature of dots", "its signature is longer than 4096 bytes", data, err)
	data, err = change(func(_, header map[string]any) {
		header["io.cncf.notary.timestampSignature"] = make([]byte, maxTimestamp+1)
	})
	add("a long timestamp", "its timestamp has 65537 bytes", data, err)
	add("deep", "nested deeper than 16", []byte(strings.Repeat(`{"a":`, 200000)), nil)
	add("a name twice", `"payload" twice`, []byte(`{"payload":"","payload":""}`), nil)
	return list
}

// TestHostileEnvelopes verifies that each is refused for what is wrong with it, and costs no more than its size allows.
func TestHostileEnvelopes(t *testing.T) {
	alice := newForger(t)
	g := openGate(t, Options{TrustDir: trusting(t, "audit", alice)})
	for _, mediaType := range []string{jws.MediaTypeEnvelope, cose.MediaTypeEnvelope} {
		good, err := alice.Sign(mediaType, signedImage, nil)
		if err != nil {
			t.Fatal(err)
		}
		if accepted, reason := g.verifyEnvelope(t, mediaType, good); !accepted {
			t.Errorf("%s: %s", mediaType, reason)
		}
		for _, c := range hostileEnvelopes(t, mediaType, good, alice.Certificate) {
			if len(c.data) > maxEnvelope {
				t.Errorf("%s has %d bytes", c.name, len(c.data))
			}
			envelopeCost.Check(t, len(c.data), func() {
				if accepted, reason := g.verifyEnvelope(t, mediaType, c.data); accepted || !strings.Contains(reason, c.reason) {
					t.Errorf("%s: %v, %s", c.name, accepted, reason)
				}
			})
		}
	}
	if accepted, reason := g.verifyEnvelope(t, "text/plain", nil); accepted ||
		!strings.Contains(reason, `the media type "text/plain"`) {
		t.Error(reason)
	}
}

// TestCheckKey verifies that keys are refused with which verification takes long.
func TestCheckKey(t *testing.T) {
	for _, c := range []struct {
		bits, exponent uint
		reason         string
	}{{2048, 65537, ""}, {maxKey, 65537, ""}, {maxKey, 3, ""}, {maxKey + 1, 65537, "has 8193 bits"},
		{2048, 1<<31 - 1, "has the exponent 2147483647"}} {
		key := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), c.bits-1), E: int(c.exponent)} //nolint:gosec // it fits
		err := checkKey(&x509.Certificate{PublicKey: key})
		if (err == nil) != (c.reason == "") || err != nil && !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestUntrustedAddresses verifies that the addresses in an untrusted certificate are not contacted, also at level
// audit, and that those in a trusted one are.
func TestUntrustedAddresses(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) { asked.Add(1); http.NotFound(w, r) }))
	defer server.Close()
	mallory, err := oci.NewForger("mallory", server.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, trusted := range []bool{false, true} {
		asked.Store(0)
		forgers := []*oci.Forger{newForger(t)}
		if trusted {
			forgers = append(forgers, mallory)
		}
		g := openGate(t, Options{TrustDir: trusting(t, "audit", forgers...)})
		envelope, err := mallory.Sign(jws.MediaTypeEnvelope, signedImage, nil)
		if err != nil {
			t.Fatal(err)
		}
		if accepted, reason := g.verifyEnvelope(t, jws.MediaTypeEnvelope, envelope); !accepted {
			t.Error(reason)
		}
		if n := asked.Load(); (n > 0) != trusted {
			t.Errorf("trusted %v: %d requests", trusted, n)
		}
	}
}

// FuzzSignatureManifest verifies that no manifest costs more than its size allows.
func FuzzSignatureManifest(f *testing.F) {
	f.Add([]byte(`{"layers":[{"mediaType":"application/jose+json","digest":"sha256:0","size":1}]}`))
	f.Add(fmt.Appendf(nil, `{"layers":[%s{}]}`, strings.Repeat("{},", 3000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := source{manifests: storage(data), blobs: storage(nil)}
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(data),
			Size: int64(len(data))}
		indexCost.Check(t, len(data), func() { _, _, _ = s.fetchSignature(t.Context(), d) })
	})
}

// FuzzIndex verifies that no list of signatures, in a registry or a layout, costs more than its size allows.
func FuzzIndex(f *testing.F) {
	f.Add(
		[]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:0","size":1}]}`))
	f.Add(fmt.Appendf(nil, `{"manifests":[%s{}]}`, strings.Repeat("{},", 3000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		indexCost.Check(t, len(data), func() { _, _ = parseIndex(data) })
	})
}

// storage fetches one blob, whatever is asked for.
type storage []byte

func (s storage) Fetch(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(s)), nil
}

// TestTimestampLimits verifies that tokens of time stamping authorities are refused that cost much to verify.
func TestTimestampLimits(t *testing.T) {
	t.Parallel()
	certificate := newForger(t).Certificate
	long := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	key := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), maxKey, 1), E: 65537} // nobody has to sign with it
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := x509.CreateCertificate(rand.Reader, long, long, key, ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token  []byte
		reason string
	}{
		"none":              {nil, ""},
		"not a token":       {[]byte("token"), ""},
		"16 certificates":   {timestampToken(t, 1, slices.Repeat([][]byte{certificate.Raw}, 16)...), ""},
		"17 certificates":   {timestampToken(t, 1, slices.Repeat([][]byte{certificate.Raw}, 17)...), "more than 16"},
		"17 signers":        {timestampToken(t, 17, certificate.Raw), "more than 16"},
		"a large key":       {timestampToken(t, 1, large), "a certificate of its timestamp: its RSA key has 8193 bits"},
		"more than 64 KiB":  {make([]byte, maxTimestamp+1), "its timestamp has 65537 bytes"},
		"just under 64 KiB": {make([]byte, maxTimestamp), ""},
	} {
		err := checkSigner(nil, c.token)
		if (err == nil) != (c.reason == "") || err != nil && !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %v, want %q", name, err, c.reason)
		}
	}
}

// timestampToken makes a token (RFC 3161) with certificates and signers, and without a valid signature.
func timestampToken(t *testing.T, signers int, certificates ...[]byte) []byte {
	t.Helper()
	element := func(tag int, class int, parts ...[]byte) []byte {
		der, err := asn1.Marshal(asn1.RawValue{Class: class, Tag: tag, IsCompound: true, Bytes: bytes.Join(parts, nil)})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	value := func(v any) []byte {
		der, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	const sequence, set, universal, context = asn1.TagSequence, asn1.TagSet, asn1.ClassUniversal, asn1.ClassContextSpecific
	sha256 := element(sequence, universal, value(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}))
	signer := element(sequence, universal, value(1), element(sequence, universal, element(sequence, universal), value(1)),
		sha256, sha256, value([]byte{1}))
	content := element(sequence, universal, value(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4}),
		element(0, context, value([]byte{1})))
	signed := element(sequence, universal, value(3), element(set, universal, sha256), content,
		element(0, context, certificates...), element(set, universal, slices.Repeat([][]byte{signer}, signers)...))
	token := element(sequence, universal, value(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}),
		element(0, context, signed))
	parsed, err := tspclient.ParseSignedToken(token)
	if err != nil || len(parsed.Certificates) != len(certificates) || len(parsed.SignerInfos) != signers {
		t.Fatalf("this is no token: %v", err)
	}
	return token
}

// BenchmarkEnvelope measures the check of an envelope's limits, and the whole verification of a signature.
func BenchmarkEnvelope(b *testing.B) {
	alice := newForger(b)
	g := openGate(b, Options{TrustDir: trusting(b, "strict", alice)})
	for name, mediaType := range map[string]string{"JWS": jws.MediaTypeEnvelope, "COSE": cose.MediaTypeEnvelope} {
		envelope, err := alice.Sign(mediaType, signedImage, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/limits", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := CheckEnvelope(mediaType, envelope); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/verify", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if accepted, reason := g.verifyEnvelope(b, mediaType, envelope); !accepted {
					b.Fatal(reason)
				}
			}
		})
	}
}

// BenchmarkTrusts measures the lookup of a chain in a trust store with as many certificates.
func BenchmarkTrusts(b *testing.B) {
	for _, n := range []int{1, 100} {
		forgers := make([]*oci.Forger, n)
		for i := range forgers {
			forgers[i] = newForger(b)
		}
		g := openGate(b, Options{TrustDir: trusting(b, "strict", forgers...)})
		statement, err := g.policy.GetApplicableTrustPolicy("example.com/app@" + signedImage.Digest.String())
		if err != nil {
			b.Fatal(err)
		}
		e := &examination{gate: g, statement: statement}
		chain := []*x509.Certificate{forgers[n-1].Certificate}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !e.trusts(b.Context(), chain) {
					b.Fatal("it is not trusted")
				}
			}
		})
	}
}
