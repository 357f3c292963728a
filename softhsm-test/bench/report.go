package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A row of the table.
type row struct {
	name, ours, tool, bare, other, times, goal string
}

var contenderNames = []string{"notation-hsm", "pkcs11-tool", "bare C"}

func (b *bench) add(r row) { b.rows = append(b.rows, r) }

// contenders fills in the three columns that most rows have.
func (r row) contenders(cell func(int) string) row {
	r.ours, r.tool, r.bare = cell(0), cell(1), cell(2)
	return r
}

// A limit says whether a ratio is good enough, and the goal in words.
type limit func(ratio float64) (bool, string)

func atMost(most float64) limit {
	return func(ratio float64) (bool, string) { return ratio <= most, fmt.Sprintf("at most %.1f", most) }
}

// within is atMost for a ratio of two decimals.
func within(most float64) limit {
	return func(ratio float64) (bool, string) { return ratio <= most, fmt.Sprintf("at most %.2f", most) }
}

func atLeast(least float64) limit {
	return func(ratio float64) (bool, string) { return ratio >= least, fmt.Sprintf("at least %.2f", least) }
}

func (r row) ratio(ratio float64, to string, l limit) row {
	r.times = fmt.Sprintf("%.2f of %s", ratio, to)
	if l != nil {
		met, words := l(ratio)
		r.goal = goal(met, words)
	}
	return r
}

func goal(met bool, words string) string {
	if met {
		return words + ": met"
	}
	return words + ": **not met**"
}

func times(name string, r []measured, l limit) row {
	return row{name: name}.contenders(func(i int) string { return spread(r[i].milliseconds) }).
		ratio(r[0].milliseconds.ratio(r[1].milliseconds), "pkcs11-tool", l)
}

// spread is the median, and between what the middle half of the figures lies.
func spread(f figures) string {
	digits := 2
	if f.median() >= 20 {
		digits = 1
	}
	if f.median() >= 1000 {
		digits = 0
	}
	return fmt.Sprintf("%.*f (%.*f to %.*f)", digits, f.median(), digits, f.quantile(0.25), digits, f.quantile(0.75))
}

func table(rows []row) string {
	cells := [][]string{{"", "notation-hsm", "pkcs11-tool", "bare C", "others", "ratio", "goal"}, nil}
	for _, r := range rows {
		cells = append(cells, []string{r.name, r.ours, r.tool, r.bare, r.other, r.times, r.goal})
	}
	width := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, cell := range line {
			width[i] = max(width[i], len(cell))
		}
	}
	for i := range width {
		cells[1] = append(cells[1], strings.Repeat("-", width[i]))
	}
	var out strings.Builder
	for _, line := range cells {
		for i, cell := range line {
			fmt.Fprintf(&out, "| %-*s ", width[i], cell)
		}
		out.WriteString("|\n")
	}
	return out.String()
}

// A plot is what tools/plot draws.
type plot struct {
	Title, X, Y string
	Series      []series
}

type series struct {
	Name   string
	Points [][2]float64
}

// updateDocs writes the table and the plot to docs/.
func (b *bench) updateDocs(p plot) {
	f := fixture{bench: b}
	page := filepath.Join(repository(f), "docs", "performance.md")
	const begin, end = "<!-- the table is written by: UPDATE_DOCS=1 make bench -->\n", "<!-- end -->"
	text, err := os.ReadFile(page)
	if err != nil {
		panic(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		panic(fmt.Errorf("%s has no place for the table", page))
	}
	write(f, page, before+begin+table(b.rows)+end+after)
	data, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	cmd := exec.CommandContext(b.ctx, "go", "run", "-C", filepath.Join(repository(f), "tools"), "./plot")
	cmd.Stdin, cmd.Stderr, cmd.Env = bytes.NewReader(data), os.Stderr, append(os.Environ(), "GOWORK=off")
	svg, err := cmd.Output()
	if err != nil {
		panic(fmt.Errorf("drawing the plot: %w", err))
	}
	write(f, strings.TrimSuffix(page, ".md")+".svg", string(svg))
}
