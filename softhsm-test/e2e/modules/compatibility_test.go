// Package modules tests, end to end, PKCS#11 modules of several vendors, and modules that fail.
package modules

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestModules signs with the modules of different people, everything each of them can do, through the real notation,
// and holds the result against the table in docs/compatibility.md.
func TestModules(t *testing.T) {
	softhsmtest.Parallel(t)
	registry := oci.StartRegistry(t)
	table := "| module | " + strings.Join(softhsmtest.KeySpecs, " | ") + " |\n| --- |" + strings.Repeat(" --- |",
		len(softhsmtest.KeySpecs)) + "\n"
	for _, module := range []struct {
		name string // also of folders, in which commas have meanings
		what string
		open func(t testing.TB) *softhsmtest.Token
	}{
		{"SoftHSM2", "SoftHSM 2", func(t testing.TB) *softhsmtest.Token { return softhsmtest.NewToken(t, "signing") }},
		{"openCryptoki", "openCryptoki, software token",
			func(t testing.TB) *softhsmtest.Token { return softhsmtest.OpenCryptoki(t) }},
		{"tpm2-pkcs11", "tpm2-pkcs11, on a TPM 2.0 (swtpm)",
			func(t testing.TB) *softhsmtest.Token { return softhsmtest.TPM(t) }},
		{"p11-kit-client", "p11-kit client, over a socket to SoftHSM 2",
			func(t testing.TB) *softhsmtest.Token {
				return softhsmtest.P11KitServer(t, softhsmtest.NewToken(t, "signing"))
			}},
		{"p11-kit-proxy", "p11-kit proxy, no module named", func(t testing.TB) *softhsmtest.Token {
			proxied := softhsmtest.P11KitProxy(t, softhsmtest.NewToken(t, "signing"))
			proxied.Module = "" // the product has to find it
			return proxied
		}},
		{"NSS", "NSS softoken, with `init-args`", softhsmtest.NSS},
	} {
		row := "| " + module.what
		t.Run(module.name, func(t *testing.T) {
			token := module.open(t)
			n := softhsmtest.NewNotation(t, token)
			for _, spec := range softhsmtest.KeySpecs {
				row += " | " + signWith(t, n, token, registry, spec)
			}
		})
		table += row + " |\n"
		if strings.Count(row, "|") != len(softhsmtest.KeySpecs)+1 {
			softhsmtest.Missing(t, module.what) // without it the table cannot be compared
		}
	}
	compareTable(t, "TestModules", table)
}

// compareTable holds a table against the one of this test in docs/compatibility.md. With UPDATE_DOCS=1 it writes the
// table instead.
func compareTable(t *testing.T, test, table string) {
	t.Helper()
	doc := filepath.Join(softhsmtest.Root(), "docs", "compatibility.md")
	begin, end := "<!-- the table is written by: UPDATE_DOCS=1 go test -run "+test+" ./softhsm-test/e2e/modules -->\n",
		"<!-- end -->"
	before, rest, ok := strings.Cut(softhsmtest.Read(t, doc), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table of %s", doc, test)
	}
	if os.Getenv("UPDATE_DOCS") != "" {
		softhsmtest.Write(t, doc, before+begin+table+end+after)
	} else if old != table {
		t.Errorf("docs/compatibility.md has another table than was measured:\n%s", table)
	}
}

// signWith makes a key and signs and verifies an image with it in both envelope formats. It returns the cell of the
// table.
func signWith(t *testing.T, n *softhsmtest.Notation, token *softhsmtest.Token, registry, spec string) string {
	t.Helper()
	label := "key-" + spec
	uri, stderr, err := softhsmtest.Try(t, "", n.Plugin, "key", "generate", "--token", token.Label, "--spec", spec,
		"--label", label)
	if token.InitArgs != "" {
		if err == nil || !strings.Contains(stderr, "init-args") {
			t.Errorf("a key was generated with init-args: %v, %s", err, stderr)
		}
		token.Generate(t, spec, label)
		uri, err = fmt.Sprintf("pkcs11:token=%s;object=%s", url.PathEscape(token.Label), label), nil
	}
	if err != nil {
		if !strings.Contains(stderr, "makes no "+spec+" keys") && !strings.Contains(stderr, "cannot show it") {
			t.Errorf("%s: %s", spec, stderr)
		}
		t.Logf("%s: %s", spec, stderr)
		return "no"
	}
	uri = strings.TrimSpace(uri)
	pem := filepath.Join(t.TempDir(), "release.pem")
	softhsmtest.Write(t, pem, softhsmtest.Run(t, n.Plugin, "cert", "self-sign", uri, "--subject",
		"CN=release,O=Example,C=CH,ST=Zurich"))
	softhsmtest.Run(t, n.Plugin, "cert", "import", uri, pem)
	n.Trust(t, pem)
	for _, format := range []string{"jws", "cose"} {
		repository := fmt.Sprintf("%s/%s", registry, strings.ToLower(spec))
		digest, err := oci.PushImage(context.Background(), repository+":v1", t.Name()+format)
		if err != nil {
			t.Fatal(err)
		}
		image := repository + "@" + digest.String()
		softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", uri, "--signature-format",
			format, image)
		softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", image)
	}
	return "JWS, COSE"
}
