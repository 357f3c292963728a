package ca

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func (a testCA) remove(names ...string) {
	a.t.Helper()
	for _, name := range names {
		if err := os.Remove(a.path(name)); err != nil {
			a.t.Fatal(err)
		}
	}
}

// rebuilt recovers the CA without asking.
func (a testCA) rebuilt(published string, never bool) *Recovery {
	a.t.Helper()
	r, l, err := a.rebuild(published, never)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := a.replace(a.key, l, r.Kept); err != nil {
		a.t.Fatal(err)
	}
	a.mustRead()
	return r
}

// TestRecover loses files of a CA, one after another and together. Whatever is lost, the next list has what the last
// one had, and a greater number.
func TestRecover(t *testing.T) {
	for what, c := range map[string]struct {
		lose      func(a testCA)
		published bool   // whether the last list is given from elsewhere
		newest    bool   // whether the revocation that no list has is still known
		lost      int    // certificates of which only the serial is known
		kept      string // the old ledger
	}{
		"the ledger":        {lose: func(a testCA) { a.remove(ledgerFile) }},
		"ledger and list":   {lose: func(a testCA) { a.remove(ledgerFile, "root.crl") }, published: true},
		"certificates, too": {lose: func(a testCA) { a.remove(ledgerFile); _ = os.RemoveAll(a.path("issued")) }, lost: 1},
		"the ledger's middle": {lose: func(a testCA) { a.put(ledgerFile, cut(a.file(ledgerFile), 4)) },
			kept: ledgerFile + ".old-1"},
		"its newest record": {lose: func(a testCA) { a.put(ledgerFile, append(a.file(ledgerFile), "nonsense\n"...)) },
			newest: true, kept: ledgerFile + ".old-1"},
		"a record in the middle": {lose: func(a testCA) {
			a.put(ledgerFile, bytes.Replace(a.file(ledgerFile), []byte(`"number":2,`), []byte(`"number":7,`), 1))
		}, newest: true, kept: ledgerFile + ".old-1"},
		"a line in the middle": {lose: func(a testCA) {
			lines := bytes.SplitAfter(a.file(ledgerFile), []byte("\n"))
			lines[1] = bytes.Repeat([]byte{0}, 2*lineLimit)
			a.put(ledgerFile, bytes.Join(lines, []byte("\n")))
			_ = os.RemoveAll(a.path("issued"))
		}, newest: true, lost: 1, kept: ledgerFile + ".old-1"},
		"all certificates": {lose: func(a testCA) {
			a.put(ledgerFile, append(a.file(ledgerFile), "nonsense\n"...))
			_ = os.RemoveAll(a.path("issued"))
		}, newest: true, kept: ledgerFile + ".old-1"},
	} {
		t.Run(what, func(t *testing.T) {
			a := newTestCA(t, t.TempDir(), "root", nil)
			one, two := a.certify("one"), a.certify("two")
			a.list()
			a.revoke(one, true)
			last := a.list()
			a.revoke(two, false)
			published := ""
			if c.published {
				published = filepath.Join(t.TempDir(), "published.crl")
				if err := os.WriteFile(published, last.Raw, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			kept := a.file(filepath.Join("issued", one+".pem"))
			c.lose(a)
			a.refuses(what, "cannot trust")
			r := a.rebuilt(published, false)
			if len(r.Lost()) != c.lost || !strings.HasSuffix(r.Kept, c.kept) || !r.Newest.Equal(last.ThisUpdate) {
				t.Errorf("lost are %v, the old ledger is %q, the newest list is of %s", r.Lost(), r.Kept, r.Newest)
			}
			if c.kept != "" {
				a.file(c.kept)
			}
			next := a.list()
			if !lists(next, one) || lists(next, two) != c.newest || next.Number.Cmp(last.Number) <= 0 {
				t.Errorf("after list %s with %v came list %s with %v", last.Number, revokedSerials(last), next.Number,
					revokedSerials(next))
			}
			if e := next.RevokedCertificateEntries[0]; e.ReasonCode != reasonCodes["keyCompromise"] ||
				!e.RevocationTime.Equal(last.RevokedCertificateEntries[0].RevocationTime) {
				t.Errorf("the revocation became %+v", e)
			}
			a.certify("three")
			if c.lost > 0 { // it is brought back
				if err := os.WriteFile(a.path("issued", one+".pem"), kept, 0o600); err != nil {
					t.Fatal(err)
				}
				if r := a.rebuilt("", false); len(r.Lost()) > 0 || !lists(a.list(), one) {
					t.Errorf("lost are %v", r.Lost())
				}
			}
			if c.lost == 0 {
				for _, serial := range []string{one, two} {
					a.file(filepath.Join("issued", serial+".pem"))
				}
			}
		})
	}
}

// cut leaves a number of lines out of the end of a ledger.
func cut(ledger []byte, lines int) []byte {
	all := strings.SplitAfter(string(ledger), "\n")
	return []byte(strings.Join(all[:len(all)-1-lines], ""))
}

// TestRecoverRefuses what would make a CA forget, or take what is not its own.
func TestRecoverRefuses(t *testing.T) {
	folder := t.TempDir()
	a, b := newTestCA(t, folder, "a", nil), newTestCA(t, folder, "b", nil)
	one := a.certify("one")
	foreign := filepath.Join(t.TempDir(), "b.crl")
	if err := os.WriteFile(foreign, b.list().Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	refuses := func(what, published string, never bool, reason string) {
		t.Helper()
		_, _, err := a.rebuild(published, never)
		if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v, wanted %q", what, err, reason)
		}
	}
	refuses("nothing is lost", "", false, "there is nothing to recover")
	good := a.file(ledgerFile)
	a.remove(ledgerFile)
	refuses("no list", "", false, "has no CRL to recover")
	refuses("another CA's list", foreign, false, "cannot use the CRL")
	refuses("no file", foreign+"none", false, "cannot use the CRL")
	if err := os.Rename(a.path("issued", one+".pem"), a.path("issued", "01.pem")); err != nil {
		t.Fatal(err)
	}
	refuses("a certificate by another name", "", true, "is not the certificate 01")
	a.remove("issued/01.pem")
	a.put("a.crl", []byte("no list"))
	refuses("a damaged list", "", true, "cannot use the CRL")
	a.put(ledgerFile, good)
	if _, err := a.read(); err == nil || !strings.Contains(err.Error(), "cannot read the last CRL") {
		t.Errorf("a damaged list: %v", err)
	}
	a.remove("a.crl")
	a.mustRead()
}

// TestRestoredFolder restores the whole folder from before a revocation. The list that is to be replaced tells.
func TestRestoredFolder(t *testing.T) {
	a := newTestCA(t, t.TempDir(), "root", nil)
	one := a.certify("one")
	a.list()
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(a.dir)); err != nil {
		t.Fatal(err)
	}
	a.revoke(one, true)
	published := filepath.Join(t.TempDir(), "root.crl")
	if err := os.WriteFile(published, a.list().Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	a.dir = old
	a.mustRead() // the folder alone cannot tell
	_, _, err := a.CRL(t.Context(), nil, "7d", published)
	if err == nil || !strings.Contains(err.Error(), "is an older copy") ||
		!strings.Contains(failure.From(err).Hint, "--crl "+published) {
		t.Fatalf("a list was signed from an old folder: %v", err)
	}
	r, l, err := a.rebuild(published, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.replace(a.key, l, r.Kept); err != nil {
		t.Fatal(err)
	}
	if list := a.list(); !lists(list, one) || list.Number.Int64() <= 2 {
		t.Errorf("list %s has %v", list.Number, revokedSerials(list))
	}
}

// TestRecoverNever recovers a CA that never signed a list: the number of the first is greater than any that there could
// have been.
func TestRecoverNever(t *testing.T) {
	a := newTestCA(t, t.TempDir(), "root", nil)
	a.certify("one")
	a.remove(ledgerFile)
	a.rebuilt("", true)
	if list := a.list(); list.Number.Int64() < a.Created.Unix() {
		t.Errorf("it is list %s", list.Number)
	}
}

// earlier makes the CA's files those of an earlier version, with the list number that crlnumber has, if any.
func (a testCA) earlier(number string) {
	a.t.Helper()
	data, err := json.Marshal(a.mustRead().entries)
	if err != nil {
		a.t.Fatal(err)
	}
	a.put(indexFile, data)
	if number != "" {
		a.put(numberFile, []byte(number+"\n"))
	}
	a.remove(ledgerFile)
	a.Ledger = 0
	if err := a.save(); err != nil {
		a.t.Fatal(err)
	}
}

// TestMove takes a CA of an earlier version over, when its key is used, and not before. From then on it cannot be
// without its ledger.
func TestMove(t *testing.T) {
	a := newTestCA(t, t.TempDir(), "root", nil)
	one, two := a.certify("one"), a.certify("two")
	a.revoke(one, true)
	a.list()
	a.earlier("7")
	l := a.mustRead()
	if len(l.entries) != 2 || l.entries[0].Serial != one || l.entries[0].Revoked == nil || l.entries[1].Serial != two {
		t.Errorf("the index has become %v", l.entries)
	}
	if _, err := os.Stat(a.path(ledgerFile)); err == nil {
		t.Error("reading made a ledger")
	}
	if s, err := a.Show(); err != nil || s.Head != "" || s.Revoked != 1 {
		t.Errorf("it is shown as %+v, %v", s, err)
	}
	list := a.list()
	if !lists(list, one) || list.Number.Int64() != 8 || !a.Moved {
		t.Errorf("list %s has %v", list.Number, revokedSerials(list))
	}
	if index := string(a.file(indexFile)); index != retired {
		t.Errorf("the index is %s", index)
	}
	if _, err := os.Stat(a.path(numberFile)); err == nil {
		t.Error("the number is still there")
	}
	var kept Authority
	if err := json.Unmarshal(a.file(description), &kept); err != nil || kept.Ledger != ledgerVersion {
		t.Errorf("ca.json has %+v, %v", kept, err)
	}

	// A command that is killed after it wrote the ledger leaves ca.json and the index as they were. The next one ends it.
	a.put(numberFile, []byte("8\n"))
	a.put(indexFile, []byte("[]"))
	a.Ledger = 0
	if list := a.list(); !lists(list, one) || list.Number.Int64() != 9 || string(a.file(indexFile)) != retired {
		t.Errorf("list %s has %v", list.Number, revokedSerials(list))
	}
	a.remove(ledgerFile)
	a.refuses("no ledger", "the file is missing")
	a.Ledger = 0 // nor does it help to take the note out of ca.json
	a.refuses("no note", "index.json")
}

// TestMoveRefuses a CA of an earlier version that has lost a file, or has an older one.
func TestMoveRefuses(t *testing.T) {
	for what, c := range map[string]struct {
		lose   func(a testCA)
		reason string
	}{
		"no index":       {func(a testCA) { a.remove(indexFile) }, "it is missing, or older"},
		"an older index": {func(a testCA) { a.put(indexFile, []byte("[]")) }, "it is missing, or older"},
		"an unknown field": {func(a testCA) {
			a.put(indexFile, []byte(strings.Replace(string(a.file(indexFile)), `"revoked"`, `"x"`, 1)))
		}, "unknown field"},
		"an index without a revocation": {func(a testCA) {
			entries, err := a.index()
			if err != nil {
				t.Fatal(err)
			}
			entries[0].Revoked = nil
			data, err := json.Marshal(entries)
			if err != nil {
				t.Fatal(err)
			}
			a.put(indexFile, data)
		}, "and the ledger does not"},
		"a damaged index": {func(a testCA) { a.put(indexFile, []byte("[{")) }, "unexpected EOF"},
		"a serial twice":  {func(a testCA) { a.put(indexFile, twice(a.file(indexFile))) }, "was issued twice"},
		"a path for serial": {func(a testCA) {
			a.put(indexFile, []byte(`[{"serial":"../../x"}]`))
		}, "is not a serial number"},
	} {
		a := newTestCA(t, t.TempDir(), "root", nil)
		one := a.certify("one")
		a.certify("two")
		a.certify("three")
		a.revoke(one, true)
		a.list()
		a.earlier("1")
		c.lose(a)
		if _, err := a.read(); !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %v, wanted %q", what, err, c.reason)
		}
	}
	a := newTestCA(t, t.TempDir(), "root", nil)
	one := a.certify("one")
	a.earlier("")
	a.revoke(one, true) // moves it
	if list := a.list(); list.Number.Int64() < a.Created.Unix() {
		t.Errorf("the number was lost, and the next list has %s", list.Number)
	}
}

// TestRecoverIndex recovers a CA of an earlier version whose index was cut short, and one that has lost it: the
// revocation that no list has yet is kept, or else the loss is not passed over.
func TestRecoverIndex(t *testing.T) {
	a := newTestCA(t, t.TempDir(), "root", nil)
	one := a.certify("one")
	a.certify("two")
	a.revoke(one, true)
	a.earlier("1")
	a.put(indexFile, a.file(indexFile)[:len(a.file(indexFile))-2])
	a.refuses("an index that was cut short", "unexpected EOF")
	a.rebuilt("", true)
	if list := a.list(); !lists(list, one) {
		t.Errorf("the list has %v", revokedSerials(list))
	}

	b := newTestCA(t, t.TempDir(), "root", nil)
	one = b.certify("one")
	b.revoke(one, true)
	b.earlier("1")
	b.remove(indexFile)
	b.refuses("no index", "it is missing, or older")
}

func twice(index []byte) []byte {
	entries := strings.TrimSuffix(strings.TrimPrefix(string(index), "["), "]")
	return []byte("[" + entries + "," + entries + "]")
}

// TestNameInDescription refuses a ca.json with another name than the folder's: by the name the last list is found, and
// the next one is written.
func TestNameInDescription(t *testing.T) {
	folder := t.TempDir()
	a := newTestCA(t, folder, "root", nil)
	a.list()
	if _, err := Open(nil, folder, "root"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"other", "../../elsewhere", ""} {
		a.put(description, []byte(`{"name":"`+name+`","key":"a","ledger":1}`))
		if _, err := Open(nil, folder, "root"); !failure.Is(err, failure.Invalid) ||
			!strings.Contains(err.Error(), "it describes the CA") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestRecoverForeign takes nothing in of another CA's ledger.
func TestRecoverForeign(t *testing.T) {
	folder := t.TempDir()
	a, b := newTestCA(t, folder, "a", nil), newTestCA(t, folder, "b", nil)
	a.certify("one")
	a.list()
	b.revoke(b.certify("two"), true)
	a.put(ledgerFile, b.file(ledgerFile))
	if r := a.rebuilt("", false); len(r.Entries) != 1 {
		t.Errorf("it has %+v", r.Entries)
	}
}
