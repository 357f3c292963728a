package custody

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

func parseChain(t testing.TB, text string) (chain []*x509.Certificate) {
	t.Helper()
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return chain
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
}

// TestCAEndToEnd has the root on a token that is put away, an intermediate on another and two signers on a third. Both
// signers' images verify at level strict; after one is revoked, its image fails as soon as the list that notation has
// in its cache has run out, and the other's still verifies. That the signatures have timestamps (RFC 3161) from before
// the revocation makes no difference to notation 1.3.
func TestCAEndToEnd(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "vault")
	vault := tokenFolders(t, token)[0]
	token.Init(t, "issuing")
	token.Init(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	registry := oci.StartRegistry(t)
	www, address := softhsmtest.Serve(t)
	root, signing := softhsmtest.Authority{Program: n.Plugin, Name: "root", WWW: www},
		softhsmtest.Authority{Program: n.Plugin, Name: "signing", WWW: www}

	// The PIN of each token comes from the config file.
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", "")
	softhsmtest.Setenv(t, "CA_PIN", softhsmtest.PIN)
	config := filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation-hsm", "config.yaml")
	if err := os.MkdirAll(filepath.Dir(config), 0o700); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, config,
		"tokens:\n  vault: {pin-source: env:CA_PIN}\n  issuing: {pin-source: env:CA_PIN}\n  signing: {pin-source: "+
			"env:CA_PIN}\n")

	rootFile := root.Init(t, "vault", "RSA-3072", "--days", "90")
	signing.Init(t, "issuing", "EC-384", "--days", "80", "--parent", "root", "--path-length", "0", "--cdp",
		address+"/root.crl")
	root.Publish(t, "1h")
	away := filepath.Join(t.TempDir(), "vault")
	if err := os.Rename(vault, away); err != nil {
		t.Fatal(err)
	}
	if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, "ca", "crl", "--ca", "root"); err == nil ||
		!strings.Contains(stderr, "no token matches") {
		t.Errorf("the root's token is put away, and yet: %v %s", err, stderr)
	}

	keys := map[string]string{}
	for signer, spec := range map[string]string{"alice": "EC-256", "bob": "RSA-2048"} {
		keys[signer] = softhsmtest.NewCAKey(t, n.Plugin, "signing", spec, signer)
		chain := parseChain(t, softhsmtest.Run(t, n.Plugin, "ca", "issue", "--ca", "signing", "--key", keys[signer],
			"--subject", "CN="+signer+",O=Example,C=CH,ST=Zurich", "--days", "30", "--cdp", address+"/signing.crl"))
		if len(chain) != 3 || chain[0].Subject.CommonName != signer || chain[2].Subject.CommonName != "root" {
			t.Errorf("%d certificates were printed for %s: %v", len(chain), signer, chain[0].Subject)
		}
	}

	tsa := softhsmtest.StartTSA(t)
	softhsmtest.TrustWithTSA(t, n, rootFile, tsa.Root)
	images := map[string]string{}
	for signer, uri := range keys {
		digest, err := oci.PushImage(context.Background(), registry+"/"+signer+":v1", signer)
		if err != nil {
			t.Fatal(err)
		}
		images[signer] = registry + "/" + signer + "@" + digest.String()
		softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", uri, "--timestamp-url",
			tsa.URL, "--timestamp-root-cert", tsa.Root, images[signer])
	}
	verify := func(signer string) (said string, err error) {
		_, said, err = softhsmtest.Try(t, "", n.Program, "verify", "--debug", "--insecure-registry", images[signer])
		return said, err
	}
	refused := func(signer, why string) {
		t.Helper()
		if said, err := verify(signer); err == nil || !strings.Contains(said, why) {
			t.Errorf("%s's image: %v, wanted %q: %s", signer, err, why, said)
		}
	}
	// The list holds for long enough to verify both, on whatever machine.
	var soonest, latest time.Time // between them, the list runs out
	for holds := 8 * time.Second; ; holds *= 2 {
		softhsmtest.Setenv(t, "XDG_CACHE_HOME", t.TempDir())
		soonest = time.Now().Add(holds - time.Second) // a list has whole seconds
		signing.Publish(t, holds.String())
		latest = time.Now().Add(holds + time.Second)
		said, err := verify("alice")
		if err == nil {
			said, err = verify("bob")
		}
		if err == nil {
			break
		}
		if time.Now().Before(soonest) {
			t.Fatalf("an image does not verify: %s", said)
		}
	}

	softhsmtest.Run(t, n.Plugin, "ca", "revoke", "--ca", "signing", "--key", keys["alice"], "--reason", "keyCompromise")
	signing.Publish(t, "1h")
	// notation has the list from before, and need not ask until its next update
	if said, err := verify("alice"); err != nil && time.Now().Before(soonest) {
		t.Errorf("alice's image does not verify: %s", said)
	}
	time.Sleep(time.Until(latest))
	refused("alice", "is revoked")
	if said, err := verify("bob"); err != nil {
		t.Errorf("bob's image does not verify: %s", said)
	}

	// Without a list there is no trust either.
	softhsmtest.Setenv(t, "XDG_CACHE_HOME", t.TempDir())
	if err := os.Remove(filepath.Join(www, "signing.crl")); err != nil {
		t.Fatal(err)
	}
	refused("bob", "revocation status is unknown")
}

func tokenFolders(t testing.TB, token *softhsmtest.Token) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(token.Dir, "tokens", "*"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no token in %s: %v", token.Dir, err)
	}
	return found
}

// TestCALint holds what the CA makes against zlint. What it complains of and is right here:
//
//   - certificate policies in an intermediate: the CA/Browser Forum's rules for web sites, which a code signing CA has
//     no policy of
//   - an address for the issuer's certificate in an intermediate: Notation has the whole chain in each signature
func TestCALint(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "vault")
	n := softhsmtest.NewNotation(t, token)
	zlint := softhsmtest.Build(t, "zlint")
	fits := "e_invalid_ca_certificate_policies,e_sub_ca_certificate_policies_missing,w_sub_ca_aia_missing"
	lint := func(what, text string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "linted.pem")
		softhsmtest.Write(t, file, text)
		var results map[string]struct{ Result, Details string }
		if err := json.Unmarshal([]byte(softhsmtest.Run(t, zlint, "-excludeNames", fits, file)), &results); err != nil {
			t.Fatal(err)
		}
		passed := 0
		for name, r := range results {
			switch r.Result {
			case "pass":
				passed++
			case "warn", "error", "fatal":
				t.Errorf("%s: %s: %s %s", what, name, r.Result, r.Details)
			}
		}
		if passed == 0 {
			t.Errorf("%s: nothing was checked", what)
		}
	}
	for _, spec := range []string{"RSA-2048", "EC-256"} {
		www := t.TempDir()
		root, signing := softhsmtest.Authority{Program: n.Plugin, Name: "root-" + spec, WWW: www},
			softhsmtest.Authority{Program: n.Plugin, Name: "signing-" + spec, WWW: www}
		root.Init(t, "vault", spec, "--days", "90")
		signing.Init(t, "vault", spec, "--days", "80", "--parent", root.Name, "--path-length", "0", "--cdp",
			"http://pki.example.com/root.crl",
			"--permit", "dns:example.com", "--permit", "email:example.com", "--exclude", "ip:192.0.2.0/24")
		uri := softhsmtest.NewCAKey(t, n.Plugin, "vault", spec, "release-"+spec)
		chain := parseChain(t, softhsmtest.Run(t, n.Plugin, "ca", "issue", "--ca", signing.Name, "--key", uri, "--subject",
			"CN=release,O=Example,C=CH,ST=Zurich",
			"--days", "30", "--cdp", "http://pki.example.com/signing.crl", "--ocsp", "http://ocsp.example.com"))
		for i, what := range []string{"leaf", "intermediate", "root"} {
			lint(spec+" "+what, softhsmtest.PEM(chain[i]))
			if chain[i].SerialNumber.Sign() <= 0 || len(chain[i].SerialNumber.Bytes()) != 20 {
				t.Errorf("%s: the serial number of the %s is %x", spec, what, chain[i].SerialNumber)
			}
		}
		softhsmtest.Run(t, n.Plugin, "ca", "revoke", "--ca", signing.Name, "--key", uri, "--reason", "superseded")
		for _, a := range []softhsmtest.Authority{root, signing} {
			a.Publish(t, "7d")
			der, err := os.ReadFile(filepath.Join(www, a.Name+".crl"))
			if err != nil {
				t.Fatal(err)
			}
			lint(spec+" list", string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})))
		}
	}
}

// TestCAAtOnce issues two hundred certificates at once: two hundred serial numbers, and as many entries.
func TestCAAtOnce(t *testing.T) {
	softhsmtest.Parallel(t)
	const runs = 200
	token := softhsmtest.NewToken(t, "vault")
	n := softhsmtest.NewNotation(t, token)
	root := softhsmtest.Authority{Program: n.Plugin, Name: "root", WWW: ""}
	root.Init(t, "vault", "EC-256", "--days", "90")
	csr := filepath.Join(t.TempDir(), "release.csr")
	softhsmtest.Write(t, csr, softhsmtest.Run(t, n.Plugin, "cert", "csr", softhsmtest.NewCAKey(t, n.Plugin, "vault",
		"EC-256", "release"), "--subject", "CN=release,O=Example,C=CH,ST=Zurich"))

	printed := make([]string, runs)
	var group sync.WaitGroup
	for i := range runs {
		group.Go(func() {
			stdout, stderr, err := softhsmtest.Try(t, "", n.Plugin, "ca", "issue", "--ca", "root", "--csr", csr, "--days",
				"30", "--yes")
			if err != nil {
				t.Errorf("run %d: %v: %s", i, err, stderr)
				return
			}
			printed[i] = stdout
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	entries := root.Show(t).Serials()
	slices.Sort(entries)
	var serials []string
	for _, text := range printed {
		serials = append(serials, serialOf(parseChain(t, text)[0]))
	}
	slices.Sort(serials)
	if len(slices.Compact(slices.Clone(serials))) != runs || !slices.Equal(serials, entries) {
		t.Errorf("%d serial numbers were printed and %d are in the ledger", len(slices.Compact(serials)), len(entries))
	}
}

func serialOf(cert *x509.Certificate) string { return hex.EncodeToString(cert.SerialNumber.Bytes()) }

// TestCAKilled kills 'ca issue' and 'ca revoke' at each write. Whatever the moment: nothing that was issued or revoked
// is lost, no serial number comes twice, and the same command then works.
func TestCAKilled(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "vault")
	n := softhsmtest.NewNotation(t, token)
	root := softhsmtest.Authority{Program: n.Plugin, Name: "root", WWW: t.TempDir()}
	root.Init(t, "vault", "EC-256", "--days", "90")
	csr := filepath.Join(t.TempDir(), "release.csr")
	softhsmtest.Write(t, csr, softhsmtest.Run(t, n.Plugin, "cert", "csr", softhsmtest.NewCAKey(t, n.Plugin, "vault",
		"EC-256", "release"), "--subject", "CN=release,O=Example,C=CH,ST=Zurich"))
	issue := []string{"ca", "issue", "--ca", "root", "--csr", csr, "--days", "30", "--yes"}

	printed := map[string]bool{} // serial numbers that someone has seen
	remember := func(text string) {
		t.Helper()
		for _, cert := range parseChain(t, text)[:1] {
			if printed[serialOf(cert)] {
				t.Errorf("the serial number %x came twice", cert.SerialNumber)
			}
			printed[serialOf(cert)] = true
		}
	}
	// sound holds the ledger against what was seen, and against issued/, from which a kill may keep the newest certificate
	// until the next change.
	sound := func(when string, late int) softhsmtest.Issued {
		t.Helper()
		shown := root.Show(t)
		serials := shown.Serials()
		files, err := filepath.Glob(filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation-hsm", "ca", "root",
			"issued", "*.pem"))
		if err != nil || len(files) > len(serials) || len(files) < len(serials)-late {
			t.Errorf("%s: %d certificates in issued/, %d in the ledger", when, len(files), len(serials))
		}
		if slices.Sort(serials); len(slices.Compact(slices.Clone(serials))) != len(serials) {
			t.Errorf("%s: a serial number is twice in the ledger", when)
		}
		for serial := range printed {
			if !slices.Contains(serials, serial) {
				t.Errorf("%s: certificate %s is lost", when, serial)
			}
		}
		return shown
	}

	// SoftHSM empties the token's own file in each login before it writes it anew; a kill between the two loses the token,
	// and no caller can mend that.
	const skip = "token.object"
	kills := killAtEach(t, skip, func() {}, func(at string) {
		sound("issue killed at "+at, 1)
		remember(softhsmtest.Run(t, n.Plugin, issue...))
		sound("issue killed at "+at+", again", 0)
	}, n.Plugin, issue...)
	if kills < 5 {
		t.Errorf("ca issue was killed %d times", kills)
	}

	remember(softhsmtest.Run(t, n.Plugin, issue...))
	before := sound("before the revocations", 0).Issued
	revoke := []string{"ca", "revoke", "--ca", "root", "--serial", "", "--reason", "superseded"}
	serial := &revoke[5]
	kills = killAtEach(t, skip, func() {
		remember(softhsmtest.Run(t, n.Plugin, issue...))
		before = sound("before revoke", 0).Issued
		*serial = before[len(before)-1].Serial
	}, func(at string) {
		last := len(before) - 1
		sound("revoke killed at "+at, 0)
		softhsmtest.Run(t, n.Plugin, revoke...)
		after := sound("revoke killed at "+at+", again", 0).Issued
		if !slices.Equal(before[:last], after[:last]) || after[last].Serial != before[last].Serial ||
			after[last].Reason != "superseded" {
			t.Errorf("revoke killed at %s: %v became %v", at, before, after)
		}
	}, n.Plugin, revoke...)
	if kills < 3 {
		t.Errorf("ca revoke was killed %d times", kills)
	}
	t.Logf("%d certificates, %d of them printed", len(root.Show(t).Issued), len(printed))
}
