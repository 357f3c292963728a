package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/trust"
)

func approvalsAddCommand(manifest *string) *cobra.Command {
	var a trust.Approvals
	var groups, kinds []string
	var attested, deviceBound, replace bool
	var maxAge time.Duration
	c := &cobra.Command{
		Use:   "add SCOPE",
		Short: "Require approvals of people for signatures in a repository",
		Long: `Require approvals of people for signatures in a repository, or with "*" in all repositories that have
no approvals of their own. A signature then needs a signer, and a bundle that 'hsm-image approvals
attach' attached: it shows that enough people of each group agreed, and that the log has the
signature. A person counts for one group.

'hsm-image verify' and containerd's gate verify it; Notation itself, Kyverno and Ratify do not. With
the kinds key and ssh, people sign on machines of their own; a broker that was taken over can mislead
the user of a passkey about what is approved. The change takes effect with 'notation-hsm trust
export'.`,
		Example: `  notation-hsm trust approvals add registry.example.com/team/app \
    --group release-managers=alice,bob,carol:2 --kinds key,ssh --log broker.example.com/log+1234abcd+AQ...
  notation-hsm trust approvals add registry.example.com/team/app --replace \
    --group release-managers=alice,bob,carol:2 --kinds key,ssh --log broker.example.com/log+1234abcd+AQ... \
    --witness witness.example.com+5678abcd+BA... --cosigned 1 --max-age 2160h`,
		Args: cli.Exactly(1),
	}
	c.Flags().StringArrayVar(&groups, "group", nil,
		"group of approvers and its quorum, as in release-managers=alice,bob,carol:2 (required; can be repeated)")
	c.Flags().StringSliceVar(&kinds, "kinds", nil, "kinds of approvals that count: key, ssh, passkey (required)")
	c.Flags().BoolVar(&attested, "attestation-required", false,
		"passkeys count only if a manufacturer has attested their authenticator")
	c.Flags().BoolVar(&deviceBound, "device-bound", false, "passkeys count only if they cannot leave their authenticator")
	c.Flags().StringArrayVar(&a.Log, "log", nil,
		"verifier key of the broker's log, NAME+ID+KEY (required; can be repeated)")
	c.Flags().StringArrayVar(&a.Witnesses, "witness", nil, "verifier key of a witness of the log (can be repeated)")
	c.Flags().IntVar(&a.Cosigned, "cosigned", 0, "number of witnesses that must have cosigned the log")
	c.Flags().DurationVar(&maxAge, "max-age", 0,
		"how long a signature counts since the log has it, as in 2160h (default: without an end)")
	c.Flags().BoolVar(&replace, "replace", false, "replace the approvals of the scope")
	c.RunE = func(c *cobra.Command, args []string) error {
		switch {
		case len(groups) == 0:
			return cli.Required(c, "group", "release-managers=alice,bob,carol:2")
		case len(kinds) == 0:
			return cli.Required(c, "kinds", "key,ssh")
		case len(a.Log) == 0:
			return cli.Required(c, "log", "broker.example.com/log+1234abcd+AQ...")
		}
		a.Scope, a.MaxAge = args[0], trust.Span(maxAge)
		for _, text := range groups {
			g, err := parseGroup(text)
			if err != nil {
				return cli.Usage(c, err)
			}
			g.Kinds, g.DeviceBound = kinds, deviceBound
			if attested {
				g.Attestation = "required"
			}
			a.Groups = append(a.Groups, g)
		}
		path, err := trust.Path(*manifest)
		if err != nil {
			return err
		}
		if err := trust.AddApprovals(c.Context(), path, a, replace); err != nil {
			return err
		}
		fmt.Fprintf(c.ErrOrStderr(), "signatures in %s need approvals: %s\nnext: notation-hsm trust export\n", a.Scope,
			describeGroups(a.Groups))
		return nil
	}
	return c
}

// parseGroup reads NAME=MEMBER,MEMBER:QUORUM.
func parseGroup(text string) (trust.ApprovalGroup, error) {
	name, rest, named := strings.Cut(text, "=")
	members, count, counted := strings.Cut(rest, ":")
	quorum, err := strconv.Atoi(count)
	if !named || !counted || err != nil {
		return trust.ApprovalGroup{}, failure.New(failure.Invalid, "%q is not a group", text).
			WithHint("as in: --group release-managers=alice,bob,carol:2")
	}
	return trust.ApprovalGroup{Name: name, Members: strings.Split(members, ","), Quorum: quorum}, nil
}

// describeGroups returns how many people of each group must agree.
func describeGroups(groups []trust.ApprovalGroup) string {
	var list []string
	for _, g := range groups {
		list = append(list, fmt.Sprintf("%d of %d %s", g.Quorum, len(g.Members), g.Name))
	}
	return strings.Join(list, ", ")
}

func approvalsRemoveCommand(manifest *string) *cobra.Command {
	return &cobra.Command{
		Use:   "remove SCOPE",
		Short: "Require no approvals of their own for signatures in a repository any more",
		Long: `Remove the approvals of a repository: its signatures then need those of "*", or none if "*" has none.
The change takes effect with 'notation-hsm trust export'.`,
		Example: "  notation-hsm trust approvals remove registry.example.com/team/app",
		Args:    cli.Exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := trust.Path(*manifest)
			if err != nil {
				return err
			}
			if err := trust.RemoveApprovals(c.Context(), path, args[0]); err != nil {
				return err
			}
			fmt.Fprintf(c.ErrOrStderr(), "the approvals of %s are removed\nnext: notation-hsm trust export\n", args[0])
			return nil
		},
	}
}

func approvalsListCommand(manifest *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the repositories whose signatures need approvals",
		Example: "  notation-hsm trust approvals list",
		Args:    cli.Exactly(0),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		m, err := loadManifest(*manifest)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.PrintJSON(c.OutOrStdout(), append([]trust.Approvals{}, m.Approvals...))
		}
		var rows [][]string
		for _, a := range m.Approvals {
			age, witnesses := "", ""
			if a.MaxAge > 0 {
				age = trust.FormatStale(time.Duration(a.MaxAge))
			}
			if a.Cosigned > 0 {
				witnesses = fmt.Sprintf("%d of %d", a.Cosigned, len(a.Witnesses))
			}
			for _, g := range a.Groups {
				rows = append(rows, []string{a.Scope, g.Name, fmt.Sprintf("%d of %s", g.Quorum, strings.Join(g.Members, " ")),
					strings.Join(g.Kinds, " "), logNames(a.Log), cli.OrDash(witnesses), cli.OrDash(age)})
			}
		}
		return cli.PrintTable(c.OutOrStdout(), []string{"SCOPE", "GROUP", "QUORUM", "KINDS", "LOG", "WITNESSES", "MAX-AGE"},
			rows)
	}
	return c
}

// logNames returns the names of logs from their verifier keys, each once.
func logNames(vkeys []string) string {
	var names []string
	for _, vkey := range vkeys {
		name, _, _ := strings.Cut(vkey, "+")
		if len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}
