package custody

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// A ledgerCase is a CA with a history, in a folder that tests do harm to: one was issued and revoked, list 2 says so,
// two was issued after.
type ledgerCase struct {
	softhsmtest.Authority
	csr       string
	folder    string // of all CAs, and of the one
	published string // where its last list is
	old       []byte // the ledger of before the revocation
	oldFolder string // the folder of then
	one       string // serial
	last      *big.Int
}

// newLedgerCase makes the CA on a token, with a key of a spec.
func newLedgerCase(t *testing.T, n *softhsmtest.Notation, spec string) *ledgerCase {
	t.Helper()
	c := &ledgerCase{Authority: softhsmtest.Authority{Program: n.Plugin, Name: "ca-" + spec, WWW: t.TempDir()},
		folder: t.TempDir()}
	softhsmtest.Setenv(t, "NOTATION_HSM_CA_DIR", c.folder)
	c.Init(t, "vault", spec, "--days", "90")
	c.csr = filepath.Join(t.TempDir(), "release.csr")
	uri := softhsmtest.NewCAKey(t, n.Plugin, "vault", "EC-256", "release-"+spec)
	softhsmtest.Write(t, c.csr, softhsmtest.Run(t, n.Plugin, "cert", "csr", uri, "--subject",
		"CN=release,O=Example,C=CH,ST=Zurich"))
	c.published = filepath.Join(c.WWW, c.Name+".crl")
	c.one = serialOf(parseChain(t, softhsmtest.Run(t, n.Plugin, c.issue()...))[0])
	c.Publish(t, "7d")
	c.old = c.read(t, "ledger.jsonl")
	c.oldFolder = t.TempDir()
	if err := os.CopyFS(c.oldFolder, os.DirFS(c.folder)); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Run(t, n.Plugin, "ca", "revoke", "--ca", c.Name, "--serial", c.one, "--reason", "keyCompromise")
	c.Publish(t, "7d")
	c.last = readCRL(t, c.published).Number
	softhsmtest.Run(t, n.Plugin, c.issue()...)
	return c
}

func (c *ledgerCase) issue() []string {
	return []string{"ca", "issue", "--ca", c.Name, "--csr", c.csr, "--days", "30", "--yes"}
}

func (c *ledgerCase) path(name string) string { return filepath.Join(c.folder, c.Name, name) }

func (c *ledgerCase) read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(c.path(name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (c *ledgerCase) remove(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.RemoveAll(c.path(name)); err != nil {
			t.Fatal(err)
		}
	}
}

// in moves the case to a copy of a folder.
func (c ledgerCase) in(t *testing.T, folder string) *ledgerCase {
	t.Helper()
	c.folder = t.TempDir()
	if err := os.CopyFS(c.folder, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_CA_DIR", c.folder)
	return &c
}

func readCRL(t testing.TB, path string) *x509.RevocationList {
	t.Helper()
	der, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// keeps verifies that the next list has what the last one had, and a greater number. It returns that number.
func (c *ledgerCase) keeps(t testing.TB, when string) *big.Int {
	t.Helper()
	out := filepath.Join(t.TempDir(), "next.crl")
	softhsmtest.Run(t, c.Program, "ca", "crl", "--ca", c.Name, "--out", out)
	next := readCRL(t, out)
	listed := slices.ContainsFunc(next.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return hex.EncodeToString(e.SerialNumber.Bytes()) == c.one && e.ReasonCode == 1
	})
	if !listed || next.Number.Cmp(c.last) <= 0 {
		t.Errorf("%s: list %s has %d revoked; the last one was %s", when, next.Number, len(next.RevokedCertificateEntries),
			c.last)
	}
	return next.Number
}

// TestCALostOrChanged loses, rolls back and edits a CA's files. No list and no certificate comes of it before they are
// mended, by what the error names; and no list ever drops what the last one had.
func TestCALostOrChanged(t *testing.T) {
	softhsmtest.Parallel(t)
	n := softhsmtest.NewNotation(t, softhsmtest.NewToken(t, "vault"))
	ec, rsa := newLedgerCase(t, n, "EC-384"), newLedgerCase(t, n, "RSA-2048")
	lines := func(c *ledgerCase) [][]byte { return bytes.SplitAfter(c.read(t, "ledger.jsonl"), []byte("\n")) }
	for what, attack := range map[string]struct {
		do     func(c *ledgerCase)
		reason string
		given  bool // whether the published list is needed
	}{
		"no ledger": {do: func(c *ledgerCase) { c.remove(t, "ledger.jsonl") }, reason: "the file is missing"},
		"no ledger, no list": {do: func(c *ledgerCase) { c.remove(t, "ledger.jsonl", c.Name+".crl") },
			reason: "the file is missing", given: true},
		"no ledger, nor mark": {do: func(c *ledgerCase) { c.remove(t, "ledger.jsonl"); c.unmark(t) },
			reason: "cannot trust the record of the CA"},
		"a rolled back ledger": {do: func(c *ledgerCase) { softhsmtest.Write(t, c.path("ledger.jsonl"), string(c.old)) },
			reason: "is older than"},
		"an edited record": {do: func(c *ledgerCase) {
			softhsmtest.Write(t, c.path("ledger.jsonl"), strings.Replace(string(c.read(t, "ledger.jsonl")), "keyCompromise",
				"superseded", 1))
		}, reason: "a record was changed, removed or moved"},
		"a record left out": {do: func(c *ledgerCase) {
			softhsmtest.Write(t, c.path("ledger.jsonl"), string(bytes.Join(slices.Delete(lines(c), 3, 4), nil)))
		}, reason: "its number is"},
		"another order": {do: func(c *ledgerCase) {
			l := lines(c)
			l[2], l[3] = l[3], l[2]
			softhsmtest.Write(t, c.path("ledger.jsonl"), string(bytes.Join(l, nil)))
		}, reason: "its number is"},
		"cut short": {do: func(c *ledgerCase) {
			softhsmtest.Write(t, c.path("ledger.jsonl"), string(bytes.Join(lines(c)[:2], nil)))
		}, reason: "is older than"},
		"another CA's": {do: func(c *ledgerCase) {
			other := map[string]*ledgerCase{ec.Name: rsa, rsa.Name: ec}[c.Name]
			softhsmtest.Write(t, c.path("ledger.jsonl"), string(other.read(t, "ledger.jsonl")))
		}, reason: "the ledger is another CA's"},
	} {
		for _, original := range []*ledgerCase{ec, rsa} {
			c := original.in(t, original.folder)
			attack.do(c)
			for _, command := range [][]string{{"ca", "crl", "--ca", c.Name}, c.issue(),
				{"ca", "revoke", "--ca", c.Name, "--serial", c.one, "--reason", "superseded"}} {
				stdout, stderr, err := softhsmtest.Try(t, "", c.Program, command...)
				if err == nil || stdout != "" || !strings.Contains(stderr, attack.reason) ||
					!strings.Contains(stderr, "notation-hsm ca recover --ca "+c.Name) {
					t.Errorf("%s, %s: %v: %s%s", what, command[1], err, stdout, stderr)
				}
			}
			mend := []string{"ca", "recover", "--ca", c.Name, "--yes"}
			if attack.given {
				if _, stderr, err := softhsmtest.Try(t, "", c.Program, mend...); err == nil ||
					!strings.Contains(stderr, "has no CRL to recover") {
					t.Errorf("%s: %v: %s", what, err, stderr)
				}
				mend = append(mend, "--crl", c.published)
			}
			if _, stderr, err := softhsmtest.Try(t, "", c.Program, mend...); err != nil ||
				!strings.Contains(stderr, "unknown: revocations since 20") {
				t.Errorf("%s: %v: %s", what, err, stderr)
				continue
			}
			c.keeps(t, what)
			if got := len(c.Show(t).Issued); got != 2 {
				t.Errorf("%s: the CA has %d certificates", what, got)
			}
			softhsmtest.Run(t, c.Program, c.issue()...)
		}
	}

	// A folder that is older as a whole agrees with itself; the list that it is to replace tells.
	c := ec.in(t, ec.oldFolder)
	_, stderr, err := softhsmtest.Try(t, "", c.Program, "ca", "crl", "--ca", c.Name, "--out", c.published)
	if err == nil || !strings.Contains(stderr, "is an older copy: it is older than the CRL "+c.published) ||
		!strings.Contains(stderr, "ca recover --ca "+c.Name+" --crl "+c.published) {
		t.Errorf("an older folder: %v: %s", err, stderr)
	}
	softhsmtest.Run(t, c.Program, "ca", "recover", "--ca", c.Name, "--crl", c.published, "--yes")
	c.keeps(t, "an older folder")

	// Lost certificates come back from the ledger.
	c = ec.in(t, ec.folder)
	c.remove(t, "issued")
	c.keeps(t, "no certificates")
	c.read(t, filepath.Join("issued", c.one+".pem"))

	// A revocation that could not be signed is noted, and one that nobody signed is all that can be added without the key.
	c = ec.in(t, ec.folder)
	second := c.Show(t).Issued[1].Serial
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", "")
	_, stderr, err = softhsmtest.Try(t, "", c.Program, "ca", "revoke", "--ca", c.Name, "--serial", second, "--reason",
		"superseded")
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", softhsmtest.PIN)
	if err != nil || !strings.Contains(stderr, "warning: the CA's key did not sign the revocation") {
		t.Errorf("%v: %s", err, stderr)
	}
	if shown := softhsmtest.Run(t, c.Program, "ca", "show", c.Name); !strings.Contains(shown,
		"the last 1 not signed yet") {
		t.Error(shown)
	}
	c.keeps(t, "an unsigned revocation")
	if shown := softhsmtest.Run(t, c.Program, "ca", "show", c.Name); strings.Contains(shown, "not signed yet") ||
		len(readCRL(t, c.path(c.Name+".crl")).RevokedCertificateEntries) != 2 {
		t.Error(shown)
	}
}

// unmark takes the note out of ca.json that the CA has a ledger.
func (c *ledgerCase) unmark(t testing.TB) {
	t.Helper()
	var description map[string]any
	if err := json.Unmarshal(c.read(t, "ca.json"), &description); err != nil {
		t.Fatal(err)
	}
	delete(description, "ledger")
	data, err := json.Marshal(description)
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, c.path("ca.json"), string(data))
}

// earlier makes the CA's folder that of an earlier version.
func (c *ledgerCase) earlier(t testing.TB) {
	t.Helper()
	var shown struct {
		Issued    json.RawMessage
		CRLNumber string
	}
	if err := json.Unmarshal([]byte(softhsmtest.Run(t, c.Program, "ca", "show", "--json", c.Name)), &shown); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, c.path("index.json"), string(shown.Issued))
	softhsmtest.Write(t, c.path("crlnumber"), shown.CRLNumber+"\n")
	c.remove(t, "ledger.jsonl")
	c.unmark(t)
}

// TestCAKilledList kills 'ca crl', 'ca recover', and the first 'ca crl' of a CA of an earlier version at each write.
// Run again, each ends right, no list number comes twice, and no revocation is lost.
func TestCAKilledList(t *testing.T) {
	softhsmtest.Parallel(t)
	n := softhsmtest.NewNotation(t, softhsmtest.NewToken(t, "vault"))
	original := newLedgerCase(t, n, "EC-256")
	const skip = "token.object" // see TestCAKilled
	crl := []string{"ca", "crl", "--ca", original.Name}
	recovery := []string{"ca", "recover", "--ca", original.Name, "--yes"}
	for what, run := range map[string]struct {
		prepare func(c *ledgerCase)
		command []string
		least   int // kills
	}{
		"crl":     {func(*ledgerCase) {}, crl, 8},
		"recover": {func(c *ledgerCase) { softhsmtest.Write(t, c.path("ledger.jsonl"), string(c.old)) }, recovery, 5},
		"move":    {func(c *ledgerCase) { c.earlier(t) }, crl, 15},
	} {
		var c *ledgerCase
		kills := killAtEach(t, skip, func() {
			c = original.in(t, original.folder)
			run.prepare(c)
		}, func(at string) {
			at = what + " killed at " + at
			if list := readCRL(t, c.path(c.Name+".crl")); list.Number.Cmp(c.last) > 0 {
				c.last = list.Number
			}
			// A recovery that was killed at its very end has nothing left to do, and says so.
			if _, stderr, err := softhsmtest.Try(t, "", c.Program, run.command...); err != nil &&
				!strings.Contains(stderr, "there is nothing to recover") {
				t.Errorf("%s, again: %v: %s", at, err, stderr)
			}
			if shown := softhsmtest.Run(t, c.Program, "ca", "show", c.Name); !strings.Contains(shown, ", signed\n") {
				t.Errorf("%s: %s", at, shown)
			}
			c.last = c.keeps(t, at)
			c.keeps(t, at+", once more")
		}, n.Plugin, run.command...)
		if kills < run.least {
			t.Errorf("%s was killed %d times", what, kills)
		}
		t.Logf("%s was killed %d times", what, kills)
	}
}

// TestCACalls verifies that issuing takes the module two signatures and one login, the certificate's and the ledger's,
// and no more as the CA has issued more.
func TestCACalls(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "vault")
	c := newLedgerCase(t, softhsmtest.NewNotation(t, token), "EC-256")
	log := filepath.Join(t.TempDir(), "calls")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	var first []string
	for range 3 {
		_ = os.Remove(log)
		softhsmtest.Run(t, c.Program, c.issue()...)
		calls := softhsmtest.Calls(t, log)
		if softhsmtest.Count(calls, "C_Sign") != 2 || softhsmtest.Count(calls, "C_Login") != 1 || softhsmtest.Count(calls,
			"C_OpenSession") != 1 {
			t.Errorf("the calls are %v", calls)
		}
		if first == nil {
			first = calls
		}
		if len(calls) != len(first) {
			t.Errorf("%d calls became %d", len(first), len(calls))
		}
	}
	t.Logf("%d calls: %v", len(first), first)
}
