package browser

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// Finding is a barrier for people that axe finds in a page.
type Finding struct {
	Rule   string   `json:"id"`
	Impact string   `json:"impact"`
	Help   string   `json:"help"`
	Nodes  []string `json:"nodes"` // HTML
}

// String returns the finding as a line with a line for each node.
func (f Finding) String() string {
	return fmt.Sprintf("%s (%s): %s\n\t%s", f.Rule, f.Impact, f.Help, strings.Join(f.Nodes, "\n\t"))
}

// Axe returns what axe finds in the page as it is seen now. The script runs beside those of the page, so that the page
// and its Content-Security-Policy stay as they are.
func (p *Page) Axe() []Finding {
	p.t.Helper()
	script, err := os.ReadFile(filepath.Join(softhsmtest.Root(), "bin", "tools", "axe", "node_modules", "axe-core",
		"axe.min.js"))
	if err != nil {
		softhsmtest.Missing(p.t, "axe")
	}
	return Evaluate[[]Finding](p, string(script)+`;
axe.run(document, {resultTypes: ["violations"]}).then(results => results.violations.map(violation => ({
	id: violation.id, impact: violation.impact || "", help: violation.help,
	nodes: violation.nodes.map(node => node.html),
})))`)
}
