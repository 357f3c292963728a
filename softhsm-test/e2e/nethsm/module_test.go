package nethsm

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestNetHSMModule signs through a module that behaves as Nitrokey's does, as far as its source tells: a search before
// the login fails, and one without a key ID, which is a request for each key there, is never made.
func TestNetHSMModule(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "release",
		"--id", hex.EncodeToString([]byte("release"))))
	pem := filepath.Join(t.TempDir(), "release.pem")
	softhsmtest.Write(t, pem, softhsmtest.Run(t, n.Plugin, "cert", "self-sign", uri, "--subject",
		"CN=release,O=Example,C=CH,ST=Zurich"))
	softhsmtest.Run(t, n.Plugin, "cert", "import", uri, pem)
	root := softhsmtest.NewCA(t, "Root", nil)
	issued := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "issued",
		"--id", hex.EncodeToString([]byte("issued"))))
	leaf, issuers := filepath.Join(t.TempDir(), "leaf.pem"), filepath.Join(t.TempDir(), "root.pem")
	softhsmtest.Write(t, leaf, softhsmtest.PEM(root.Issue(t, softhsmtest.Template("issued"), softhsmtest.PublicKey(t, n,
		issued))))
	softhsmtest.Write(t, issuers, softhsmtest.PEM(root.Cert))
	softhsmtest.Run(t, n.Plugin, "cert", "import", issued, leaf)

	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SHIM_NETHSM", "1")
	log := filepath.Join(t.TempDir(), "calls")
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	// calls returns those of one command, once none of them is what a NetHSM is slow at.
	calls := func(t *testing.T) []string {
		t.Helper()
		all := softhsmtest.Calls(t, log)
		_ = os.Remove(log)
		if softhsmtest.Count(all, "C_FindObjectsInit_all") > 0 {
			t.Errorf("it reads every key: %v", all)
		}
		if search := slices.Index(all, "C_FindObjectsInit"); search >= 0 &&
			(slices.Index(all, "C_Login") < 0 || slices.Index(all, "C_Login") > search) {
			t.Errorf("it searches before the login: %v", all)
		}
		return all
	}
	const named = "pkcs11:token=signing;object="
	for _, c := range []struct {
		name, request string
		searches      int
	}{
		{"the chain in a file", softhsmtest.Request(named+"release", softhsmtest.PluginConfig("certificate-chain", pem)),
			1},
		{"the certificate beside the key", softhsmtest.Request(named+"release", nil), 2},
		{"the key by its id", softhsmtest.Request("pkcs11:token=signing;id=release", nil), 2},
		{"its issuers in a file", softhsmtest.Request(named+"issued", softhsmtest.PluginConfig("certificate-chain",
			issuers)), 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			softhsmtest.Signs(t, n, c.request)
			all := calls(t)
			if searches := softhsmtest.Count(all, "C_FindObjectsInit"); searches != c.searches || softhsmtest.Count(all,
				"C_SignInit") != 1 ||
				softhsmtest.Count(all, "C_Login") != 1 {
				t.Errorf("%v", all)
			}
			if _, stderr, err := softhsmtest.Try(t, c.request, n.Plugin, "describe-key"); err != nil {
				t.Error(stderr)
			}
			calls(t)
		})
	}
	t.Run("its issuers nowhere", func(t *testing.T) {
		softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request(named+"issued", nil)).Expect(t,
			"VALIDATION_ERROR", "is missing")
		calls(t)
	})
	t.Run("a key with another tag", func(t *testing.T) { // which is a 403
		softhsmtest.Setenv(t, "SHIM_FAULT", "C_Sign:101")
		r := softhsmtest.Request(named+"release", nil)
		softhsmtest.Refused(t, n.Plugin, "generate-signature", r).Expect(t, "ACCESS_DENIED",
			"the operator may not do that (403)")
		if all := calls(t); softhsmtest.Count(all, "C_Sign") != 1 || softhsmtest.Count(all, "C_Login") != 1 {
			t.Errorf("%v", all)
		}
	})
	t.Run("show and examine", func(t *testing.T) {
		if shown := softhsmtest.Run(t, n.Plugin, "key", "show", named+"release"); !strings.Contains(shown, "can sign") {
			t.Error(shown)
		}
		calls(t)
		if report := softhsmtest.Run(t, n.Plugin, "doctor", named+"release"); !strings.Contains(report,
			"made in the module, and verified") {
			t.Error(report)
		}
		calls(t)
	})
	t.Run("list", func(t *testing.T) { // which is what reads every key
		if list := softhsmtest.Run(t, n.Plugin, "key", "list", "--token", "signing"); !strings.Contains(list, "release") ||
			!strings.Contains(list, "issued") {
			t.Error(list)
		}
		_ = os.Remove(log)
	})
	for _, c := range []struct {
		name, want string
		arguments  []string
		logins     int
	}{
		{"no such key", "check the key ID", []string{"key", "show", named + "nothing"}, 1},
		{"no key named", "name the key by its ID", []string{"key", "show", "pkcs11:token=signing"}, 1},
		{"generate", "--token nethsm:", []string{"key", "generate", "--token", "signing", "--label", "other"}, 0},
		{"import", "nethsm:KEYID", []string{"cert", "import", named + "release", pem}, 1},
		{"delete", "nethsm:KEYID", []string{"key", "delete", named + "issued", "--yes"}, 1},
		{"back up", "nethsm backup", []string{"key", "backup", named + "release", "--to",
			filepath.Join(t.TempDir(), "backup")}, 1},
		{"generate, to be wrapped", "it wraps no keys",
			[]string{"key", "generate", "--token", "signing", "--label", "other", "--backup-key", "any"}, 0},
		{"a wrong passphrase", "the passphrase is wrong",
			[]string{"key", "show", named + "release", "--pin-source", "env:TEST_WRONG"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			softhsmtest.Setenv(t, "TEST_WRONG", "654321")
			_, stderr, err := softhsmtest.Try(t, "", n.Plugin, c.arguments...)
			if all := calls(t); err == nil || !strings.Contains(stderr, c.want) || softhsmtest.Count(all,
				"C_Login") > c.logins ||
				softhsmtest.Count(all, "C_GenerateKeyPair")+softhsmtest.Count(all, "C_CreateObject")+softhsmtest.Count(all,
					"C_DestroyObject") > 0 {
				t.Errorf("%v: %s\n%v", err, stderr, all)
			}
		})
	}
}

// TestNitrokeyModule signs, decrypts and looks around through Nitrokey's own module, with keys that were made without
// it.
func TestNitrokeyModule(t *testing.T) {
	softhsmtest.Parallel(t)
	module := os.Getenv("NETHSM_PKCS11_MODULE")
	if module == "" {
		t.Skip("set NETHSM_PKCS11_MODULE to the path of Nitrokey's libnethsm_pkcs11.so")
	}
	h, n := NewNetHSM(t)
	registry := oci.StartRegistry(t)
	chains := map[string]string{}
	for _, spec := range softhsmtest.KeySpecs {
		_, chains[spec] = softhsmtest.NewKey(t, h.Token, n.Plugin, spec, h.Key("key-"+spec))
	}
	recipient := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "nethsm:", "--label",
		h.Key("recipient"), "--spec", "RSA-2048", "--usage", "decrypt"))
	public := filepath.Join(t.TempDir(), "recipient.pem")
	softhsmtest.Write(t, public, softhsmtest.Run(t, n.Plugin, "cert", "export", "--public", recipient))

	conf := filepath.Join(t.TempDir(), "p11nethsm.conf")
	softhsmtest.Write(t, conf, softhsmtest.Run(t, n.Plugin, "nethsm", "config"))
	softhsmtest.Setenv(t, "P11NETHSM_CONFIG_FILE", conf)
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", module)
	if list := softhsmtest.Run(t, n.Plugin, "token", "list"); !strings.Contains(list, "NetHSM") {
		t.Errorf("it is not taken for a NetHSM: %s", list)
	}
	named := "pkcs11:token=nethsm;object=" + h.run
	for _, spec := range softhsmtest.KeySpecs {
		n.Trust(t, chains[spec])
		for where, arguments := range map[string][]string{"beside": nil,
			"file": {"--plugin-config", "certificate-chain=" + chains[spec]}} {
			if h.Server != nil {
				h.Server.ResetRequests()
			}
			signAndVerify(t, n, registry, strings.ToLower(spec)+"-"+where, named+"key-"+spec, arguments...)
			if h.Server == nil {
				continue
			}
			all := h.Server.Requests()
			t.Logf("%s, chain %s: %d requests", spec, where, len(all))
			for _, r := range all {
				if r.Path == "/keys" {
					t.Errorf("it reads every key: %+v", all)
				}
			}
		}
	}
	u := &oci.User{HSMImage: softhsmtest.Build(t, "hsm-image")}
	u.RoundTrips(t, []oci.RoundTrip{{Name: "through the module", Program: "hsm-image", Recipients: []string{"pubkey:" +
		public},
		Keys: []oci.Key{{URI: named + "recipient", Public: public}}, Provider: false}})
	if list := softhsmtest.Run(t, n.Plugin, "key", "list", "--token", "nethsm"); !strings.Contains(list, "key-EC-256") {
		t.Error(list)
	}
	for _, arguments := range [][]string{{"key", "show", named + "key-EC-256"}, {"doctor", named + "key-RSA-2048"}} {
		if shown := softhsmtest.Run(t, n.Plugin, arguments...); !strings.Contains(shown, "sign") {
			t.Error(shown)
		}
	}
	if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, "key", "generate", "--token", "nethsm", "--label",
		"other"); err == nil ||
		!strings.Contains(stderr, "--token nethsm:") {
		t.Errorf("%v: %s", err, stderr)
	}
}
