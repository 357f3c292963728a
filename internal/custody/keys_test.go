package custody

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// TestGenerate generates keys for one usage, and reports a module that allows the other as well.
func TestGenerate(t *testing.T) {
	m := fixture(t, "a")
	for name, r := range map[string]KeyRequest{
		"no label": {Spec: "EC-256", Usage: "sign"}, "an unknown spec": {Spec: "EC-255", Usage: "sign", Label: "x"},
		"an unknown usage": {Spec: "EC-256", Usage: "wrap", Label: "x"},
		"an id not in hex": {Spec: "EC-256", Usage: "sign", Label: "x", ID: "0"},
	} {
		_, _, err := Generate(t.Context(), m.Reference("a", ""), r)
		wantFailure(t, name, err, failure.Invalid, "")
	}
	if m.Calls("Generate") != 0 {
		t.Error("a key was generated")
	}
	uri, extra, err := Generate(t.Context(), m.Reference("a", ""),
		KeyRequest{Spec: "EC-384", Usage: "sign", Label: "one", ID: "0a"})
	if err != nil || extra != "" || uri != "pkcs11:token=a;id=%0A;object=one" {
		t.Errorf("%s, %q, %v", uri, extra, err)
	}
	yes := true
	m.ShowInfo(func(i *key.Info) { i.Sign, i.Decrypt = &yes, &yes })
	for usage, want := range map[string]key.Usage{"sign": key.Decrypt, "decrypt": key.Sign} {
		_, extra, err := Generate(t.Context(), m.Reference("a", ""), KeyRequest{Spec: "EC-256", Usage: usage, Label: usage})
		if err != nil || extra != want {
			t.Errorf("%s: %q, %v", usage, extra, err)
		}
	}
}

// TestKeys describes keys, and why Notation cannot sign with some.
func TestKeys(t *testing.T) {
	m := fixture(t, "a")
	generate(t, m, "a", "release")
	generateWithout(t, m, "bare")
	if _, _, err := Generate(t.Context(), m.Reference("a", ""),
		KeyRequest{Spec: "EC-256", Usage: "decrypt", Label: "nodes"}); err != nil {
		t.Fatal(err)
	}
	keys, err := Keys(t.Context(), m.Reference("a", ""))
	if err != nil || len(keys) != 3 {
		t.Fatal(keys, err)
	}
	release, bare, nodes := keys[0], keys[1], keys[2]
	if !release.Usable || release.Spec != "EC-256" || release.Certificate == nil || release.Certificate.Length != 1 ||
		release.Certificate.Subject != "CN=release,O=Example,ST=Zurich,C=CH" {
		t.Errorf("%+v", release)
	}
	if bare.Usable || bare.Reason != "it has no certificate" {
		t.Errorf("%+v", bare)
	}
	if nodes.Usable || nodes.Reason != "CKA_SIGN is false" {
		t.Errorf("%+v", nodes)
	}
	if shown, err := Show(t.Context(), m.Reference("a", "bare")); err != nil || shown.Label != "bare" {
		t.Errorf("%+v, %v", shown, err)
	}
	if _, err := Show(t.Context(), m.Reference("a", "none")); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
	m.ShowInfo(func(i *key.Info) { i.Public = nil })
	shown, err := Show(t.Context(), m.Reference("a", "bare"))
	if err != nil || shown.Reason != "its public half cannot be read" {
		t.Errorf("%+v, %v", shown, err)
	}
}

// TestCertificates makes, imports and exports certificates of a key.
func TestCertificates(t *testing.T) {
	m := fixture(t, "a")
	generateWithout(t, m, "release")
	s := m.Reference("a", "release")
	_, err := Export(t.Context(), s)
	wantFailure(t, "no certificate", err, failure.NotFound, "has no certificate")
	_, _, err = SelfSign(t.Context(), s, "O=Example", 30)
	wantFailure(t, "no common name", err, failure.Invalid, "")
	_, _, err = Request(t.Context(), s, "O=Example")
	wantFailure(t, "no common name", err, failure.Invalid, "")
	request, missing, err := Request(t.Context(), s, "CN=release")
	if err != nil || !slices.Equal(missing, []string{"C", "ST", "O"}) {
		t.Error(missing, err)
	}
	block, _ := pem.Decode(request)
	if csr, err := x509.ParseCertificateRequest(block.Bytes); err != nil || csr.CheckSignature() != nil {
		t.Error(err)
	}
	data, missing, err := SelfSign(t.Context(), s, testSubject, 30)
	if err != nil || len(missing) != 0 {
		t.Fatal(missing, err)
	}
	path := file(t, data)
	for _, want := range []int{1, 0} {
		if length, stored, err := Import(t.Context(), s, path); err != nil || length != 1 || stored != want {
			t.Errorf("%d of %d, %v", stored, length, err)
		}
	}
	if chain, err := Export(t.Context(), s); err != nil || string(chain) != string(data) {
		t.Errorf("%s, %v", chain, err)
	}
	public, err := ExportPublic(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	block, _ = pem.Decode(public)
	cert, _ := pem.Decode(data)
	parsed := must[*x509.Certificate](t)(x509.ParseCertificate(cert.Bytes))
	if key, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil || !parsed.PublicKey.(*ecdsa.PublicKey).Equal(key) {
		t.Error(key, err)
	}
	generateWithout(t, m, "other")
	_, _, err = Import(t.Context(), m.Reference("a", "other"), path)
	wantFailure(t, "another key's certificate", err, failure.Invalid, "belongs to the key")
	if _, _, err := Import(t.Context(), s, path+".none"); err == nil || !strings.Contains(err.Error(), ".none") {
		t.Error(err)
	}
	s.CertificateChain = path
	if shown, err := Show(t.Context(), s); err != nil || !shown.Usable {
		t.Errorf("with a certificate-chain file: %+v, %v", shown, err)
	}
}
