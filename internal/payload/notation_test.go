package payload_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/notaryproject/notation-core-go/signature"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// TestNotation reads what notation-core-go sends: all keys, in both encodings.
func TestNotation(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("", -(9*60+30)*60)
	for name, change := range map[string]func(*request){
		"image":    func(*request) {},
		"expiry":   func(r *request) { r.expiry = r.signingTime.Add(24 * time.Hour) },
		"a second": func(r *request) { r.expiry = r.signingTime.Add(time.Second) },
		"time zone": func(r *request) {
			r.signingTime, r.expiry = r.signingTime.In(zone), r.signingTime.Add(time.Hour).In(zone)
		},
		"London": func(r *request) { r.signingTime = r.signingTime.In(time.FixedZone("GMT", 0)) },
		"fractions": func(r *request) {
			r.signingTime = r.signingTime.Add(time.Second - 1)
			r.expiry = r.signingTime.Add(time.Minute)
		},
		"1970": func(r *request) { r.signingTime = time.Unix(0, 0).UTC() },
		"metadata": func(r *request) {
			r.target.Annotations = map[string]string{"build": "<42> & 'more'", "a": "\"\\/\t\n\r\b\f\x00\x1f\x7f",
				"日本":   "語 🙂",
				"line": "\u2028\u2029\ufeff", "io.cncf.notary.x": " ", "z=": "{\"a\":1}", "Build": "other",
				"replacement": "\ufffd"}
		},
		"long metadata": func(r *request) {
			r.target.Annotations = map[string]string{strings.Repeat("k", 1024): strings.Repeat("é", 8<<10)}
		},
		"blob": func(r *request) {
			r.target = ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.SHA384.FromString("blob")}
		},
		"large blob": func(r *request) {
			r.target = ocispec.Descriptor{MediaType: `text/plain; charset="utf-8"`, Size: 1<<53 - 1,
				Digest: digest.SHA512.FromString("blob")}
		},
		"media type with plus": func(r *request) { r.target.MediaType = "application/vnd.example.a-b_c.v1+json" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for algorithm := range keySpecs {
				for encoding := range mediaTypes {
					r := newRequest(encoding, algorithm)
					change(&r)
					checkRead(t, r)
				}
			}
		})
	}
}

// checkRead verifies that reading the bytes of a request returns what was asked to be signed.
func checkRead(t *testing.T, r request) {
	t.Helper()
	data := r.bytes(t)
	a, err := payload.Read(data)
	if err != nil {
		t.Errorf("%s, %s: %v in %s", r.encoding, r.algorithm, err, data)
		return
	}
	if a.Format != payload.Notation || a.Encoding != r.encoding || a.Algorithm != r.algorithm || a.Name != "" {
		t.Errorf("%s, %s was read as %+v", r.encoding, r.algorithm, a)
	}
	if a.MediaType != r.target.MediaType || a.Digest != r.target.Digest.String() || a.Size != r.target.Size ||
		!maps.Equal(a.Annotations, r.target.Annotations) {
		t.Errorf("%+v was read as %+v", r.target, a)
	}
	if !a.SigningTime.Equal(r.signingTime.Truncate(time.Second)) || !a.Expiry.Equal(r.expiry.Truncate(time.Second)) ||
		a.SigningTime.Location() != time.UTC || a.Expiry.Location() != time.UTC {
		t.Errorf("%v and %v were read as %v and %v", r.signingTime, r.expiry, a.SigningTime, a.Expiry)
	}
}

// TestNotationRefused refuses what notation-core-go would sign but no client of a plugin asks it to, with the place
// named.
func TestNotationRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		change func(*request)
		words  string // in the error, for both encodings
	}{
		{func(r *request) { r.scheme = signature.SigningSchemeX509SigningAuthority }, "protected header: "},
		{func(r *request) {
			r.attributes = []signature.Attribute{{Key: "io.cncf.notary.verificationPlugin", Critical: true, Value: "x"}}
		}, `protected header: unknown `},
		{func(r *request) { r.attributes = []signature.Attribute{{Key: "kid", Value: "x"}} }, `protected header: unknown`},
		{func(r *request) { r.target.Digest = "sha256:00" }, "payload: targetArtifact.digest: "},
		{func(r *request) { r.target.Digest = "md5:d41d8cd98f00b204e9800998ecf8427e" }, "payload: targetArtifact.digest: "},
		{func(r *request) { r.target.Digest = digest.Digest(strings.ToUpper(string(r.target.Digest))) },
			"payload: targetArtifact.digest: "},
		{func(r *request) { r.target.Digest = "sha256:" + digest.Digest(strings.Repeat("A", 64)) },
			"payload: targetArtifact.digest: "},
		{func(r *request) { r.target.Digest += "\n" }, "payload: targetArtifact.digest: "},
		{func(r *request) { r.target.Digest = "sha512:" + digest.Digest(r.target.Digest.Encoded()) },
			"payload: targetArtifact.digest: "},
		{func(r *request) { r.target.Digest = "" }, "payload: targetArtifact.digest: "},
		{func(r *request) { r.target.Size = -1 }, "payload: targetArtifact.size: "},
		{func(r *request) { r.target.Size = 1 << 53 }, "payload: targetArtifact.size: "},
		{func(r *request) { r.target.MediaType = "" }, "payload: targetArtifact.mediaType: "},
		{func(r *request) { r.target.MediaType = "text" }, "payload: targetArtifact.mediaType: "},
		{func(r *request) { r.target.MediaType = "application/json, text/plain" }, "payload: targetArtifact.mediaType: "},
		{func(r *request) { r.target.MediaType = "text/" + strings.Repeat("x", 251) }, "payload: targetArtifact.mediaType: "},
		{func(r *request) { r.target.Annotations = map[string]string{"": "x"} }, "payload: targetArtifact.annotations."},
		{func(r *request) { r.target.Annotations = map[string]string{"k": strings.Repeat("x", 16<<10+1)} },
			"payload: targetArtifact.annotations.k: "},
		{func(r *request) { r.target.Annotations = map[string]string{strings.Repeat("k", 1025): "x"} },
			"payload: targetArtifact.annotations.kkk"},
		{func(r *request) {
			r.target.Annotations = map[string]string{}
			for i := range 257 {
				r.target.Annotations[strings.Repeat("a", i+1)] = ""
			}
		}, "payload: targetArtifact.annotations: 257"},
		{func(r *request) { r.target.URLs = []string{"https://example.com"} },
			`payload: targetArtifact: unknown name "urls"`},
		{func(r *request) { r.target.Data = []byte("x") }, `payload: targetArtifact: unknown name "data"`},
		{func(r *request) { r.target.Platform = &ocispec.Platform{} }, `payload: targetArtifact: unknown name "platform"`},
		{func(r *request) { r.target.ArtifactType = "a/b" }, `payload: targetArtifact: unknown name "artifactType"`},
		{func(r *request) { r.signingTime = time.Unix(-1, 0).UTC() }, "protected header: io.cncf.notary.signingTime: "},
	} {
		for encoding := range mediaTypes {
			r := newRequest(encoding, "ECDSA-SHA-256")
			test.change(&r)
			checkRefused(t, r.bytes(t), "cannot read what is to be signed as notation in "+encoding+": ", test.words)
		}
	}
}

// checkRefused verifies that bytes are refused, with these words in this order.
func checkRefused(t *testing.T, data []byte, words ...string) {
	t.Helper()
	a, err := payload.Read(data)
	if err == nil {
		t.Errorf("%.400q was read as %+v", data, a)
		return
	}
	rest := err.Error()
	for _, w := range words {
		_, after, found := strings.Cut(rest, w)
		if !found {
			t.Errorf("%.400q is refused with %q, which does not say %q", data, err, words)
			return
		}
		rest = after
	}
}

const (
	header = `{"alg":"ES256","crit":["io.cncf.notary.signingScheme"],` +
		`"cty":"application/vnd.cncf.notary.payload.v1+json",` +
		`"io.cncf.notary.signingScheme":"notary.x509","io.cncf.notary.signingTime":"2026-11-26T21:36:06Z"}`
	body = `{"targetArtifact":{"annotations":{"a":"b"},"digest":"sha256:` +
		`e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","mediaType":"a/b","size":1}}`
	coseBody = `{"targetArtifact":{"mediaType":"a/b","digest":"sha256:` +
		`e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1,"annotations":{"a":"b"}}}`
)

// signingInput returns a JWS signing input.
func signingInput(header, payload string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." +
		base64.RawURLEncoding.EncodeToString([]byte(payload))
}

// TestJWSRefused refuses each way to write an artifact but one.
func TestJWSRefused(t *testing.T) {
	t.Parallel()
	if _, err := payload.Read([]byte(signingInput(header, body))); err != nil {
		t.Fatal(err)
	}
	const expiry, scheme = `"io.cncf.notary.expiry"`, `,"io.cncf.notary.signingScheme":`
	for _, test := range []struct{ old, replacement, words string }{ // in the header
		{`{"alg"`, `{ "alg"`, "byte 1: "},
		{`}`, "}\n", `byte`},
		{`}`, "}{}", `byte 205: something follows`},
		{`"alg":"ES256"`, `"Alg":"ES256"`, `unknown name "Alg", expected "alg"`},
		{`"alg":"ES256"`, `"alg":"none"`, `alg: unknown algorithm "none"`},
		{`"alg":"ES256"`, `"alg":"HS256"`, `alg: unknown algorithm "HS256"`},
		{`"alg":"ES256"`, `"alg":"es256"`, `alg: unknown algorithm "es256"`},
		{`"alg":"ES256"`, `"alg":["ES256"]`, `alg: array is not of type string`},
		{`"alg":"ES256"`, `"alg":null`, `alg: null instead of ""`},
		{`"alg":"ES256",`, `"alg":"ES256","alg":"ES256",`, `duplicate name "alg"`},
		{`"alg":"ES256",`, `"alg":"ES256","\u0061lg":"ES256",`, `duplicate name "alg"`},
		{`"alg":"ES256",`, `"alg":"ES256","Alg":"ES256",`, `unknown name "Alg", expected "alg"`},
		{`"alg":"ES256",`, ``, `name "alg" is missing`},
		{`"alg":"ES256",`, `"alg":"ES256","b64":false,`, `unknown name "b64"`},
		{`"alg":"ES256",`, `"alg":"ES256","kid":"x",`, `unknown name "kid"`},
		{`"alg":`, `"\u0061lg":`, `name "\u0061lg" instead of "alg"`},
		{`"ES256"`, `"\u0045S256"`, `alg: "\u0045S256" instead of "ES256"`},
		{`["io.cncf.notary.signingScheme"]`, `null`, `crit: []`},
		{`["io.cncf.notary.signingScheme"]`, `[]`, `crit: []`},
		{`["io.cncf.notary.signingScheme"]`, `"io.cncf.notary.signingScheme"`, `crit: string is not of type slice`},
		{`["io.cncf`, `["exp","io.cncf`, `crit: ["exp" `},
		{`["io.cncf`, `["io.cncf.notary.signingScheme","io.cncf`, `crit: [`},
		{`["io.cncf`, `["io.cncf.notary.signingTime","io.cncf`, `crit: [`},
		{`["io.cncf`, `["io.cncf.notary.expiry","io.cncf`, `crit: [`},
		{`["io.cncf`, `[null,"io.cncf`, `crit[0]: null instead of ""`},
		{`"cty":"application/vnd.cncf.notary.payload.v1+json",`, ``, `name "cty" is missing`},
		{`payload.v1+json`, `payload.v2+json`, `cty: `},
		{`payload.v1+json`, `payload.v1\u002bjson`, `cty: `},
		{`"notary.x509"`, `"notary.x509.signingAuthority"`, `io.cncf.notary.signingScheme: "notary.x509.signingAuthority"`},
		{`"notary.x509"`, `""`, `io.cncf.notary.signingScheme: ""`},
		{`"io.cncf.notary.signingScheme":"notary.x509",`, ``, `name "io.cncf.notary.signingScheme" is missing`},
		{`,"io.cncf.notary.signingTime":"2026-11-26T21:36:06Z"`, ``, `name "io.cncf.notary.signingTime" is missing`},
		{`06Z`, `06.5Z`, `io.cncf.notary.signingTime: not a whole second`},
		{`06Z`, `06.0Z`, `io.cncf.notary.signingTime: "2026-11-26T21:36:06.0Z" instead of`},
		{`06Z`, `06,5Z`, `io.cncf.notary.signingTime: `}, {`06Z`, `06z`, `io.cncf.notary.signingTime: `},
		{`06Z`, `06+00:00`, `io.cncf.notary.signingTime: `}, {`06Z`, `06-00:00`, `io.cncf.notary.signingTime: `},
		{`06Z`, `06+24:00`, `io.cncf.notary.signingTime: `}, {`06Z`, `60Z`, `io.cncf.notary.signingTime: `},
		{`T21`, `T24`, `io.cncf.notary.signingTime: `}, {`T21`, `t21`, `io.cncf.notary.signingTime: `},
		{`2026-11-26T`, `2026-02-30T`, `io.cncf.notary.signingTime: `}, {`2026-`, `0001-`, `io.cncf.notary.signingTime: `},
		{`"2026-11-26T21:36:06Z"`, `""`, `io.cncf.notary.signingTime: `},
		{`"2026-11-26T21:36:06Z"`, `1795728966`, `io.cncf.notary.signingTime: number is not of type string`},
		{scheme, `,` + expiry + `:"2027-11-26T21:36:06Z"` + scheme, `crit: [`},
		{scheme, `,` + expiry + `:""` + scheme, `unknown name ` + expiry},
		{scheme, `,` + expiry + `:null` + scheme, `unknown name ` + expiry},
		{scheme, `,` + expiry + `:"0001-01-01T00:00:00Z"` + scheme, `crit: `},
		{`{"alg":"ES256",`, `[{"alg":"ES256",`, `not JSON`},
	} {
		h := strings.Replace(header, test.old, test.replacement, 1)
		checkRefused(t, []byte(signingInput(h, body)), "JWS: protected header: ", test.words)
	}
	for _, test := range []struct{ old, replacement, words string }{ // in the expiry of a header that has one
		{`2027`, `2025`, `io.cncf.notary.expiry: not after the signing time`},
		{`2027`, `2026`, `io.cncf.notary.expiry: not after the signing time`},
		{`2027`, `0001`, `io.cncf.notary.expiry: not a whole second`},
		{`2027`, `0000`, `io.cncf.notary.expiry: `},
		{`"2027-11-26T21:36:06Z"`, `"never"`, `io.cncf.notary.expiry: "never" is not a time`},
		{`["io.cncf.notary.signingScheme",` + expiry + `]`, `[` + expiry + `,"io.cncf.notary.signingScheme"]`, `crit: [`},
	} {
		h := strings.NewReplacer(`Scheme"]`, `Scheme",`+expiry+`]`, `,"io.cncf.notary.signingScheme":`,
			`,`+expiry+`:"2027-11-26T21:36:06Z","io.cncf.notary.signingScheme":`).Replace(header)
		if _, err := payload.Read([]byte(signingInput(h, body))); err != nil {
			t.Fatal(err)
		}
		h = strings.Replace(h, test.old, test.replacement, 1)
		checkRefused(t, []byte(signingInput(h, body)), "JWS: protected header: ", test.words)
	}
	for _, test := range bodies {
		b := strings.Replace(body, test.old, test.replacement, 1)
		checkRefused(t, []byte(signingInput(header, b)), "JWS: payload: ", test.words)
	}
	checkRefused(t, []byte(signingInput(header, coseBody)), "JWS: payload: targetArtifact: name ")
}

// bodies are changes of a payload that are refused in both encodings.
var bodies = []struct{ old, replacement, words string }{
	{`{`, ` {`, "byte 0: "}, {`"size":1`, `"size": 1`, "byte "}, {`}}`, `}} `, "byte "}, {`"b"}`, `"b"}1`, ""},
	{`}}`, `}`, "not JSON: unexpected EOF"}, {`{"targetArtifact":`, ``, ""}, {`"digest"`, `'digest'`, "not JSON"},
	{`"digest":`, `"Digest":`, `targetArtifact: unknown name "Digest", expected "digest"`},
	{`"digest":`, `"Digest":"sha256:00","digest":`, `targetArtifact: unknown name "Digest", expected "digest"`},
	{`"digest":`, `"digest":"sha256:00","digest":`, `targetArtifact: duplicate name "digest"`},
	{`"digest":`, `"dige\u0073t":`, `targetArtifact: name "dige\u0073t" instead of "digest"`},
	{`"digest":`, `"digeſt":`, `targetArtifact: unknown name "digeſt", expected "digest"`},
	{`"targetArtifact"`, `"TargetArtifact"`, `unknown name "TargetArtifact", expected "targetArtifact"`},
	{`{"targetArtifact":`, `{"x":1,"targetArtifact":`, `unknown name "x"`},
	{`{"targetArtifact":`, `{"targetArtifact":{},"targetArtifact":`, `duplicate name "targetArtifact"`},
	{`"mediaType":"a/b"`, `"artifactType":"c/d","mediaType":"a/b"`, `targetArtifact: unknown name "artifactType"`},
	{`"mediaType":"a/b"`, `"mediaType":"a\/b"`, `targetArtifact.mediaType: "a\/b" instead of "a/b"`},
	{`"mediaType":"a/b"`, `"mediaType":1`, `targetArtifact.mediaType: number is not of type string`},
	{`"mediaType":"a/b",`, ``, `targetArtifact: name "mediaType" is missing`},
	{`"size":1`, `"size":"1"`, `targetArtifact.size: string is not of type int64`},
	{`"size":1`, `"size":1.0`, `targetArtifact.size: number 1.0 is not of type int64`},
	{`"size":1`, `"size":1e3`, `targetArtifact.size: number 1e3 is not of type int64`},
	{`"size":1`, `"size":-0`, `targetArtifact.size: -0 instead of 0`},
	{`"size":1`, `"size":-1`, `targetArtifact.size: -1 is not from 0`},
	{`"size":1`, `"size":01`, `not JSON`},
	{`"size":1`, `"size":9007199254740992`, `targetArtifact.size: 9007199254740992 is not from 0`},
	{`"size":1`, `"size":9223372036854775808`, `targetArtifact.size: number 9223372036854775808 is not`},
	{`"size":1`, `"size":null`, `targetArtifact.size: null instead of 0`},
	{`"annotations":{"a":"b"}`, `"annotations":{}`, `targetArtifact: unknown name "annotations"`},
	{`"annotations":{"a":"b"}`, `"annotations":null`, `targetArtifact: unknown name "annotations"`},
	{`"annotations":{"a":"b"}`, `"annotations":{"a":null}`, `targetArtifact.annotations.a: null instead of ""`},
	{`"annotations":{"a":"b"}`, `"annotations":{"a":1}`, `targetArtifact.annotations: number is not of type string`},
	{`"annotations":{"a":"b"}`, `"annotations":{"a":{}}`, `targetArtifact.annotations: object is not of type string`},
	{`{"a":"b"}`, `{"a":"b","a":"b"}`, `targetArtifact.annotations: duplicate name "a"`},
	{`{"a":"b"}`, `{"b":"b","a":"b"}`, `targetArtifact.annotations: name "b" where "a" belongs`},
	{`{"a":"b"}`, `{"a":"<"}`, `targetArtifact.annotations.a: "<" instead of "\u003c"`},
	{`{"a":"b"}`, `{"a":"\u003C"}`, `targetArtifact.annotations.a: "\u003C" instead of "\u003c"`},
	{`{"a":"b"}`, `{"a":"\u00e9"}`, `targetArtifact.annotations.a: "\u00e9" instead of "é"`},
	{`{"a":"b"}`, `{"a":"\ud800"}`, `targetArtifact.annotations.a: "\ud800" instead of`},
	{`{"a":"b"}`, `{"a":"\u0008"}`, `targetArtifact.annotations.a: "\u0008" instead of "\b"`},
	{`{"a":"b"}`, "{\"a\":\"\xff\"}", `targetArtifact.annotations.a: `},
	{`{"a":"b"}`, "{\"\xff\":\"b\"}", `targetArtifact.annotations: name `},
	{`{"a":"b"}`, "{\"a\":\"\n\"}", `not JSON`},
	{`{"a":"b"}`, strings.Repeat("[", 15) + strings.Repeat("]", 15), `nested deeper than 16`},
	{`{"a":"b"}`, "[" + strings.Repeat("0,", 50000) + "0]", `more than 50000 values`},
}

// TestJWSSegments refuses other encodings of the same header and payload.
func TestJWSSegments(t *testing.T) {
	t.Parallel()
	whole := signingInput(header, body+" ") // whose last character has bits that are not used
	first, second, _ := strings.Cut(signingInput(header, body), ".")
	for _, test := range []struct{ data, words string }{
		{first + "=." + second, "protected header: not base64url"},
		{first + "." + second + "=", "payload: not base64url"},
		{first + "\n." + second, "protected header: not base64url"},
		{first[:8] + "\r\n" + first[8:] + "." + second, "protected header: not base64url"},
		{first + "." + second[:4] + "\n" + second[4:], "payload: not base64url without padding: a line break at byte 4"},
		{first + "." + second + ".", "payload: not base64url"},
		{first + "." + second + ".AAAA", "payload: not base64url"},
		{first + ".", "payload: not JSON"},
		{first + "." + second + " ", "payload: not base64url"},
		{first + "+." + second, "protected header: not base64url"},
		{whole[:len(whole)-1] + string(whole[len(whole)-1]+1), "payload: not base64url"},
	} {
		checkRefused(t, []byte(test.data), "JWS: ", test.words)
	}
}

// structure returns a Sig_structure with headers and a payload.
func structure(t testing.TB, header []byte, payload string) []byte {
	t.Helper()
	return encode(t, []any{"Signature1", header, []byte{}, []byte(payload)})
}

// encode encodes a value in deterministic CBOR.
func encode(t testing.TB, value any) []byte {
	t.Helper()
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	data, err := mode.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// headers returns the COSE headers of a signature without an expiry.
func headers() map[any]any {
	return map[any]any{1: -7, 2: []any{"io.cncf.notary.signingScheme"},
		3: "application/vnd.cncf.notary.payload.v1+json", "io.cncf.notary.signingScheme": "notary.x509",
		"io.cncf.notary.signingTime": cbor.Tag{Number: 1, Content: 1795728966}}
}

// TestCOSERefused refuses each way to write an artifact but one.
func TestCOSERefused(t *testing.T) {
	t.Parallel()
	good := encode(t, headers())
	if _, err := payload.Read(structure(t, good, coseBody)); err != nil {
		t.Fatal(err)
	}
	tag := func(content any) cbor.Tag { return cbor.Tag{Number: 1, Content: content} }
	const scheme, signing, expiry = "io.cncf.notary.signingScheme", "io.cncf.notary.signingTime", "io.cncf.notary.expiry"
	critical := []any{scheme, expiry}
	for _, test := range []struct {
		changes map[any]any // a nil value deletes the header
		words   string
	}{
		{map[any]any{1: nil}, "label 1 is missing"}, {map[any]any{2: nil}, "label 2 is missing"},
		{map[any]any{3: nil}, "label 3 is missing"}, {map[any]any{scheme: nil}, "label " + scheme + " is missing"},
		{map[any]any{signing: nil}, "label " + signing + " is missing"},
		{map[any]any{4: []byte("kid")}, "unknown label 4"}, {map[any]any{"alg": -7}, `unknown label "alg"`},
		{map[any]any{"1": -7}, `unknown label "1"`}, {map[any]any{-1: -7}, "unknown label -1"},
		{map[any]any{"IO.cncf.notary.signingTime": 0}, `unknown label "IO.cncf.notary.signingTime"`},
		{map[any]any{1: -257}, "1: unknown algorithm -257"}, {map[any]any{1: "ES256"}, "1: "}, {map[any]any{1: 7}, "1: "},
		{map[any]any{1: -7.0}, "1: "}, {map[any]any{1: cbor.RawMessage{0xf6}}, "1: null instead of a value"},
		{map[any]any{1: cbor.RawMessage{0x38, 6}}, "1: byte 0 is not in the deterministic encoding"},
		{map[any]any{1: cbor.RawMessage{0xf7}}, "1: "},
		{map[any]any{2: []any{}}, "2: []"}, {map[any]any{2: scheme}, "2: "}, {map[any]any{2: []any{1, scheme}}, "2: "},
		{map[any]any{2: []any{"crit2", scheme}}, `2: ["crit2" `}, {map[any]any{2: []any{scheme, scheme}}, `2: [`},
		{map[any]any{2: []any{scheme, signing}}, `2: [`}, {map[any]any{2: critical}, `2: [`},
		{map[any]any{3: 0}, "3: "}, {map[any]any{3: "application/json"}, `3: "application/json"`},
		{map[any]any{3: cbor.RawMessage{0xf6}}, "3: null"},
		{map[any]any{scheme: "notary.x509.signingAuthority"}, scheme + ": "},
		{map[any]any{scheme: []byte("notary.x509")}, scheme},
		{map[any]any{signing: 1795728966}, signing + ": "}, {map[any]any{signing: tag(1795728966.0)}, signing + ": "},
		{map[any]any{signing: tag(1795728966.5)}, signing + ": "}, {map[any]any{signing: tag(-1)}, signing + ": not a whole"},
		{map[any]any{signing: tag(253402300800)}, signing + ": not a whole"},
		{map[any]any{signing: tag(uint64(1) << 63)}, signing + ": "},
		{map[any]any{signing: tag(-62135596800)}, signing + ": "},
		{map[any]any{signing: tag(nil)}, "tag number 1 must be followed by"},
		{map[any]any{signing: cbor.RawMessage{0xf6}}, signing + ": null"},
		{map[any]any{signing: cbor.Tag{Number: 0, Content: "2026-11-26T21:36:06Z"}}, signing + ": "},
		{map[any]any{signing: tag(tag(1795728966))}, "tag number 1 must be followed by"},
		{map[any]any{signing: cbor.RawMessage{0xc1, 0x1a, 0, 0, 0, 1}}, signing + ": byte 1 is not"},
		{map[any]any{expiry: tag(1795728967)}, "2: ["},
		{map[any]any{expiry: cbor.RawMessage{0xf6}, 2: critical}, expiry + ": null"},
		{map[any]any{expiry: cbor.RawMessage{0xf6}}, expiry + ": null"},
		{map[any]any{expiry: tag(-62135596800)}, expiry + ": "},
		{map[any]any{expiry: tag(1795728966), 2: critical}, expiry + ": not after the signing time"},
		{map[any]any{expiry: tag(0), 2: critical}, expiry + ": not after the signing time"},
		{map[any]any{expiry: tag(1795728967), 2: []any{expiry, scheme}}, "2: ["},
	} {
		h := headers()
		for label, value := range test.changes {
			if h[label] = value; value == nil {
				delete(h, label)
			}
		}
		checkRefused(t, structure(t, encode(t, h), coseBody), "COSE: protected header: ", test.words)
	}
	for _, test := range bodies {
		b := strings.Replace(coseBody, test.old, test.replacement, 1)
		checkRefused(t, structure(t, good, b), "COSE: payload: ", test.words)
	}
	checkRefused(t, structure(t, good, body), "COSE: payload: targetArtifact: name ")
}

// TestCOSEStructure refuses other structures, and other encodings of the same.
func TestCOSEStructure(t *testing.T) {
	t.Parallel()
	good := encode(t, headers())
	whole := structure(t, good, coseBody)
	unsorted := bytes.Clone(good) // algorithm and content type change places
	copy(unsorted[1:3], []byte{3, good[bytes.Index(good, []byte("\x03\x78"))+1]})
	for _, test := range []struct {
		data  []byte
		words string
	}{
		{append(bytes.Clone(whole), 0), "something follows"}, {whole[:len(whole)-1], "cut short"},
		{append([]byte{0x98, 4}, whole[1:]...), "structure: byte 0 is not in the deterministic encoding"},
		{append([]byte{0x84, 0x78, 10}, whole[2:]...), "structure: byte 1 is not in the deterministic encoding"},
		{append([]byte{0x9f}, append(bytes.Clone(whole[1:]), 0xff)...), "indefinite length"},
		{encode(t, []any{"Signature1", good, []byte{1}, []byte(coseBody)}), "external_aad: "},
		{encode(t, []any{"Signature1", good, nil, []byte(coseBody)}), "structure: byte "},
		{encode(t, []any{"Signature1", good, "", []byte(coseBody)}), ""},
		{encode(t, []any{"Signature1", good, []any{}, []byte(coseBody)}), ""},
		{encode(t, []any{"Signature1", good, []byte{}, nil}), "payload: not JSON"},
		{encode(t, []any{"Signature1", good, []byte{}, coseBody}), ""},
		{encode(t, []any{"Signature1", nil, []byte{}, []byte(coseBody)}), "protected header: "},
		{encode(t, []any{"Signature1", []byte{}, []byte{}, []byte(coseBody)}), "protected header: "},
		{encode(t, []any{"Signature1", []byte{0xa0}, []byte{}, []byte(coseBody)}), "protected header: label 1 is missing"},
		{encode(t, []any{"Signature1", []byte{0x80}, []byte{}, []byte(coseBody)}), "protected header: "},
		{encode(t, []any{"Signature1", good, []byte{}}), ""},
		{encode(t, []any{"Signature1", good, []byte{}, []byte{}, []byte(coseBody)}), ""},
		{encode(t, []any{"Signature11", good, []byte{}, []byte(coseBody)}), "context: "},
		{encode(t, []any{[]byte("Signature1"), good, []byte{}, []byte(coseBody)}), ""},
		{structure(t, append(bytes.Clone(good), 0), coseBody), "protected header: something follows"},
		{structure(t, append([]byte{0xb8, 5}, good[1:]...), coseBody), "protected header: byte 0 is not"},
		{structure(t, append([]byte{0xa6, 1, 0x26}, good[1:]...), coseBody), "protected header: cbor: found duplicate"},
		{structure(t, append([]byte{0xa6, 0x18, 1, 0x26}, good[1:]...), coseBody), "protected header: cbor: found duplicate"},
		{structure(t, append([]byte{0xbf}, append(bytes.Clone(good[1:]), 0xff)...), coseBody), "protected header: "},
		{structure(t, append([]byte{0xa6, 0xfb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0, 0}, good[1:]...), coseBody),
			"unknown label NaN"},
		{structure(t, append(append([]byte{0xa5}, good[3:]...), good[1:3]...), coseBody), "protected header: byte 1 is not"},
		{structure(t, append([]byte{0xd8, 0x20}, good...), coseBody), "protected header: "},
	} {
		checkRefused(t, test.data, "COSE: ", test.words)
	}
}

// TestShortRefusal verifies that a message is short, whatever it quotes.
func TestShortRefusal(t *testing.T) {
	t.Parallel()
	label := encode(t, strings.Repeat("é", 100000))
	_, err := payload.Read(structure(t, slices.Concat([]byte{0xa2}, label, []byte{0}, label, []byte{0}), coseBody))
	if err == nil || !strings.Contains(err.Error(), "duplicate map key") || len(err.Error()) > 3000 {
		t.Errorf("%.100v", err)
	}
}

// TestReadOther refuses what has the shape of no format, as a bare hash has.
func TestReadOther(t *testing.T) {
	t.Parallel()
	for _, data := range []string{"", ".", "x", "a bare hash", strings.Repeat("\x01", 32), "\x84\x6aSignature2",
		"{.}", "\x84",
		digest.FromString("x").Encoded(), digest.FromString("x").String(), "\xd2\x84\x40\xa0\x40\x40"} {
		checkRefused(t, []byte(data), "cannot read what is to be signed: no known format; a bare hash is never signed")
	}
	checkRefused(t, []byte(signingInput(header, strings.Repeat("x", payload.Limit))), "cannot read what is to be signed: ",
		"bytes are more than 1048576")
}

// TestArtifactJSON verifies that all artifacts can be encoded.
func TestArtifactJSON(t *testing.T) {
	t.Parallel()
	r := newRequest("COSE", "ECDSA-SHA-256")
	r.signingTime, r.expiry = time.Unix(0, 0).UTC(), time.Unix(253402300799, 0).UTC()
	a, err := payload.Read(r.bytes(t))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := json.Marshal(a); err != nil || !strings.Contains(string(text), `"9999-12-31T23:59:59Z"`) {
		t.Errorf("%s, %v", text, err)
	}
}
