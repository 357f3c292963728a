package layerkey

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestTries bounds what one layer can ask of a module, and what an error repeats.
func TestTries(t *testing.T) {
	token := softhsmtest.NewToken(t, "recipients")
	use(t, token)
	generate(t, "rsa", "RSA-2048")
	log := filepath.Join(t.TempDir(), "calls")
	t.Setenv("NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	t.Setenv("SHIM_LOG", log)
	var b pkcs11Packet
	for range 100 {
		b.Recipients = append(b.Recipients, struct {
			Blob []byte `json:"blob"`
			Hash string `json:"hash"`
		}{make([]byte, 256), "sha1"})
	}
	packet, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	annotations := annotation(schemePKCS11, packet, packet)
	_, err = opens(t, annotations, uri("rsa"))
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Decrypt"); err == nil || n > triesLimit ||
		len(err.Error()) > 1000 {
		t.Errorf("%d decryptions, and then: %v", n, err)
	}
	generate(t, "ec", "EC-256")
	if _, err := opens(t, annotations, uri("ec")); err == nil || len(err.Error()) > 1000 ||
		!strings.Contains(err.Error(), "195 more") {
		t.Errorf("with a key that fits none: %v", err)
	}
}

// TestFaults has each call that opens a layer fail in every way a module can: the layer opens all the same or there is
// one error in time, and never something that is not the layer's.
// This file comes last: a module that hangs is never finalised, and SoftHSM is one module however it is reached.
func TestFaults(t *testing.T) {
	token := softhsmtest.NewToken(t, "recipients")
	use(t, token)
	generate(t, "rsa", "RSA-2048")
	generate(t, "ec", "EC-256")
	sealed := map[string]map[string]string{"rsa": seal(t, uri("rsa")+"?oaep=sha1"), "ec": seal(t, uri("ec"))}
	log := filepath.Join(t.TempDir(), "calls")
	t.Setenv("NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	t.Setenv("SHIM_LOG", log)
	t.Setenv("SHIM_FAULT_TIMES", "0")
	t.Setenv("NOTATION_HSM_TIMEOUT", "300ms")
	const deviceError, functionFailed, sessionClosed, notLoggedIn, tooSmall = "30", "6", "B0", "101", "150"
	for label, calls := range map[string][]string{
		"rsa": {"C_DecryptInit", "C_Decrypt"}, "ec": {"C_DeriveKey", "C_GetAttributeValue", "C_DestroyObject"},
	} {
		for _, call := range calls {
			for _, how := range []string{deviceError, functionFailed, sessionClosed, notLoggedIn, tooSmall, "wrong", "short",
				"length", "hang"} {
				t.Run(call+":"+how, func(t *testing.T) {
					t.Setenv("SHIM_FAULT", call+":"+how)
					os.Remove(log)
					start := time.Now()
					keys := OpenKeys(backends.Keystore(), []string{uri(label)}, config.Flags)
					opened, err := keys.Open(t.Context(), sealed[label])
					keys.Close()
					if took := time.Since(start); took > 10*time.Second {
						t.Errorf("it took %v", took)
					}
					if err == nil && string(opened) != options {
						t.Errorf("it opened to %q", opened)
					}
					spoiled := how == "wrong" || how == "short" || how == "length" // a result, which these two do not have
					resultless := call == "C_DecryptInit" || call == "C_DeriveKey"
					if err == nil && call != "C_DestroyObject" && (!spoiled || !resultless) {
						t.Errorf("%s failed with %s, and nobody noticed", call, how)
					}
					if err != nil && failure.From(err).What == "" {
						t.Errorf("the failure says nothing: %v", err)
					}
					logins := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login")
					if logins > 1 && how != notLoggedIn { // which asks for the PIN for this use: one more, of another kind
						t.Errorf("there were %d logins", logins)
					}
				})
			}
		}
	}
}
