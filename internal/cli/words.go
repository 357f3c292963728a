package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// The rules of what people read: results go to standard output, everything else to standard error. A failure is a line
// "error:" and, where something can be done, a line "hint:". Lists are tables; --json gives the same to programs.

// FormatError returns the lines that tell people of a failure.
func FormatError(err error) []byte {
	f := failure.From(err)
	text := fmt.Appendf(nil, "error: %s\n", printable(f.Error(), "\n"))
	if f.Hint != "" {
		text = fmt.Appendf(text, "hint: %s\n", printable(f.Hint, "\n"))
	}
	return text
}

// printable shows what a terminal would obey instead: names in images and on tokens are a stranger's. allowed are kept.
func printable(text, allowed string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || strings.ContainsRune(allowed, r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// PrintJSON writes what programs read.
func PrintJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// PrintTable writes rows in aligned columns, all at once.
func PrintTable(w io.Writer, header []string, rows [][]string) error {
	var text bytes.Buffer
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = printable(cell, "")
		}
		fmt.Fprintln(table, strings.Join(cells, "\t"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := w.Write(text.Bytes())
	return err
}

// YesNo shows an attribute that the module may not tell.
func YesNo(b *bool) string {
	switch {
	case b == nil:
		return "unknown"
	case *b:
		return "yes"
	}
	return "no"
}

// OrDash shows a text that may be empty.
func OrDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
