package main

import (
	"fmt"
	"os"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/remote"
)

// finish prints a request that is not waited for any longer, and fails unless it is signed or can be.
func finish(c *cobra.Command, r brokerapi.Request, asJSON bool) error {
	if err := printRequest(c, r, asJSON); err != nil {
		return err
	}
	return remote.Outcome(r)
}

// printRequest prints a request, and adds it to the summary of the job on GitHub.
func printRequest(c *cobra.Command, r brokerapi.Request, asJSON bool) error {
	rows := remote.Describe(r)
	if err := summarize(rows); err != nil {
		notifier(c)("warning: cannot write the job's summary: %v", err)
	}
	if asJSON {
		return cli.PrintJSON(c.OutOrStdout(), r)
	}
	return cli.PrintTable(c.OutOrStdout(), rows[0], rows[1:])
}

// summarize appends a table to the file that GITHUB_STEP_SUMMARY names, which GitHub shows with the job.
func summarize(rows [][]string) error {
	path := os.Getenv("GITHUB_STEP_SUMMARY")
	if path == "" {
		return nil
	}
	var text strings.Builder
	text.WriteString("### Signing request\n\n| | |\n| --- | --- |\n")
	for _, row := range rows {
		fmt.Fprintf(&text, "| %s | %s |\n", strings.ToLower(row[0]), escape(row[1]))
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600) //nolint:gosec // the runner names it
	if err != nil {
		return err
	}
	_, err = f.WriteString(text.String() + "\n")
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// escape returns a text that Markdown shows as it is. An address stays one that can be followed: GitHub makes a link of
// it.
func escape(text string) string {
	special := "<>|`[]()\\"
	if !strings.HasPrefix(text, "https://") {
		special += "&*_{}!~#@:"
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case !unicode.IsPrint(r):
			b.WriteRune(unicode.ReplacementChar)
		case strings.ContainsRune(special, r):
			fmt.Fprintf(&b, "&#%d;", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
