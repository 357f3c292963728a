package nethsm

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// The passphrases of users on the test server.
const (
	rootPassphrase     = "root passphrase"
	adminPassphrase    = "admin passphrase"
	operatorPassphrase = "operator passphrase"
	backupPassphrase   = "backup passphrase"
)

// NetHSM is the NetHSM of the settings in the environment.
type NetHSM struct {
	Server *nethsmtest.Server // nil for a real one
	Token  *softhsmtest.Token // names it for helpers that take a token
	run    string             // begins the IDs of keys, so that tests of a real one do not collide
}

// Key is the ID of a key of this test.
func (h *NetHSM) Key(name string) string { return h.run + name }

// NewNetHSM starts a test server; or, with NETHSM_URL, NETHSM_ADMIN_PASSPHRASE, and NETHSM_CA_FILE or
// NETHSM_FINGERPRINT set, it takes a real one that is operational, and creates a user notation-hsm-test there. The keys
// are deleted at the end. It returns a Notation with the plugin and the settings as well.
func NewNetHSM(t *testing.T) (*NetHSM, *softhsmtest.Notation) {
	t.Helper()
	h := &NetHSM{Token: &softhsmtest.Token{Label: "nethsm:"}}
	n := softhsmtest.NewNotation(t, h.Token)
	url, admin, operator := os.Getenv("NETHSM_URL"), os.Getenv("NETHSM_ADMIN_PASSPHRASE"), operatorPassphrase
	user, fingerprint := nethsmtest.OperatorUser, os.Getenv("NETHSM_FINGERPRINT")
	if url == "" {
		h.Server = nethsmtest.Start(t)
		h.Server.Provision(adminPassphrase, operatorPassphrase)
		url, admin, fingerprint = h.Server.URL, adminPassphrase, "sha256:"+h.Server.Fingerprint()
	} else {
		user, h.run = "notation-hsm-test", "test-"+strings.ToLower(rand.Text()[:6])+"-"
	}
	for name, value := range map[string]string{
		"INSTANCES": url, "USER": user, "CA_FILE": os.Getenv("NETHSM_CA_FILE"), "FINGERPRINTS": fingerprint, "INSECURE": "",
		"PIN_SOURCE":               "",
		"ADMINISTRATOR":            cmp.Or(os.Getenv("NETHSM_ADMIN_USER"), nethsmtest.AdminUser),
		"ADMINISTRATOR_PIN_SOURCE": "env:TEST_ADMIN",
		"BACKUP_USER":              "backup", "BACKUP_PIN_SOURCE": "env:TEST_BACKUP",
	} {
		softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_"+name, value)
	}
	softhsmtest.Setenv(t, "TEST_ADMIN", admin)
	softhsmtest.Setenv(t, "TEST_OPERATOR", operator)
	softhsmtest.Setenv(t, "TEST_BACKUP", backupPassphrase)
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", "")
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN_SOURCE", "env:TEST_OPERATOR")
	if h.Server == nil {
		softhsmtest.Run(t, n.Plugin, "nethsm", "setup", "--key", h.Key("first"), "--tag", "notation-hsm-test", "--yes")
		t.Cleanup(func() { h.deleteKeys(t, n) })
	}
	return h, n
}

// deleteKeys deletes the keys of this test.
func (h *NetHSM) deleteKeys(t *testing.T, n *softhsmtest.Notation) {
	for line := range strings.Lines(softhsmtest.Run(t, n.Plugin, "key", "list", "--token", "nethsm:"+h.run+"*")) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[len(fields)-1], "nethsm:") {
			softhsmtest.Run(t, n.Plugin, "key", "delete", fields[len(fields)-1], "--yes")
		}
	}
}

// signAndVerify signs a new image and verifies it, with the notation command.
func signAndVerify(t *testing.T, n *softhsmtest.Notation, registry, name, id string, arguments ...string) {
	t.Helper()
	digest, err := oci.PushImage(context.Background(), registry+"/"+name+":v1", name)
	if err != nil {
		t.Fatal(err)
	}
	image := fmt.Sprintf("%s/%s@%s", registry, name, digest)
	softhsmtest.Run(t, n.Program, append([]string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", id, image},
		arguments...)...)
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", image)
}

// setBackupPassphrase sets the backup passphrase on the test server.
func setBackupPassphrase(t *testing.T, server *nethsmtest.Server) {
	t.Helper()
	body := strings.NewReader(`{"newPassphrase":"` + backupPassphrase + `","currentPassphrase":""}`)
	request, err := http.NewRequest(http.MethodPut, server.URL+"/config/backup-passphrase", body)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.SetBasicAuth(nethsmtest.AdminUser, adminPassphrase)
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		t.Fatal(response.Status)
	}
}
