package logflags

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// TestVerifiers verifies that a key is taken as a line, as a file with that line, and as a PEM file with its origin.
func TestVerifiers(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v, err := translog.NewVerifier("broker.example.com/log", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	public := file("log.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	line := file("log.key", v.String()+"\n")
	for name, c := range map[string]struct {
		keys []string
		want string // words of the error; "" if there is none
	}{
		"line":                    {[]string{"--key", v.String()}, ""},
		"line of the origin":      {[]string{"--key", v.String(), "--origin", v.Name()}, ""},
		"file with the line":      {[]string{"--key", line}, ""},
		"PEM file":                {[]string{"--key", public, "--origin", v.Name()}, ""},
		"none":                    {nil, "--key is required"},
		"PEM file without origin": {[]string{"--key", public}, "--origin is required"},
		"line of another origin":  {[]string{"--key", v.String(), "--origin", "other/log"}, `--origin is "other/log"`},
		"no such file":            {[]string{"--key", filepath.Join(folder, "no")}, "cannot read "},
		"file that is not a key":  {[]string{"--key", file("no.key", "no key")}, "cannot read the verifier key"},
		"PEM file that is no key": {[]string{"--key", file("no.pem", "-----BEGIN X-----\n-----END X-----\n"), "--origin",
			"a"},
			"no.pem"},
	} {
		var f Flags
		command := &cobra.Command{Use: "test"}
		f.Add(command)
		if err := command.ParseFlags(c.keys); err != nil {
			t.Fatal(err)
		}
		all, err := f.Verifiers(command)
		switch {
		case c.want == "" && (err != nil || len(all) != 1 || all[0].String() != v.String()):
			t.Errorf("%s: Verifiers() = %v, %v", name, all, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: Verifiers() = %v, want %q", name, err, c.want)
		}
	}
}
