package payload

import (
	"encoding/base64"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/layerkey"
)

// segment returns base64url without padding.
func segment(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// TestLayerKey reads what ocicrypt and this product make.
func TestLayerKey(t *testing.T) {
	all := seeds(t)
	size := int64(len(`{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`))
	for name, annotations := range map[string]map[string]string{
		"layer-key-rsa": {"recipients": "1", "recipients[0].alg": "RSA-OAEP"},
		"layer-key-ec":  {"recipients": "1", "recipients[0].alg": "ECDH-ES+A256KW"},
		"layer-key-both": {"recipients": "2", "recipients[0].alg": "RSA-OAEP",
			"recipients[1].alg": "ECDH-ES+A256KW"},
	} {
		want := &Artifact{Format: LayerKey, Encoding: "JWE", Size: size, Annotations: annotations}
		if got, err := Read(all[name]); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	sealed, err := layerkey.Seal([]byte("options"), []layerkey.Recipient{{Public: rsaKey(t).Public()}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(sealed)
	if err != nil || got.Size != 7 || got.Annotations["recipients[0].alg"] != "RSA-OAEP-256" ||
		len(got.Annotations["recipients[0].kid"]) != 43 {
		t.Errorf("%+v, %v", got, err)
	}
	if LayerKey.Signed() || !X509.Signed() || !Notation.Signed() {
		t.Error("the formats that are signed are not all but layer-key")
	}
}

func TestLayerKeyRefuses(t *testing.T) {
	key, short := segment(strings.Repeat("k", 256)), segment(strings.Repeat("k", 255))
	header := segment(`{"alg":"RSA-OAEP","enc":"A256GCM"}`)
	one := `{"protected":"` + header + `","encrypted_key":"` + key +
		`","iv":"AAAAAAAAAAAAAAAA","ciphertext":"Zm9v","tag":"AAAAAAAAAAAAAAAAAAAAAA"}`
	refusals(t, one, same, []refusal{
		{`{"protected"`, `{"Protected"`, `unknown name "Protected", expected "protected"`},
		{`"iv"`, `"aad":"","iv"`, `unknown name "aad"`},
		{`"iv"`, `"unprotected":{},"iv"`, `unknown name "unprotected"`},
		{`"iv"`, `"header":{"zip":"DEF"},"iv"`, `unknown name "header"`},
		{`"iv":"A`, `"iv":"`, "iv: "},
		{`"iv":"AAAA`, `"iv":"`, "iv: 9 bytes instead of 12"},
		{`"tag":"AAAA`, `"tag":"`, "tag: 13 bytes instead of 16"},
		{`AAAAAA"}`, `AAAAAB"}`, "tag: not base64url"},
		{`AAAAAA"}`, `AAAAAA=="}`, "tag: not base64url"},
		{`"ciphertext":"Zm9v"`, `"ciphertext":""`, "ciphertext: empty"},
		{`"ciphertext":"Zm9v"`, `"ciphertext":"Zm9\n"`, "ciphertext: not base64url"},
		{key, short, "recipients[0]: encrypted_key: 255 bytes are not from 256"},
		{key, segment(strings.Repeat("k", 3000)), "recipients[0]: encrypted_key: 3000 bytes are not"},
		{`"encrypted_key":"` + key + `",`, ``, `name "encrypted_key" is missing`},
		{`"iv":`, `"iv": `, "byte "},
		{header, segment(`{"alg":"RSA-OAEP", "enc":"A256GCM"}`), "protected: byte "},
		{header, segment(`{"enc":"A256GCM","alg":"RSA-OAEP"}`), `protected: name "enc" where "alg" belongs`},
		{header, segment(`{"alg":"RSA-OAEP","enc":"A128GCM"}`), `protected: enc: "A128GCM"`},
		{header, segment(`{"alg":"RSA1_5","enc":"A256GCM"}`), `recipients[0]: alg: unknown algorithm "RSA1_5"`},
		{header, segment(`{"alg":"dir","enc":"A256GCM"}`), `recipients[0]: alg: unknown algorithm "dir"`},
		{header, segment(`{"alg":"PBES2-HS256+A128KW","enc":"A256GCM"}`), `recipients[0]: alg: unknown algorithm`},
		{header, segment(`{"Alg":"RSA-OAEP","enc":"A256GCM"}`), `protected: unknown name "Alg"`},
		{header, segment(`{"alg":"RSA-OAEP","enc":"A256GCM","zip":"DEF"}`), `protected: unknown name "zip"`},
		{header, segment(`{"alg":"RSA-OAEP","crit":["x"],"enc":"A256GCM"}`), `protected: unknown name "crit"`},
		{header, segment(`{"alg":"RSA-OAEP","enc":"A256GCM","kid":null}`), `protected: unknown name "kid"`},
		{header, segment(`{"alg":"RSA-OAEP","alg":"RSA-OAEP","enc":"A256GCM"}`), `protected: duplicate name "alg"`},
		{header, segment(`{"alg":"ECDH-ES+A256KW","enc":"A256GCM"}`), "recipients[0]: encrypted_key: 256 bytes"},
		{header, segment(`{"alg":"RSA-OAEP","enc":"A256GCM","epk":{"kty":"EC","crv":"P-256","x":"","y":""}}`),
			"recipients[0]: epk"},
	})
	recipient := func(header string) string {
		return `{"header":` + header + `,"encrypted_key":"` + key + `"}`
	}
	two := fmt.Sprintf(`{"protected":"%s","recipients":[%s,%s],"encrypted_key":"%s","iv":"AAAAAAAAAAAAAAAA",`+
		`"ciphertext":"Zm9v","tag":"AAAAAAAAAAAAAAAAAAAAAA"}`, segment(`{"enc":"A256GCM"}`),
		recipient(`{"alg":"RSA-OAEP","kid":"a"}`), recipient(`{"alg":"RSA-OAEP-256","kid":"b"}`), key)
	refusals(t, two, same, []refusal{
		{`"kid":"b"`, `"kid":"b","jku":"http"`, `recipients[1].header: unknown name "jku"`},
		{`"kid":"b"`, `"kid":"\u0062"`, `recipients[1].header.kid`},
		{`"alg":"RSA-OAEP-256","kid":"b"`, `"enc":"A256GCM"`, "recipients[1]: enc: "},
		{`"alg":"RSA-OAEP-256"`, `"alg":"A256KW"`, "recipients[1]: alg: unknown"},
		{`"alg":"RSA-OAEP-256",`, ``, "recipients[1]: alg: unknown"},
		{`"` + key + `","iv"`, `"` + segment(strings.Repeat("x", 256)) + `","iv"`, "encrypted_key: not that"},
		{segment(`{"enc":"A256GCM"}`), header, "protected: alg, epk or kid beside"},
		{`,` + recipient(`{"alg":"RSA-OAEP-256","kid":"b"}`), ``, "recipients: 1 are not from 2"},
		{`[{"header"`, `[` + strings.Repeat(recipient(`{}`)+",", 31) + `{"header"`, "recipients: 33 are not"},
	})
}

// TestLayerKeyPoint refuses ephemeral keys that are not a point of a supported curve.
func TestLayerKeyPoint(t *testing.T) {
	sealed := string(seeds(t)["layer-key-ec"])
	encoded, _, _ := strings.Cut(strings.TrimPrefix(sealed, `{"protected":"`), `"`)
	header, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(header), `"x":"`)
	x, _, _ := strings.Cut(rest, `"`)
	build := func(header string) []byte { return []byte(strings.Replace(sealed, encoded, segment(header), 1)) }
	refusals(t, string(header), build, []refusal{
		{`"P-384"`, `"P-256"`, "recipients[0]: epk: not a point on P-256"},
		{`"P-384"`, `"X25519"`, "recipients[0]: epk: "},
		{`"EC"`, `"OKP"`, "recipients[0]: epk: "},
		{`"x":"` + x, `"x":"` + segment(strings.Repeat("x", 48)), "recipients[0]: epk: not a point on P-384"},
		{`"x":"` + x, `"x":"` + segment(strings.Repeat("x", 47)), "recipients[0]: epk: coordinates of 47 and 48"},
		{`"x":"` + x, `"x":"=`, "recipients[0]: epk.x: "},
		{`"kty":"EC"`, `"kty":"EC","d":"AAAA"`, `protected: epk: unknown name "d"`},
		{`"epk":{`, `"epk":null,"ep":{`, "protected: "},
	})
}
