package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Rules of output: results go to standard output, everything else to standard error. A failure is a line "error:" and,
// if it has a hint, a line "hint:". Lists are tables; --json prints the same for programs.

// FormatError returns the lines that a user reads of a failure.
func FormatError(err error) []byte {
	f := failure.From(err)
	text := fmt.Appendf(nil, "error: %s\n", printable(f.Error(), "\n"))
	if f.Hint != "" {
		text = fmt.Appendf(text, "hint: %s\n", printable(f.Hint, "\n"))
	}
	return text
}

// printable replaces characters that a terminal could interpret, except those in allowed: names in images and on tokens
// can come from an attacker.
func printable(text, allowed string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || strings.ContainsRune(allowed, r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// PrintJSON writes a value as indented JSON, for programs.
func PrintJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// PrintTable writes rows in aligned columns, with one call of Write. Characters that are not printable are replaced.
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

// YesNo returns "yes", "no", or "unknown" for an attribute that the module does not show.
func YesNo(b *bool) string {
	switch {
	case b == nil:
		return "unknown"
	case *b:
		return "yes"
	}
	return "no"
}

// OrDash returns the text, or "-" for an empty one.
func OrDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// FormatTime returns a time in RFC 3339, or a dash for nil.
func FormatTime(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Format(time.RFC3339)
}
