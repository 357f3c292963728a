package cli_test

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
)

// TestHelpIsWrapped breaks the line of a flag at 100 columns, below the beginning of its text, and no other line.
func TestHelpIsWrapped(t *testing.T) {
	show := &cobra.Command{Use: "show", Run: func(*cobra.Command, []string) {}}
	show.Flags().String("folder", "", strings.Repeat("word ", 18)+"end")
	show.Flags().Bool("json", false, "print JSON")
	root := cli.Root(&cobra.Command{Use: "hsm"}, show)
	var output strings.Builder
	root.SetOut(&output)
	root.SetArgs([]string{"show", "--help"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	const want = `Usage:
  hsm show [flags]

Flags:
      --folder string   word word word word word word word word word word word word word word word
                        word word word end
  -h, --help            help for show
      --json            print JSON
`
	if output.String() != want {
		t.Errorf("%s, instead of %s", output.String(), want)
	}
}
