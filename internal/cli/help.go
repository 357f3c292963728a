package cli

import (
	"bytes"
	"io"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// helpWidth is the number of columns of help.
const helpWidth = 100

// flagLine matches a flag in help: its name and type, and what it is for.
var flagLine = regexp.MustCompile(`^( +-.*?   +)(\S.*)$`)

// wrappedUsage returns a usage function that wraps the flags in the text of usage. A usage template with
// FlagUsagesWrapped would link text/template, and make the executable larger by 2 MB.
func wrappedUsage(usage func(*cobra.Command) error) func(*cobra.Command) error {
	return func(c *cobra.Command) error {
		out := c.OutOrStderr()
		var text bytes.Buffer
		c.SetOut(&text)
		err := usage(c)
		c.SetOut(out)
		if err != nil {
			return err
		}
		_, err = io.WriteString(out, wrapFlags(text.String()))
		return err
	}
}

// wrapFlags breaks the lines of flags that are longer than helpWidth, and indents what follows.
func wrapFlags(help string) string {
	lines := strings.Split(help, "\n")
	for i, line := range lines {
		parts := flagLine.FindStringSubmatch(line)
		if len(line) <= helpWidth || parts == nil {
			continue
		}
		wrapped, column := parts[1], len(parts[1])
		for word := range strings.FieldsSeq(parts[2]) {
			switch {
			case column == len(parts[1]):
			case column+1+len(word) > helpWidth:
				wrapped += "\n" + strings.Repeat(" ", len(parts[1]))
				column = len(parts[1])
			default:
				wrapped += " "
				column++
			}
			wrapped += word
			column += len(word)
		}
		lines[i] = wrapped
	}
	return strings.Join(lines, "\n")
}
