package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// The rules of what people read: results go to standard output, everything else to standard error. A failure is a line
// "error:" and, where something can be done, a line "hint:". Lists are tables; --json gives the same to programs.

// FormatError returns the lines that tell people of a failure.
func FormatError(err error) []byte {
	f := failure.From(err)
	text := fmt.Appendf(nil, "error: %s\n", f)
	if f.Hint != "" {
		text = fmt.Appendf(text, "hint: %s\n", f.Hint)
	}
	return text
}

// PrintJSON writes what programs read.
func PrintJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// PrintTable writes rows in aligned columns.
func PrintTable(w io.Writer, header []string, rows [][]string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, strings.Join(header, "\t"))
	for _, row := range rows {
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	return table.Flush()
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
