package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/trust"
)

func approverAddCommand(manifest *string) *cobra.Command {
	var file string
	var replace bool
	c := &cobra.Command{
		Use:   "add [NAME]...",
		Short: "Add people whose approvals count",
		Long: `Add people whose approvals count, with their credentials. --from is a file that 'hsm-broker approver
export' wrote. Without a NAME, all people in it are added. Compare the fingerprints with those that
the people read out to you: the broker could export others.`,
		Example: `  hsm-broker approver export > approvers.json
  notation-hsm trust approver add --from approvers.json alice bob carol`,
		Args: cobra.ArbitraryArgs,
	}
	c.Flags().StringVar(&file, "from", "", "file that 'hsm-broker approver export' wrote (required)")
	c.Flags().BoolVar(&replace, "replace", false, "replace the id and the credentials of approvers of the same name")
	c.RunE = func(c *cobra.Command, args []string) error {
		if file == "" {
			return cli.Required(c, "from", "approvers.json")
		}
		path, err := trust.Path(*manifest)
		if err != nil {
			return err
		}
		list, err := readApprovers(file, args)
		if err != nil {
			return err
		}
		if err := trust.AddApprovers(c.Context(), path, list, replace); err != nil {
			return err
		}
		for _, a := range list {
			fmt.Fprintf(c.ErrOrStderr(), "approver %q, id %s; fingerprints to compare:\n", a.Name, a.ID)
			for _, credential := range a.Credentials {
				fmt.Fprintf(c.ErrOrStderr(), "  %s %s\n", describeKind(credential), credential.Fingerprint())
			}
		}
		fmt.Fprintln(c.ErrOrStderr(), "next: notation-hsm trust approvals add SCOPE; or if they are in a group: "+
			"notation-hsm trust export")
		return nil
	}
	return c
}

// readApprovers reads a file of exported approvers, and returns those with the names, or all.
func readApprovers(file string, names []string) ([]trust.Approver, error) {
	data, err := bound.ReadFile(file, trust.MaxApproversFile)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the exported approvers: %w", err).
			WithHint("check the path and its permissions")
	}
	all, err := trust.ParseApprovers(data)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return all, nil
	}
	var chosen []trust.Approver
	for _, name := range names {
		i := slices.IndexFunc(all, func(a trust.Approver) bool { return a.Name == name })
		if i < 0 {
			return nil, failure.New(failure.NotFound, "there is no approver %q in %s", name, file).
				WithHint("list the broker's approvers: hsm-broker approver list")
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// describeKind returns the kind of a credential, and what is known of a passkey.
func describeKind(c trust.Credential) string {
	if c.Passkey == nil {
		return c.Kind
	}
	words := []string{"not attested", "device-bound"}
	if c.Passkey.Attested {
		words[0] = "attested"
	}
	if c.Passkey.BackupEligible {
		words[1] = "can be copied"
	}
	return c.Kind + " (" + strings.Join(words, ", ") + ")"
}

func approverRemoveCommand(manifest *string) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a person whose approvals count",
		Long: `Remove a person whose approvals count. A person in a group is not removed: change the group first.
The change takes effect with 'notation-hsm trust export'. Images that need this person's approval do
not verify then.`,
		Example: "  notation-hsm trust approver remove alice",
		Args:    cli.Exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := trust.Path(*manifest)
			if err != nil {
				return err
			}
			if err := trust.RemoveApprover(c.Context(), path, args[0]); err != nil {
				return err
			}
			fmt.Fprintf(c.ErrOrStderr(), "approver %q is removed\nnext: notation-hsm trust export\n", args[0])
			return nil
		},
	}
}

func approverListCommand(manifest *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the people whose approvals count",
		Example: "  notation-hsm trust approver list",
		Args:    cli.Exactly(0),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		m, err := loadManifest(*manifest)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.PrintJSON(c.OutOrStdout(), append([]trust.Approver{}, m.Approvers...))
		}
		var rows [][]string
		for _, a := range m.Approvers {
			for _, credential := range a.Credentials {
				rows = append(rows, []string{a.Name, a.ID, describeKind(credential), credential.Fingerprint()})
			}
		}
		return cli.PrintTable(c.OutOrStdout(), []string{"NAME", "ID", "KIND", "FINGERPRINT"}, rows)
	}
	return c
}
