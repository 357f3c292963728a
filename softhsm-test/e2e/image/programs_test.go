package image

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestImageRunsNothing has the annotations of an encrypted image name programs in every place that a scheme has for
// words.
func TestImageRunsNothing(t *testing.T) {
	softhsmtest.Parallel(t)
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "RSA-2048")
	trap, base := softhsmtest.NewTrap(t), t.TempDir()
	source, encrypted := "oci:"+filepath.Join(base, "source")+":app", filepath.Join(base, "encrypted")
	oci.WriteImage(t, filepath.Join(base, "source"), "app", 1000, "linux/amd64")
	key := u.Keys["RSA-2048"]
	softhsmtest.Run(t, u.HSMImage, "encrypt", source, "oci:"+encrypted+":app", "--recipient", "pubkey:"+key.Public)
	lure := "pkcs11:token=node?module-path=" + trap.Library + "&pin-source=exec:" + url.PathEscape(trap.Command)
	header := map[string]string{"alg": "RSA-OAEP-256", "kid": lure, "jku": lure, "module-path": trap.Library,
		"pin-source": "exec:" + trap.Command}
	jwe := map[string]any{"protected": "e30",
		"recipients": []any{map[string]any{"header": header, "encrypted_key": "AAAA"}}, "iv": "AAAA", "ciphertext": "AAAA",
		"tag": "AAAA"}
	blob := map[string]any{"version": 0, "uri": lure, "module-path": trap.Library, "recipients": []any{
		map[string]any{"version": 0, "blob": make([]byte, 256), "hash": "sha1", "uri": lure, "module-path": trap.Library,
			"pin-source": "exec:" + trap.Command},
	}}
	for scheme, value := range map[string]any{"provider.hsm": jwe, "jwe": jwe, "pkcs11": blob, "provider." + lure: jwe} {
		m := oci.ReadManifest(t, encrypted, "app")
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		annotations := maps.Clone(m.Layers[0].Annotations)
		delete(annotations, "org.opencontainers.image.enc.keys.provider.hsm")
		annotations["org.opencontainers.image.enc.keys."+scheme] = base64.StdEncoding.EncodeToString(data)
		m.Layers[0].Annotations = annotations
		dir := filepath.Join(base, "changed")
		if err := os.CopyFS(dir, os.DirFS(encrypted)); err != nil {
			t.Fatal(err)
		}
		oci.ReplaceManifest(t, dir, "app", m)
		for _, keys := range [][]string{nil, {"--key", key.URI}} {
			_, stderr, err := u.Try(t, append([]string{"decrypt", "oci:" + dir + ":app",
				"oci:" + filepath.Join(base, "plain") + ":app"}, keys...)...)
			if err == nil || trap.Sprung() {
				t.Errorf("%s: %v: %s", scheme, err, stderr)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	// On the command line of whoever encrypts, a key's URI may name a module.
	softhsmtest.Run(t, u.HSMImage, "encrypt", source, "oci:"+filepath.Join(base, "again")+":app", "--recipient",
		key.URI+"?module-path="+u.Token.Module)
	_, _, _ = u.Try(t, "decrypt", "oci:"+encrypted+":app", "oci:"+filepath.Join(base, "plain")+":app", "--key",
		key.URI+"?module-path="+trap.Library)
	if !trap.Sprung() {
		t.Error("a module on the command line was not loaded")
	}
}
