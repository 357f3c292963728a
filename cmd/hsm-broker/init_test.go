package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// runs runs a command of hsm-broker, and returns its standard output.
func runs(args ...string) (string, error) {
	var out bytes.Buffer
	c := command()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.Execute()
	return out.String(), err
}

// initialised makes a config in a new folder, and returns the folder.
func initialised(t *testing.T, flags ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "broker")
	if _, err := runs(append([]string{"init", dir}, flags...)...); err != nil {
		t.Fatal(err)
	}
	return dir
}

// contents returns the files of a folder by their names.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	if err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, path))
		all[path] = string(data)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestInit writes a config and a policy without a mistake, certificates that a TLS client accepts, and private keys
// that only the user can read.
func TestInit(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "broker")
	out, err := runs("init", dir, "--public-url", "https://broker.example.com", "--token", "prod", "--key", "app")
	if err != nil || !strings.Contains(out, "for key in app broker-log; do notation-hsm key generate") ||
		!strings.Contains(out, "hsm-broker check-config --config "+dir+"/config.yaml --online") {
		t.Fatal(out, err)
	}
	f, err := brokerfile.Read(filepath.Join(dir, "config.yaml"))
	if err != nil || f.PublicURL != "https://broker.example.com" || f.RPID != "broker.example.com" ||
		f.Listen.HTTPS.Address != "0.0.0.0:8443" || !slices.Equal(f.Log.Key,
		[]string{"pkcs11:token=prod;object=broker-log"}) {
		t.Errorf("%+v, %v", f, err)
	}
	p, err := policy.Parse([]byte(contents(t, dir)["policy.yaml"]))
	if err != nil || p.Key("app") == nil {
		t.Error(err)
	}
	for _, name := range []string{"tls.key", "ca/ca.key", "ca/ci.key"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(contents(t, dir)["ca/ca.pem"]))
	for name, usage := range map[string]x509.ExtKeyUsage{
		"tls": x509.ExtKeyUsageServerAuth, "ca/ci": x509.ExtKeyUsageClientAuth,
	} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		o := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}
		if name == "tls" {
			o.DNSName = "broker.example.com"
		}
		if _, err := pair.Leaf.Verify(o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	address := initialised(t, "--public-url", "https://127.0.0.1:9443")
	f, err = brokerfile.Read(filepath.Join(address, "config.yaml"))
	if err != nil || f.Listen.HTTPS.Address != "127.0.0.1:9443" {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestInitReplacesNothing refuses a folder that has one of the files, and writes none.
func TestInitReplacesNothing(t *testing.T) {
	t.Parallel()
	whole := initialised(t)
	for _, name := range []string{"config.yaml", "policy.yaml", "tls.key", "ca/ca.key", "all"} {
		dir := whole
		if name != "all" {
			dir = t.TempDir()
			if err := os.MkdirAll(filepath.Join(dir, "ca"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before := contents(t, dir)
		if _, err := runs("init", dir); !failure.Is(err, failure.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
		if after := contents(t, dir); !maps.Equal(before, after) {
			t.Errorf("%s: it changed the folder", name)
		}
	}
}

// TestInitRemovesPartialFiles leaves no file behind when it cannot write one.
func TestInitRemovesPartialFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := setup{Dir: dir}
	files := map[string][]byte{"absent/file": nil}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		files[name] = []byte(name)
	}
	if err := s.save(files); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
	if left := contents(t, dir); len(left) > 0 {
		t.Error(left)
	}
}

// TestInitRefuses refuses flags of which no config can be made.
func TestInitRefuses(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{
		{"--public-url", "http://broker.example.com"}, {"--public-url", "broker"},
		{"--public-url", "https://a.example.com/x"},
		{"--token", `a";object=b`}, {"--repository", `a" || true || "`}, {"--pin-source", "1234"}, {"--key", "a b"},
		{"--module-path", "/usr/lib/a #b"}, {"--image", "a\nb"}, {"--image", "https://a"}, {"--log-key", ""},
	} {
		dir := filepath.Join(t.TempDir(), "broker")
		_, err := runs(slices.Concat([]string{"init", dir}, flags)...)
		if !failure.Is(err, failure.Invalid) {
			t.Errorf("%q: %v", flags, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%q: it made the folder", flags)
		}
	}
	if _, err := runs("init", filepath.Join(t.TempDir(), "a #b")); !failure.Is(err, failure.Invalid) {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runs("init", filepath.Join(file, "broker")); !failure.Is(err, failure.Invalid) ||
		strings.Contains(err.Error(), "it exists") {
		t.Error(err)
	}
}

// TestInitApprovers writes the file with the first approvers, and a policy that has them agree.
func TestInitApprovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pem := filepath.Join(dir, "dave.pem")
	softhsmtest.Write(t, pem, publicPEM(t))
	run := func(into string, args ...string) (string, error) {
		c := initCommand()
		var out bytes.Buffer
		c.SetOut(&out)
		c.SetErr(&out)
		c.SetArgs(append([]string{filepath.Join(dir, into)}, args...))
		err := c.Execute()
		return out.String(), err
	}
	out, err := run("good", "--public-url", "https://localhost:8443", "--approver", "dave="+pem, "--approver", "bob")
	if err != nil || !strings.Contains(out, "https://localhost:8443/enrol#") {
		t.Fatalf("%v\n%s", err, out)
	}
	people, err := brokerfile.ReadApprovers(filepath.Join(dir, "good", "approvers.yaml"))
	if err != nil || len(people) != 2 || people[1].Name != "bob" || people[1].Invitation == "" {
		t.Errorf("%+v, %v", people, err)
	}
	p, err := readPolicy(filepath.Join(dir, "good", "policy.yaml"))
	if err != nil || p.Rules(policy.Modify, "")[0].Approvals[0].Quorum != 2 {
		t.Errorf("%v", err)
	}
	for _, args := range [][]string{{"--approver", "bob"}, {"--approver", "a b"}, {"--approver", "dave=" + dir + "/none"},
		{"--approver", "dave=" + filepath.Join(dir, "good", "policy.yaml")}} {
		if out, err := run("bad", args...); err == nil {
			t.Errorf("%q: %s", args, out)
		}
	}
}

// publicPEM returns a public key in PEM.
func publicPEM(t *testing.T) string {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}
