package nethsm

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestTrust accepts the certificates of a CA file, and with insecure any.
func TestTrust(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	s.NetHSM.Fingerprints = nil
	for name, trust := range map[string]func(){
		"CA file":  func() { s.NetHSM.CAFile, s.NetHSM.Insecure = servers[0].CAFile(), false },
		"insecure": func() { s.NetHSM.CAFile, s.NetHSM.Insecure = "", true },
	} {
		trust()
		if err := sign(t.Context(), open(t, s), &private.PublicKey); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCAFile fails for a CA file that does not exist, has no certificate, or that others can change.
func TestCAFile(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	s.NetHSM.Fingerprints = nil
	dir := t.TempDir()
	write := func(name string, data []byte, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		path  string
		kind  failure.Kind
		words string
	}{
		{filepath.Join(dir, "none.pem"), failure.NotFound, "cannot read "},
		{dir, failure.Invalid, "cannot "},
		{write("empty.pem", []byte("hello"), 0o600), failure.Invalid, "has no certificate"},
		{write("writable.pem", servers[0].CertificatePEM(), 0o666), failure.Denied, "cannot trust "},
	} {
		s.NetHSM.CAFile = c.path
		if _, err := New(io.Discard).open(s); !failure.Is(err, c.kind) || !strings.HasPrefix(err.Error(), c.words) &&
			!strings.HasSuffix(err.Error(), c.words) {
			t.Errorf("%s: %v", c.path, err)
		}
	}
}

// TestInsecure warns once per backend, and is refused together with other trust.
func TestInsecure(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	var warnings buffer
	b := warnTo(&warnings)
	s.NetHSM.Insecure = true
	if _, err := b.open(s); !failure.Is(err, failure.Invalid) {
		t.Errorf("with fingerprints: %v", err)
	}
	if _, err := b.ModuleConfig(s, "nethsm", os.DevNull); !failure.Is(err, failure.Invalid) {
		t.Errorf("for the module, with fingerprints: %v", err)
	}
	s.NetHSM.Fingerprints, s.NetHSM.CAFile = nil, servers[0].CAFile()
	if _, err := b.open(s); !failure.Is(err, failure.Invalid) || warnings.String() != "" {
		t.Errorf("with a CA: %v", err)
	}
	s.NetHSM.CAFile = ""
	openWith(t, b, s)
	openWith(t, b, s)
	if !strings.HasPrefix(warnings.String(), "warning: TLS certificates of the NetHSM are NOT verified") ||
		strings.Count(warnings.String(), "\n") != 1 {
		t.Errorf("%q", warnings.String())
	}
	var others buffer
	openWith(t, warnTo(&others), s)
	if others.String() != warnings.String() {
		t.Errorf("another backend: %q", others.String())
	}
}

// TestWrongCertificate uses the second instance when the first has another certificate than expected, and warns once
// per backend. No request and so no passphrase goes to the first.
func TestWrongCertificate(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 2)
	private := ecKey(t, servers[0])
	var warnings buffer
	b := warnTo(&warnings)
	s.NetHSM.Fingerprints = s.NetHSM.Fingerprints[1:]
	for range 2 {
		if err := sign(t.Context(), openWith(t, b, s), &private.PublicKey); err != nil {
			t.Fatal(err)
		}
	}
	const words = "cannot verify the TLS certificate of "
	if !strings.HasPrefix(warnings.String(), "warning: "+words+s.NetHSM.Instances[0]) ||
		strings.Count(warnings.String(), "\n") != 1 {
		t.Errorf("%q", warnings.String())
	}
	if all := paths("", servers[0]); len(all) > 0 {
		t.Errorf("it got %v", all)
	}
	status, err := b.Status(t.Context(), s)
	if err != nil || !strings.HasPrefix(status.Instances[0].Error, words) || status.Instances[1].Error != "" {
		t.Errorf("%+v, %v", status, err)
	}

	// Tokens finds it although the other instance responds first.
	warnings = buffer{}
	s.NetHSM.Instances[0], s.NetHSM.Instances[1] = s.NetHSM.Instances[1], s.NetHSM.Instances[0]
	if _, err := warnTo(&warnings).Tokens(t.Context(), s); err != nil ||
		!strings.Contains(warnings.String(), words+s.NetHSM.Instances[1]) {
		t.Errorf("%v, %q", err, warnings.String())
	}

	// The same after the certificate of a working instance was replaced.
	_, err = openWith(t, b, s).change(t.Context(), request{what: "replacing the certificate", method: http.MethodPost,
		path: "/config/tls/generate", body: []byte(`{"type":"EC_P256"}`)}, http.StatusNoContent)
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(t.Context(), openWith(t, b, s), &private.PublicKey); !failure.Is(err, failure.Denied) {
		t.Error(err)
	}
}
