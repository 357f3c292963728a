package nethsm

import (
	"crypto/x509"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
)

// responseCost is what reading a response, as each kind that there is, may allocate.
var responseCost = boundtest.Budget{Bytes: 128 << 10, BytesPerByte: 512}

// FuzzAnswers checks that no response crashes the reader, and that what is read from one is complete.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "null", `{"state":"Locked"}`, `[{"id":"release"},{"id":"../x"}]`, `{"message":"no"}`,
		`{"type":"EC_P256","public":{"data":"BA=="}}`, `{"type":"RSA","public":{"modulus":"AQAB","publicExponent":"AQAB"}}`,
		`{"type":"Generic"}`,
		"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "0\x82",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		responseCost.Check(t, len(body), func() {
			_ = reason(&response{http.StatusForbidden, body})
			_, _ = parseState(body)
			_, _ = parseKeyList(body)
			_, _ = parseChain(body)
			_, _ = parseKey(body)
		})
		if text := reason(&response{http.StatusForbidden, body}); len(text) > 1000 {
			t.Errorf("a reason of %d bytes", len(text))
		}
		if state, err := parseState(body); err == nil && state == "" {
			t.Error("a state without a name")
		}
		if ids, err := parseKeyList(body); err == nil {
			for _, id := range ids {
				if id == "" || strings.ContainsAny(id, "/?#%*") {
					t.Errorf("the ID %q", id)
				}
			}
		}
		if d, err := parseKey(body); err == nil {
			if public, err := d.public(); err == nil {
				if _, err := x509.MarshalPKIXPublicKey(public); err != nil {
					t.Errorf("a key that cannot be encoded: %v", err)
				}
			}
		}
		if chain, err := parseChain(body); err == nil && slices.Contains(chain, nil) {
			t.Error("nil among the certificates")
		}
	})
}
