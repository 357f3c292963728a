package report

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
)

// story is a log with a line of each kind.
func story(t *testing.T) *madeLog {
	t.Helper()
	l := newLog(t)
	for _, person := range []string{"id-alice", "id-bob"} {
		l.add(entry.Event{Type: entry.Enrolled, Approver: person, Credential: hash(person, 0), Kind: "ssh"})
	}
	l.signs(1, "release", "", "id-alice", "id-bob")
	l.signs(2, "nightly", "")
	l.signs(3, "emergency", `=HYPERLINK("https://evil.example.com","<script>alert(1)</script>")`, "id-bob")
	l.add(entry.Event{Type: entry.Blocked, Key: "release", Request: "request-9"})
	l.add(entry.Event{Type: entry.Removed, Request: "request-8", Credential: hash("id-bob", 0)})
	l.add(entry.Event{Type: entry.Invited, Approver: "id-carol", Caller: "caller"})
	l.add(entry.Event{Type: entry.Unblocked, Key: "release", Request: "request-7"})
	l.add(entry.Event{Type: entry.PolicySet, Policy: hash("policy", 1), Request: "request-6"})
	l.add(entry.Event{Type: entry.ConfigSet, Config: hash("config", 1), Request: "request-5"})
	l.add(entry.Event{Type: entry.Intended, Key: "release", Request: "request-4", Payload: hash("payload", 4),
		Digest: hash("image", 4), Rule: "nightly"})
	l.add(entry.Event{Type: entry.Lost, Key: "release", Request: "request-4", Payload: hash("payload", 4),
		Reason: "timeout"})
	l.add(entry.Event{Type: entry.Voided, Index: int64(len(l.entries) - 1)})
	l.add(entry.Event{Type: entry.EpochBegun, Epoch: 2, Request: "request-3"})
	return l
}

// TestGolden compares reports with those in testdata. With UPDATE_DOCS=1 it writes them.
func TestGolden(t *testing.T) {
	t.Parallel()
	full := story(t).report()
	full.About.Names = map[string]string{"id-alice": "alice", "id-bob": "-bob"}
	full.Tell = func(request string) *Told {
		if request != "request-000001" {
			return nil
		}
		return &Told{Issuer: "https://ci.example.com", Subject: "@app", MediaType: "application/vnd.oci.image.index.v1+json"}
	}
	log := newLog(t)
	empty, err := New(t.Context(), log.source().File, log.verifiers(), Options{From: begin.AddDate(1, 0, 0),
		To: begin.AddDate(1, 1, 0)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(empty.Close)
	for name, write := range map[string]func(io.Writer) error{"report.html": full.WriteHTML, "report.csv": full.WriteCSV,
		"report.json": full.WriteJSON, "empty.html": empty.WriteHTML, "empty.csv": empty.WriteCSV,
		"empty.json": empty.WriteJSON} {
		var out bytes.Buffer
		if err := write(&out); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name)
		if os.Getenv("UPDATE_DOCS") != "" {
			if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(want, out.Bytes()) {
			t.Errorf("%s differs: run UPDATE_DOCS=1 go test ./internal/report/: %v", name, err)
		}
		if !strings.HasSuffix(name, ".json") {
			continue
		}
		if _, err := Verify(bytes.NewReader(out.Bytes()), log.verifiers()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSafe checks that no cell is a formula, that a page has no markup of others, and nothing from elsewhere.
func TestSafe(t *testing.T) {
	t.Parallel()
	r := story(t).report()
	r.About.Names = map[string]string{"id-alice": "=1+1", "id-bob": "<img src=x onerror=alert(1)>"}
	r.Tell = func(string) *Told { return &Told{Subject: "\t=1", Issuer: "+1", MediaType: "@SUM(1)"} }
	var text, page bytes.Buffer
	if err := r.WriteCSV(&text); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&text).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2+15 {
		t.Errorf("%d rows", len(rows))
	}
	for _, row := range rows {
		for _, cell := range row {
			if cell != "" && strings.ContainsAny(cell[:1], "=+-@\t\r") {
				t.Errorf("the cell %q is a formula", cell)
			}
		}
	}
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"<script", "<img", "<link", "url(", "http-equiv=\"refresh"} {
		if strings.Contains(page.String(), part) {
			t.Errorf("the page has %s", part)
		}
	}
}

// TestStanding lists approvals that stood when a key signed, and no other.
func TestStanding(t *testing.T) {
	t.Parallel()
	approve := func(l *madeLog, person string, n int) {
		l.add(entry.Event{Type: entry.Approved, Request: "r", Key: "release", Approver: person, Credential: hash(person, n),
			Statement: "s"})
	}
	for name, c := range map[string]struct {
		meanwhile func(*madeLog)
		want      []string
	}{
		"all": {func(*madeLog) {}, []string{"alice", "bob"}},
		"withdrawn": {func(l *madeLog) {
			l.add(entry.Event{Type: entry.Withdrawn, Request: "r", Approver: "bob"})
		}, []string{"alice"}},
		"given again": {func(l *madeLog) {
			l.add(entry.Event{Type: entry.Withdrawn, Request: "r", Approver: "alice"})
			approve(l, "alice", 1)
		}, []string{"bob", "alice"}},
		"removed": {func(l *madeLog) {
			l.add(entry.Event{Type: entry.Removed, Request: "x", Credential: hash("alice", 0)})
		}, []string{"bob"}},
		"void":     {func(l *madeLog) { l.add(entry.Event{Type: entry.Voided, Index: 3}) }, []string{"alice"}},
		"all void": {func(l *madeLog) { l.add(entry.Event{Type: entry.Voided, Index: 1}) }, nil},
		"other statement": {func(l *madeLog) {
			l.add(entry.Event{Type: entry.Approved, Request: "r", Approver: "carol", Statement: "t"})
		}, []string{"alice", "bob"}},
	} {
		l := newLog(t)
		l.add(entry.Event{Type: entry.Requested, Request: "r", Key: "release", Statement: "s",
			NotAfter: l.now.Add(time.Hour).Unix()})
		approve(l, "alice", 0)
		approve(l, "bob", 0)
		c.meanwhile(l)
		l.add(entry.Event{Type: entry.Intended, Request: "r", Key: "release", Payload: "p", Statement: "s"})
		approve(l, "late", 0)
		l.add(entry.Event{Type: entry.Signed, Request: "r", Key: "release", Payload: "p", Signature: "x"})
		r := l.report()
		var people []string
		for line, err := range r.Of(Group{Key: "release"}) {
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range line.Approvals {
				people = append(people, a.Approver)
			}
			if (line.Exception == Missing) != (c.want == nil) {
				t.Errorf("%s: exception %q", name, line.Exception)
			}
		}
		if !slices.Equal(people, c.want) {
			t.Errorf("%s: %q", name, people)
		}
	}
}

// TestPeriod has the first moment of a period in it, and the one after the last not.
func TestPeriod(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	for n := range 5 {
		l.signs(n, "nightly", "") // at seconds 2, 4, 6, 8 and 10
	}
	r, err := New(t.Context(), l.source().File, l.verifiers(), Options{From: begin.Add(4 * time.Second),
		To: begin.Add(8 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	if r.About.Signatures != 2 || r.About.Last != "2026-01-01T00:00:10.000Z" || r.Oldest() != "request-000001" {
		t.Errorf("%+v", r.About)
	}
	if _, err := New(t.Context(), l.source().File, l.verifiers(), Options{From: begin, To: begin}); err == nil {
		t.Error("a period that ends where it begins")
	}
}

// TestBounded remembers no more for a longer log.
func TestBounded(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	for n := range 20_000 {
		l.signs(n, "release", "", "id-alice", "id-bob")
	}
	c := newCollector(begin, l.now)
	most := 0
	for i, raw := range l.entries {
		e, err := entry.Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.add(evidence{int64(i), raw, e}); err != nil {
			t.Fatal(err)
		}
		most = max(most, len(c.requests)+len(c.intents))
	}
	if limit := 2*3600/5 + sweepEvery/5 + 2; most > limit { // entries a second apart, five of a request
		t.Errorf("%d requests were remembered, more than %d", most, limit)
	}
}

// BenchmarkReport makes a report of a log of a busy broker, and writes it.
func BenchmarkReport(b *testing.B) {
	for _, entries := range []int{10_000, 100_000} {
		l := newLog(b)
		for n := 0; len(l.entries) < entries; n++ {
			l.signs(n, "release", "", "id-alice", "id-bob")
		}
		for name, write := range map[string]func(*Report, io.Writer) error{"html": (*Report).WriteHTML,
			"csv": (*Report).WriteCSV, "json": (*Report).WriteJSON} {
			b.Run(fmt.Sprint(name, "/", entries), func(b *testing.B) {
				source, verifiers := l.source(), l.verifiers()
				for b.Loop() {
					r, err := New(b.Context(), source.File, verifiers, Options{From: begin, To: l.now})
					if err == nil {
						err = write(r, io.Discard)
					}
					if err != nil {
						b.Fatal(err)
					}
					r.Close()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(entries), "ns/entry")
			})
		}
	}
}
