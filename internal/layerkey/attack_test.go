package layerkey

import (
	"bytes"
	"context"
	"crypto"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/smallstep/pkcs7"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// openCost is what opening the annotations of one layer may allocate, with keys in memory.
var openCost = boundtest.Budget{Bytes: 512 << 10, BytesPerByte: 150}

// TestCostly refuses annotations that are made to cost much, for no more than their size allows. It does not run in
// parallel, since it counts allocations.
func TestCostly(t *testing.T) {
	candidates := plainKeys(t)
	for _, test := range []struct {
		name, words string
		scheme      string
		packets     [][]byte
	}{
		{"nested BER", "is damaged: its element at byte 0 has an indefinite length", schemePKCS7,
			[][]byte{bytes.Repeat([]byte{0x30, 0x80}, 33<<10)}},
		{"DER with nested BER", "has an indefinite length", schemePKCS7,
			[][]byte{withNested(t, candidates, sequences(indefinite(16<<10), 1))}},
		{"nested DER", "is nested deeper than 16", schemePKCS7, [][]byte{sequences(nil, 16<<10)}},
		{"DER with nested DER", "is nested deeper than 16", schemePKCS7,
			[][]byte{withNested(t, candidates, sequences(nil, 10<<10))}},
		{"many elements of DER", "has more than 16384 elements", schemePKCS7,
			[][]byte{sequences(bytes.Repeat([]byte{5, 0}, 40<<10), 1)}},
		{"many recipients of CMS", "the layer has 300 recipients, more than 256", schemePKCS7, [][]byte{cmsFor(t, 300, 0)}},
		{"long issuer", "none of the wrapped keys opens", schemePKCS7, [][]byte{cmsFor(t, 1, 3000)}},
		{"nested JSON", "is nested deeper than 16", schemePKCS11, [][]byte{nestedJSON(90 << 10)}},
		{"nested JWE", "is nested deeper than 16", schemeJWE, [][]byte{nestedJSON(90 << 10)}},
		{"nested header", "is nested deeper than 16", schemeJWE,
			[][]byte{withProtected(t, `{"apu":`+string(nestedJSON(500))+`}`)}},
		{"large header", "has 5010 bytes, more than 4096", schemeJWE,
			[][]byte{withProtected(t, `{"apu":"`+strings.Repeat("A", 5000)+`"}`)}},
		{"a certificate in a header", `has the header "x5c", which is not supported`, schemeJWE,
			[][]byte{withProtected(t, `{"x5c":[]}`)}},
		{"a certificate in an epk", `has the header "x5c", which is not supported`, schemeJWE,
			[][]byte{withProtected(t, `{"epk":{"kty":"EC","x5c":[]}}`)}},
		{"a password", `has the header "p2c", which is not supported`, schemeJWE,
			[][]byte{withProtected(t, `{"alg":"PBES2-HS256+A128KW","p2c":2147483647,"p2s":"AA"}`)}},
		{"the compact form", "it is not JSON", schemeJWE, [][]byte{[]byte("e30.AA.AA.AA.AA")}},
		{"another algorithm", "unexpected key algorithm", schemeJWE,
			[][]byte{withProtected(t, `{"alg":"dir","enc":"A256GCM"}`)}},
		{"compression", `has the header "zip", which is not supported`, schemeJWE,
			[][]byte{compressed(t, candidates[0].public)}},
		{"a header twice", `has the name "alg" twice`, schemeJWE,
			[][]byte{withProtected(t, `{"alg":"RSA-OAEP","enc":"A256GCM","alg":"RSA-OAEP-256"}`)}},
		{"recipients twice", `has the name "recipients" twice`, schemeHSM,
			[][]byte{[]byte(`{"recipients":[],"recipients":[]}`)}},
		{"many recipients of a JWE", "has 33 recipients, more than 32", schemeJWE, [][]byte{jweFor(33)}},
		{"many JWEs", "the layer has 288 recipients, more than 256", schemeJWE, repeated(jweFor(32), 10)},
		{"a point off the curve", "is damaged: ", schemeJWE, [][]byte{offCurve()}},
		{"many blobs", "the layer has 300 recipients, more than 256", schemePKCS11, repeated(blobsFor(100, "md5"), 3)},
		{"many packets", "is too large", schemeJWE, repeated([]byte("{}"), packetsLimit+1)},
		{"large packets", "is too large", schemePKCS11,
			repeated(append(blobsFor(1, "md5"), bytes.Repeat([]byte(" "), 190<<10)...), 5)},
		{"many tries", "the layer has more wrapped keys than the 32 that are tried", schemePKCS11,
			[][]byte{blobsFor(250, "sha1")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			annotations := annotation(test.scheme, test.packets...)
			size := len(annotations[AnnotationPrefix+test.scheme])
			var err error
			openCost.Check(t, size, func() { _, err = openPlain(candidates, annotations) })
			if err == nil || !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), test.words) ||
				len(err.Error()) > 2000 {
				t.Errorf("it fails with %.2000v, which does not say %q", err, test.words)
			}
			openCost.Check(t, size, func() { _, _ = ReadRecipients(annotations) })
		})
	}
}

// TestOperations bounds what layers together can ask of a module.
func TestOperations(t *testing.T) {
	candidates := plainKeys(t)
	keys := &Keys{references: []string{"rsa"}, candidates: candidates[:1], prepared: true,
		tries: operationsLimit - 1}
	sealed := annotation(schemeHSM, ours(t, candidates))
	if _, err := keys.Open(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Open(t.Context(), sealed); err == nil ||
		!strings.Contains(err.Error(), "more wrapped keys than the 4096") {
		t.Errorf("after as many as are tried: %v", err)
	}
}

func openPlain(candidates []*candidate, annotations map[string]string) ([]byte, error) {
	keys := &Keys{references: []string{"rsa", "ec"}, candidates: candidates, prepared: true}
	return keys.Open(context.Background(), annotations)
}

// sequences nests DER in sequences. It is written from its end: asn1.Marshal would copy it at each level.
func sequences(der []byte, depth int) []byte {
	reversed := make([]byte, 0, len(der)+5*depth)
	for i := range der {
		reversed = append(reversed, der[len(der)-1-i])
	}
	for range depth {
		length := len(reversed)
		switch {
		case length < 0x80:
			reversed = append(reversed, byte(length), 0x30)
		case length < 0x100:
			reversed = append(reversed, byte(length), 0x81, 0x30)
		case length < 0x10000:
			reversed = append(reversed, byte(length), byte(length>>8), 0x82, 0x30)
		default:
			reversed = append(reversed, byte(length), byte(length>>8), byte(length>>16), 0x83, 0x30)
		}
	}
	for i, j := 0, len(reversed)-1; i < j; i, j = i+1, j-1 {
		reversed[i], reversed[j] = reversed[j], reversed[i]
	}
	return reversed
}

// indefinite nests BER in sequences of indefinite length.
func indefinite(depth int) []byte {
	return slices.Concat(bytes.Repeat([]byte{0x30, 0x80}, depth), []byte{5, 0}, make([]byte, 2*depth))
}

// withNested is an EnvelopedData for several recipients in which the parameters of the content's cipher are something
// else.
func withNested(t *testing.T, candidates []*candidate, nested []byte) []byte {
	t.Helper()
	var info contentInfo
	packet := theirs(t, schemePKCS7, publicPEM(t, candidates[0].public), candidates[0].key.(plainKey))
	if _, err := asn1.Unmarshal(packet, &info); err != nil {
		t.Fatal(err)
	}
	info.Content.Recipients = slices.Repeat(info.Content.Recipients, 5)
	info.Content.Content.Algorithm.Parameters = asn1.RawValue{FullBytes: nested}
	return marshal(t, info)
}

func marshal(t *testing.T, info contentInfo) []byte {
	t.Helper()
	der, err := asn1.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// cmsFor is EnvelopedData for recipients with an issuer of that many parts, with keys as large as the tests'.
func cmsFor(t *testing.T, recipients, parts int) []byte {
	t.Helper()
	return marshal(t, cmsInfo(recipients, parts))
}

func cmsInfo(recipients, parts int) contentInfo {
	part := []byte{0x31, 10, 0x30, 8, 6, 3, 0x55, 4, 3, 0x0c, 1, 'x'}
	r := cmsRecipient{Encrypted: make([]byte, 256)}
	r.Name.Issuer.FullBytes = sequences(bytes.Repeat(part, parts), 1)
	r.Name.Serial = big.NewInt(1)
	r.Algorithm.Algorithm = pkcs7.OIDEncryptionAlgorithmRSA
	info := contentInfo{Type: pkcs7.OIDEnvelopedData}
	for range recipients {
		info.Content.Recipients = append(info.Content.Recipients, r)
	}
	content := &info.Content.Content
	content.Type, content.Algorithm.Algorithm = pkcs7.OIDData, contentCiphers[1].oid
	content.Encrypted = asn1.RawValue{Class: asn1.ClassContextSpecific, Bytes: make([]byte, 32)}
	return info
}

func nestedJSON(depth int) []byte {
	return []byte(strings.Repeat("[", depth) + strings.Repeat("]", depth))
}

func withProtected(t *testing.T, header string) []byte {
	t.Helper()
	packet, err := json.Marshal(map[string]string{
		"protected": base64.RawURLEncoding.EncodeToString([]byte(header)), "encrypted_key": "AA", "iv": "AA",
		"ciphertext": "AA", "tag": "AA",
	})
	if err != nil {
		t.Fatal(err)
	}
	return packet
}

// compressed is a JWE whose content is large once it is inflated.
func compressed(t *testing.T, public crypto.PublicKey) []byte {
	t.Helper()
	encrypter, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.RSA_OAEP_256, Key: public},
		&jose.EncrypterOptions{Compression: jose.DEFLATE})
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := encrypter.Encrypt(bytes.Repeat([]byte(" "), 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(jwe.FullSerialize())
}

// jweFor has recipients whose content encryption keys are not for anyone.
func jweFor(recipients int) []byte {
	entry := `{"header":{"alg":"RSA-OAEP"},"encrypted_key":"AAAA"}`
	return fmt.Appendf(nil, `{"protected":"%s","recipients":[%s],"iv":"AA","ciphertext":"AA","tag":"AA"}`,
		base64.RawURLEncoding.EncodeToString([]byte(`{"enc":"A256GCM"}`)),
		strings.TrimSuffix(strings.Repeat(entry+",", recipients), ","))
}

// offCurve has an ephemeral key that is no point on P-256.
func offCurve() []byte {
	zero := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	return fmt.Appendf(nil,
		`{"header":{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"kty":"EC","crv":"P-256","x":"%s","y":"%s"}},`+
			`"encrypted_key":"AAAA","iv":"AA","ciphertext":"AA","tag":"AA"}`, zero, zero)
}

func blobsFor(recipients int, hash string) []byte {
	entry := fmt.Sprintf(`{"blob":"%s","hash":"%s"}`, base64.StdEncoding.EncodeToString(make([]byte, 256)), hash)
	return []byte(`{"version":0,"recipients":[` + strings.TrimSuffix(strings.Repeat(entry+",", recipients), ",") + `]}`)
}

func repeated(packet []byte, n int) (packets [][]byte) {
	for range n {
		packets = append(packets, packet)
	}
	return packets
}
