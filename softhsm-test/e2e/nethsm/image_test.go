package nethsm

import (
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestNetHSMImage decrypts images with a key on a NetHSM that hsm-image and skopeo have encrypted.
func TestNetHSMImage(t *testing.T) {
	softhsmtest.Parallel(t)
	h, n := NewNetHSM(t)
	dir := t.TempDir()
	provider := filepath.Join(dir, "ocicrypt.json")
	softhsmtest.WriteJSON(t, provider, map[string]any{"key-providers": map[string]any{
		"hsm": map[string]any{"cmd": map[string]any{"path": n.Plugin, "args": []string{"keyprovider"}}}}})
	softhsmtest.Setenv(t, "OCICRYPT_KEYPROVIDER_CONFIG", provider)
	uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "nethsm:", "--label",
		h.Key("recipient"), "--spec", "RSA-2048", "--usage", "decrypt"))
	recipient := oci.Key{URI: uri, Public: filepath.Join(dir, "recipient.pem")}
	softhsmtest.Write(t, recipient.Public, softhsmtest.Run(t, n.Plugin, "cert", "export", "--public", uri))
	u := &oci.User{HSMImage: softhsmtest.Build(t, "hsm-image"), Skopeo: softhsmtest.Build(t, "skopeo"), Token: h.Token}
	u.RoundTrips(t, []oci.RoundTrip{
		{Name: "our own", Program: "hsm-image", Recipients: []string{uri}, Keys: []oci.Key{recipient}, Provider: true},
		{Name: "our own, OAEP with SHA-1", Program: "hsm-image", Recipients: []string{"pubkey:" + recipient.Public +
			"?oaep=sha1"},
			Keys: []oci.Key{recipient}, Provider: true},
		{Name: "key provider", Program: "skopeo", Recipients: []string{"provider:hsm:pubkey:" + recipient.Public},
			Keys: []oci.Key{recipient}, Provider: true},
		{Name: "jwe", Program: "skopeo", Recipients: []string{"jwe:" + recipient.Public}, Keys: []oci.Key{recipient},
			Provider: false},
	})
}

// TestNetHSMImageUsage refuses to encrypt to keys that cannot decrypt, without writing anything, and decrypts with the
// other key, which was named by its URI alone.
func TestNetHSMImageUsage(t *testing.T) {
	softhsmtest.Parallel(t)
	h, n := NewNetHSM(t)
	generate := func(label, spec, usage string) string {
		return strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "nethsm:", "--label",
			h.Key(label), "--spec", spec, "--usage", usage))
	}
	oci.CheckUsage(t, softhsmtest.Build(t, "hsm-image"), []string{generate("recipient", "RSA-2048", "decrypt")},
		map[string]string{
			generate("rsa", "RSA-2048", "sign"): "does not support OAEP",
			generate("ec", "EC-256", "sign"):    "a NetHSM does not support ECDH",
		})
}
