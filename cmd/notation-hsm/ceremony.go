package main

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func ceremonyCommand(ks *keystore.Keystore) *cobra.Command {
	var out string
	var dryRun bool
	c := &cobra.Command{
		Use:   "ceremony FILE",
		Short: "Make keys, CAs, certificates and revocation lists as one reviewed file says",
		Long: `Make all that a YAML file lists: keys, a root, intermediates, signers' certificates and revocation lists. With --dry-run, every key and
every certificate field is shown and nothing is touched. The run writes certificates, lists and transcript.json into a folder; the CAs are
kept as those of 'ca init' are.`,
		Example: `  notation-hsm ceremony ceremony.yaml --dry-run
  notation-hsm ceremony ceremony.yaml --out ceremony-2026`,
		Args: cli.Exactly(1),
	}
	folder := addCAFolder(c)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be made, and touch nothing")
	c.Flags().StringVar(&out, "out", "", "folder for certificates, lists and the transcript (required unless --dry-run)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if out == "" && !dryRun {
			return failure.New(failure.Invalid, "the ceremony needs a folder for what it makes").
				WithHint("as in: --out ceremony-2026; or see what it would do with --dry-run")
		}
		dir, err := folder()
		if err != nil {
			return err
		}
		plan, err := ca.ReadPlan(ks, args[0])
		if err != nil {
			return err
		}
		if !dryRun {
			err := plan.Perform(c.Context(), dir, out, func(step string) { fmt.Fprintln(c.ErrOrStderr(), step) })
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), filepath.Join(out, "transcript.json"))
			return nil
		}
		parts, err := plan.Rehearse(dir)
		if err != nil {
			return err
		}
		for i, part := range parts {
			if i > 0 {
				fmt.Fprintln(c.OutOrStdout())
			}
			if err := printPart(c.OutOrStdout(), part); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

// printPart prints a title, and below it names and values.
func printPart(out io.Writer, part ca.Part) error {
	fmt.Fprintln(out, part.Title)
	for _, row := range part.Rows {
		row[0] = "  " + row[0]
	}
	return cli.PrintTable(out, part.Rows[0], part.Rows[1:])
}
