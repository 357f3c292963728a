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
		Short: "Create the keys, CAs, certificates and revocation lists of a reviewed file",
		Long: `Create what a YAML file lists: keys, a root, intermediates, certificates of signers, and revocation
lists. With --dry-run, print every key and every certificate field, and create nothing.
Certificates, lists and transcript.json are written to --out. The CAs are stored in the folder of
the CAs, as those of 'ca init'.`,
		Example: `  notation-hsm ceremony ceremony.yaml --dry-run
  notation-hsm ceremony ceremony.yaml --out ceremony-2026`,
		Args: cli.Exactly(1),
	}
	folder := addCAFolder(c)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be created, and create nothing")
	c.Flags().StringVar(&out, "out", "", "folder for certificates, lists and the transcript (required unless --dry-run)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if out == "" && !dryRun {
			return cli.Usage(c, failure.New(failure.Invalid, "--out or --dry-run is required").
				WithHint("as in: --out ceremony-2026"))
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

// printPart prints a title, and below it a table of names and values.
func printPart(out io.Writer, part ca.Part) error {
	fmt.Fprintln(out, part.Title)
	for _, row := range part.Rows {
		row[0] = "  " + row[0]
	}
	return cli.PrintTable(out, part.Rows[0], part.Rows[1:])
}
