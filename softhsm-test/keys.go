package softhsmtest

import (
	"path/filepath"
	"strings"
	"testing"
)

// KeySpecs are the six keys that Notation signs with.
var KeySpecs = []string{"RSA-2048", "RSA-3072", "RSA-4096", "EC-256", "EC-384", "EC-521"}

// NewKey makes a key and a self-signed certificate on the token and returns the key's URI and a file with the
// certificate.
func NewKey(t testing.TB, token *Token, program, spec, label string) (uri, pem string) {
	t.Helper()
	uri = strings.TrimSpace(Run(t, program, "key", "generate", "--token", token.Label, "--spec", spec, "--label", label))
	pem = filepath.Join(t.TempDir(), "release.pem")
	Write(t, pem, Run(t, program, "cert", "self-sign", uri, "--subject", "CN=release,O=Example,C=CH,ST=Zurich", "--days",
		"30"))
	Run(t, program, "cert", "import", uri, pem)
	return uri, pem
}
