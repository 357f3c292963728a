package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/logflags"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

func logCommand() *cobra.Command {
	return cli.Group("log", "Verify, export and compare the log of a broker", logVerifyCommand(), logExportCommand(),
		logReconcileCommand(), logMonitorCommand(), logKeyCommand(), newEpochCommand())
}

func logVerifyCommand() *cobra.Command {
	var flags logflags.Flags
	var since string
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify DIR|URL",
		Short: "Verify a whole log: its checkpoint, its tree and each entry",
		Long: `Verify a log that was exported into a folder, or that a broker or a web server serves: the signature of
its checkpoint, that each tile and the root are those of the entries, and that each entry is one that a
broker logs: every use of a key has an intent before it, under a policy of the log, and one outcome. It
names the first entry or file that is wrong.

Keep the file checkpoint after each verification, and give it with --since the next time: the log must
continue it. So nobody can show you a log whose past was rewritten.`,
		Example: `  hsm-broker log verify https://broker.example.com/v1/log --key log.pem --origin broker.example.com/log`,
		Args:    cli.Exactly(1),
	}
	flags.Add(c)
	c.Flags().StringVar(&since, "since", "", "file of an older checkpoint, which the log must continue")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		verifiers, err := flags.Verifiers(c)
		if err != nil {
			return err
		}
		audit := broker.NewAudit()
		opts := translog.Options{
			Each: func(index int64, _ translog.Event, entry []byte) error { return audit.Entry(index, entry) },
		}
		if since != "" {
			data, err := logflags.ReadFile(since)
			if err != nil {
				return err
			}
			older, err := translog.Open(data, verifiers)
			if err != nil {
				return err
			}
			opts.Since = &older
		}
		report, err := flags.Verify(c.Context(), args[0], verifiers, opts)
		if err != nil {
			return err
		}
		return printReport(c, report, asJSON)
	}
	return c
}

func logExportCommand() *cobra.Command {
	var flags logflags.Flags
	var asJSON bool
	c := &cobra.Command{
		Use:   "export DIR|URL DIR",
		Short: "Copy a log into a folder, and verify what is copied",
		Long: `Copy a log into a folder that any web server can serve and 'hsm-broker log verify' reads. What is
copied is verified first. When the folder has a part of the log, only what follows is fetched, and it
must continue what is there. It can be interrupted and run again.`,
		Example: `  hsm-broker log export https://broker.example.com/v1/log /srv/log \
    --key log.pem --origin broker.example.com/log`,
		Args: cli.Exactly(2),
	}
	flags.Add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		verifiers, err := flags.Verifiers(c)
		if err != nil {
			return err
		}
		if logflags.IsURL(args[1]) {
			return cli.Usage(c, failure.New(failure.Invalid, "%s is not a folder", args[1]))
		}
		files, err := flags.Files(args[0])
		if err != nil {
			return err
		}
		report, err := translog.Export(c.Context(), files, args[1], verifiers)
		if err != nil {
			return err
		}
		return printReport(c, report, asJSON)
	}
	return c
}

func printReport(c *cobra.Command, r *translog.Report, asJSON bool) error {
	if asJSON {
		return cli.PrintJSON(c.OutOrStdout(), r)
	}
	rows := [][]string{{"origin", r.Origin}, {"entries", fmt.Sprint(r.Size)}, {"root", r.Root.String()}}
	if r.Since != nil {
		rows = append(rows, []string{"continues", fmt.Sprintf("the checkpoint of %d entries", *r.Since)})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Types)) {
		rows = append(rows, []string{"type " + name, fmt.Sprint(r.Types[name])})
	}
	if r.Other > 0 {
		rows = append(rows, []string{"other types", fmt.Sprint(r.Other)})
	}
	if !r.First.IsZero() {
		rows = append(rows, []string{"time", local(r.First) + " to " + local(r.Last)})
	}
	if r.Backwards > 0 {
		rows = append(rows, []string{"clock", fmt.Sprintf("%d entries are older than the entry before", r.Backwards)})
	}
	if r.Duplicates > 0 {
		rows = append(rows, []string{"duplicates", fmt.Sprint(r.Duplicates)})
	}
	return cli.PrintTable(c.OutOrStdout(), []string{"LOG", "VERIFIED"}, rows)
}
