package main

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

func formatError(err error) []byte {
	f := failure.From(err)
	text := fmt.Appendf(nil, "error: %s\n", f)
	if f.Hint != "" {
		text = fmt.Appendf(text, "hint: %s\n", f.Hint)
	}
	return text
}

func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func printTable(w io.Writer, header []string, rows [][]string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, strings.Join(header, "\t"))
	for _, row := range rows {
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	return table.Flush()
}

// yesNo shows an attribute that the module may not tell.
func yesNo(b *bool) string {
	switch {
	case b == nil:
		return "unknown"
	case *b:
		return "yes"
	}
	return "no"
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
