package custody

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/nethsm"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

// startNetHSM starts a NetHSM and returns the reference of a key "release" on it.
func startNetHSM(t *testing.T) (*nethsmtest.Server, *keystore.Reference) {
	t.Helper()
	fixture(t)
	server := nethsmtest.Start(t)
	server.Provision("admin passphrase", "operator passphrase")
	t.Setenv("ADMIN_PASSPHRASE", "admin passphrase")
	t.Setenv("OPERATOR_PASSPHRASE", "operator passphrase")
	return server, keystore.New(nil, nethsm.New(io.Discard)).Reference(&config.Settings{
		Key: config.URI{NetHSM: true, Object: "release"}, PINSource: "env:OPERATOR_PASSPHRASE", Timeout: time.Minute,
		NetHSM: &config.NetHSM{User: nethsmtest.OperatorUser, Administrator: nethsmtest.AdminUser,
			AdministratorPINSource: "env:ADMIN_PASSPHRASE", Instances: []string{"https://" + server.Address},
			Fingerprints: [][sha256.Size]byte{sha256.Sum256(server.Certificate().Raw)}},
	})
}

// TestSetUpNetHSM creates the key and its certificate once the plan is confirmed, and nothing that exists already.
func TestSetUpNetHSM(t *testing.T) {
	_, s := startNetHSM(t)
	request := NetHSMSetup{Spec: "EC-256", Usage: "sign", Tag: "pipeline", Subject: testSubject, Days: 30}
	for name, change := range map[string]func(*NetHSMSetup){
		"an unknown spec":  func(o *NetHSMSetup) { o.Spec = "EC-255" },
		"an unknown usage": func(o *NetHSMSetup) { o.Usage = "wrap" },
		"no common name":   func(o *NetHSMSetup) { o.Subject = "O=Example" },
		"a recipient's certificate": func(o *NetHSMSetup) {
			o.Usage, o.Spec = "decrypt", "RSA-2048"
		},
	} {
		o := request
		change(&o)
		err := SetUpNetHSM(t.Context(), s, o, func([]nethsm.Step) error { t.Error("asked"); return nil }, func(string) {})
		wantFailure(t, name, err, failure.Invalid, "")
	}
	refuse := func([]nethsm.Step) error { return errInjected }
	if err := SetUpNetHSM(t.Context(), s, request, refuse, func(string) {}); err == nil {
		t.Error("not confirmed, and no failure")
	}
	if _, err := Show(t.Context(), s); !failure.Is(err, failure.NotFound) && !failure.Is(err, failure.Invalid) {
		t.Errorf("a key was created without confirmation: %v", err)
	}
	for _, first := range []bool{true, false} {
		var done []string
		var plan []nethsm.Step
		err := SetUpNetHSM(t.Context(), s, request, func(steps []nethsm.Step) error { plan = steps; return nil },
			func(step string) { done = append(done, step) })
		if err != nil {
			t.Fatal(err)
		}
		if last := plan[len(plan)-1].What; !strings.Contains(last, "self-signed certificate of") {
			t.Errorf("the plan is %+v", plan)
		}
		if created := len(done) > 1; created != first { // the certificate is checked each time
			t.Errorf("steps: %q", done)
		}
		if k, err := Show(t.Context(), s); err != nil || !k.Usable ||
			k.Certificate.Subject != "CN=release,O=Example,ST=Zurich,C=CH" {
			t.Errorf("%+v, %v", k, err)
		}
	}
}

// TestNetHSM shows the state of a NetHSM, and writes its backup.
func TestNetHSM(t *testing.T) {
	server, s := startNetHSM(t)
	status, err := NetHSMStatus(t.Context(), s)
	if err != nil || len(status.Instances) != 1 || status.Instances[0].State != nethsm.Operational {
		t.Errorf("%+v, %v", status, err)
	}
	conf, err := NetHSMModule(s, "signing", os.DevNull)
	if err != nil || !strings.Contains(string(conf), server.Address) || strings.Contains(string(conf), "passphrase") {
		t.Errorf("%s, %v", conf, err)
	}
	path := filepath.Join(t.TempDir(), "backup")
	if _, _, err := BackUpNetHSM(t.Context(), s, path); err == nil || exists(path) {
		t.Errorf("a backup without a user for backups: %v", err)
	}
	server.AddUser("backup", nethsmtest.Backup, "backup passphrase")
	t.Setenv("BACKUP_PASSPHRASE", "backup passphrase")
	s.NetHSM.BackupUser, s.NetHSM.BackupPINSource = "backup", "env:BACKUP_PASSPHRASE"
	setBackupPassphrase(t, server)
	size, digest, err := BackUpNetHSM(t.Context(), s, path)
	if err != nil {
		t.Fatal(err)
	}
	data := must[[]byte](t)(os.ReadFile(path))
	if sum := sha256.Sum256(data); size != len(data) || digest != hex.EncodeToString(sum[:]) {
		t.Errorf("%d, %s", size, digest)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// setBackupPassphrase sets the passphrase that the NetHSM encrypts backups under.
func setBackupPassphrase(t *testing.T, server *nethsmtest.Server) {
	t.Helper()
	request := must[*http.Request](t)(http.NewRequest(http.MethodPut,
		"https://"+server.Address+"/api/v1/config/backup-passphrase",
		strings.NewReader(`{"newPassphrase":"the backup passphrase","currentPassphrase":""}`)))
	request.SetBasicAuth(nethsmtest.AdminUser, "admin passphrase")
	request.Header.Set("Content-Type", "application/json")
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if answer.Body.Close(); answer.StatusCode != http.StatusNoContent {
		t.Fatal(answer.Status)
	}
}
