package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/logflags"
	"github.com/notation-hsm/notation-hsm/internal/report"
)

// reportFormats write a report.
var reportFormats = map[string]func(*report.Report, io.Writer) error{"html": (*report.Report).WriteHTML,
	"csv": (*report.Report).WriteCSV, "json": (*report.Report).WriteJSON}

// reportFlags say what a report is of, and where it goes.
type reportFlags struct {
	logflags.Flags

	log, from, to, format, output string
	names                         bool
}

func reportCommand() *cobra.Command {
	var flags reportFlags
	c := askingAs(&cobra.Command{
		Use:   "report",
		Short: "Report what was signed in a period, who agreed, and what was an exception",
		Long: `Verify the log of a broker, and report what its keys signed in a period: per key and rule, which artifact,
when, and whose approvals stood. Exceptions come first: signatures by rules for emergencies, signatures
without approvals, and what changed, such as policies, blocked keys and credentials.

The log has pseudonyms. With --names, the running broker is asked for the names of people, for requesters
and media types; it must see you as an administrator or as a person of its policy.`,
		Example: `  hsm-broker report --log https://broker.example.com/v1/log --key log.pem --origin broker.example.com/log \
    --from 2026-01-01 --to 2026-02-01 --output january.html`,
		Args: cli.Exactly(0),
	}, "as-", "by which you sign in, for --names", func(ctx context.Context, c *cobra.Command, a *asker,
		_ []string) error {
		return flags.run(ctx, c, a)
	})
	asked := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if flags.names {
			return asked(c, args)
		}
		return flags.run(c.Context(), c, nil)
	}
	flags.Add(c)
	c.Flags().StringVar(&flags.log, "log", "", "the log: a URL such as https://broker.example.com/v1/log, or a folder")
	c.Flags().StringVar(&flags.from, "from", "", "the first day, such as 2026-01-01, or a time of RFC 3339; in UTC")
	c.Flags().StringVar(&flags.to, "to", "", "the day after the last, such as 2026-02-01, or a time of RFC 3339; in UTC")
	c.Flags().StringVar(&flags.format, "format", "html", "html, csv or json")
	c.Flags().StringVar(&flags.output, "output", "", "file to write (default: standard output)")
	c.Flags().BoolVar(&flags.names, "names", false, "ask the running broker for names and media types")
	c.AddCommand(reportVerifyCommand())
	return c
}

// run makes a report and writes it. a is nil without --names.
func (f *reportFlags) run(ctx context.Context, c *cobra.Command, a *asker) error {
	write := reportFormats[f.format]
	if write == nil {
		return cli.Usage(c, failure.New(failure.Invalid, "--format %q is not html, csv or json", f.format))
	}
	if f.log == "" {
		return cli.Required(c, "log", "https://broker.example.com/v1/log")
	}
	from, err := parsePeriod(c, "from", f.from)
	if err != nil {
		return err
	}
	to, err := parsePeriod(c, "to", f.to)
	if err != nil {
		return err
	}
	verifiers, err := f.Verifiers(c)
	if err != nil {
		return err
	}
	files, err := f.Files(f.log)
	if err != nil {
		return err
	}
	audit := broker.NewAudit()
	made, err := report.New(ctx, files, verifiers, report.Options{From: from, To: to, Each: audit.Entry})
	if err != nil {
		return err
	}
	defer made.Close()
	if a != nil {
		if err := a.tell(ctx, made, to); err != nil {
			return err
		}
	}
	if f.output == "" {
		return write(made, c.OutOrStdout())
	}
	if err := writeReport(f.output, func(w io.Writer) error { return write(made, w) }); err != nil {
		return err
	}
	fmt.Fprintf(c.ErrOrStderr(), "%s: %d signatures, %d exceptions, of %d entries of the log\n", f.output,
		made.About.Signatures, made.About.Exceptions, made.About.Size)
	return nil
}

// parsePeriod returns the beginning or the end of a period.
func parsePeriod(c *cobra.Command, flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, cli.Required(c, flag, "2026-01-01")
	}
	at, err := time.Parse(time.DateOnly, text)
	if err != nil {
		at, err = time.Parse(time.RFC3339, text)
	}
	if err != nil {
		return time.Time{}, cli.Usage(c, failure.New(failure.Invalid, "--%s %q is no day or time of RFC 3339", flag, text).
			WithHint("as in: --"+flag+" 2026-01-01"))
	}
	return at.UTC(), nil
}

// writeReport replaces a file that its owner alone can read: a report can have names.
func writeReport(path string, write func(io.Writer) error) error {
	file, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o600))
	if err == nil {
		defer file.Cleanup() //nolint:errcheck // it has been replaced, or nothing is left
		if err := write(file); err != nil {
			return err
		}
		err = file.CloseAtomicallyReplace()
	}
	if err != nil {
		return failure.New(failure.FileKind(err), "cannot write %s: %w", path, err).
			WithHint("check the folder's permissions and that the disk is not full")
	}
	return nil
}

func reportVerifyCommand() *cobra.Command {
	var flags logflags.Flags
	var log string
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify a report in JSON against the log's key, and with --log that no line is missing",
		Long: `Verify a report in JSON without the broker: the log's key signed its checkpoint, the entries of each line
are in the log under it, and each line says what its entries say. Names, requesters and media types are
what the broker told, and are not verified.

With --log the whole log is verified as well: it continues the report's checkpoint, and the report has
exactly the lines that the log makes.`,
		Example: `  hsm-broker report verify january.json --key log.pem --origin broker.example.com/log --log /srv/log`,
		Args:    cli.Exactly(1),
	}
	flags.Add(c)
	c.Flags().StringVar(&log, "log", "", "the log, a URL or a folder: verify that no line is missing")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		verifiers, err := flags.Verifiers(c)
		if err != nil {
			return err
		}
		file, err := os.Open(args[0])
		if err != nil {
			return failure.New(failure.FileKind(err), "cannot read %s: %w", args[0], err).WithHint("check the path")
		}
		defer file.Close()
		var found *report.Verified
		if log == "" {
			found, err = report.Verify(file, verifiers)
		} else {
			files, failed := flags.Files(log)
			if failed != nil {
				return failed
			}
			found, err = report.VerifyWith(c.Context(), file, files, verifiers)
		}
		if err != nil {
			return err
		}
		return printVerified(c, found, asJSON)
	}
	return c
}

func printVerified(c *cobra.Command, found *report.Verified, asJSON bool) error {
	about := found.About
	if asJSON {
		return cli.PrintJSON(c.OutOrStdout(), map[string]any{"origin": about.Origin, "size": about.Size, "from": about.From,
			"to": about.To, "signatures": about.Signatures, "exceptions": about.Exceptions, "complete": found.Complete})
	}
	complete := "not verified: give --log"
	if found.Complete {
		complete = "yes: the log makes these lines and no other"
	}
	return cli.PrintTable(c.OutOrStdout(), []string{"REPORT", "VERIFIED"}, [][]string{{"origin", about.Origin},
		{"entries of the log", fmt.Sprint(about.Size)}, {"from", about.From}, {"to", about.To + " (not included)"},
		{"signatures", fmt.Sprint(about.Signatures)}, {"exceptions", fmt.Sprint(about.Exceptions)}, {"complete", complete}})
}
