package softhsmtest

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestNetHSMImage opens encrypted images with a key on a NetHSM, made by hsm-image and as skopeo does it.
func TestNetHSMImage(t *testing.T) {
	h, n := NewNetHSM(t)
	dir := t.TempDir()
	provider := filepath.Join(dir, "ocicrypt.json")
	writeJSON(t, provider, map[string]any{"key-providers": map[string]any{
		"hsm": map[string]any{"cmd": map[string]any{"path": n.Plugin, "args": []string{"keyprovider"}}}}})
	t.Setenv("OCICRYPT_KEYPROVIDER_CONFIG", provider)
	uri := strings.TrimSpace(Run(t, n.Plugin, "key", "generate", "--token", "nethsm:", "--label", h.Key("recipient"),
		"--spec", "RSA-2048", "--usage", "decrypt"))
	recipient := imageKey{uri: uri, public: filepath.Join(dir, "recipient.pem")}
	write(t, recipient.public, Run(t, n.Plugin, "cert", "export", "--public", uri))
	u := &imageUser{hsmImage: Build(t, "hsm-image"), skopeo: buildSkopeo(t), token: h.Token}
	u.roundTrips(t, []roundTrip{
		{"our own", "hsm-image", []string{uri}, []imageKey{recipient}, true},
		{"our own, OAEP with SHA-1", "hsm-image", []string{"pubkey:" + recipient.public + "?oaep=sha1"},
			[]imageKey{recipient}, true},
		{"key provider", "skopeo", []string{"provider:hsm:pubkey:" + recipient.public}, []imageKey{recipient}, true},
		{"jwe", "skopeo", []string{"jwe:" + recipient.public}, []imageKey{recipient}, false},
	})
}

// TestNetHSMImageUsage refuses to encrypt to keys that can't open the image, without having written anything, and opens
// with the other what was encrypted to it by its URI alone.
func TestNetHSMImageUsage(t *testing.T) {
	h, n := NewNetHSM(t)
	generate := func(label, spec, usage string) string {
		return strings.TrimSpace(Run(t, n.Plugin, "key", "generate", "--token", "nethsm:", "--label", h.Key(label), "--spec",
			spec, "--usage", usage))
	}
	testUsage(t, Build(t, "hsm-image"), []string{generate("recipient", "RSA-2048", "decrypt")}, map[string]string{
		generate("rsa", "RSA-2048", "sign"): "does no OAEP",
		generate("ec", "EC-256", "sign"):    "a NetHSM does no ECDH",
	})
}
