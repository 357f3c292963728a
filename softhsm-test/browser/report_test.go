package browser

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestReport looks at the page of a report for auditors: it has no barriers for people, and needs nothing from
// elsewhere.
func TestReport(t *testing.T) {
	t.Parallel()
	page := filepath.Join(softhsmtest.Root(), "internal", "report", "testdata", "report.html")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, page)
	}))
	t.Cleanup(server.Close)
	p := Start(t).Person(t)
	for _, look := range Looks {
		p.Look(look)
		if status := p.Open(server.URL); status != http.StatusOK {
			t.Fatalf("the status is %d", status)
		}
		for _, finding := range p.Axe() {
			t.Errorf("%s: %v", look.Name, finding)
		}
		if wide := Evaluate[int](p, "document.documentElement.scrollWidth - innerWidth"); wide > 0 {
			t.Errorf("%s: the page is wider than the window by %d pixels", look.Name, wide)
		}
	}
	if others := p.Elsewhere(server.URL); len(others) > 0 {
		t.Errorf("the page asks for %q", others)
	}
}
