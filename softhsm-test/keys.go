package softhsmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
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

// SameKey puts one EC-256 key under a label into several tokens of SoftHSM, as if one backup were restored into all,
// and returns a file with the key's chain, leaf first. The tokens have no certificates.
func SameKey(t testing.TB, label string, tokens ...string) (chain string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "key.pem")
	Write(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	for _, token := range tokens {
		Run(t, Program(t, "softhsm2-util"), "--import", file, "--token", token, "--label", label, "--id",
			hex.EncodeToString([]byte(label)), "--pin", PIN)
	}
	ca := NewCA(t, "root", nil)
	chain = filepath.Join(dir, "chain.pem")
	Write(t, chain, PEM(ca.Issue(t, Template(label), private.Public()))+ca.PEM())
	return chain
}
