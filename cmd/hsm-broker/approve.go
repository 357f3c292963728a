package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/approver"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func approveCommand() *cobra.Command {
	return decideCommand(approval.Approve, &cobra.Command{
		Use:   "approve ID",
		Short: "Approve a request with a signature of your own, after a look at it",
		Long: `Approve a request. The command fetches the statement that people sign and all that belongs to it, verifies
it, fetches the artifacts from their registry with your own credentials and compares them with the
statement, shows all this, and asks. It then signs with your SSH key or your key in a module.`,
		Example: `  hsm-broker approve 01J9ZK3V7Q --ssh ~/.ssh/id_ed25519
  hsm-broker approve 01J9ZK3V7Q --key 'pkcs11:token=alice;object=approve'`,
	})
}

func rejectCommand() *cobra.Command {
	return decideCommand(approval.Reject, &cobra.Command{
		Use:     "reject ID",
		Short:   "Reject a request, which ends it, with a signature of your own",
		Example: `  hsm-broker reject 01J9ZK3V7Q --reason "not tested" --ssh ~/.ssh/id_ed25519`,
	})
}

func withdrawCommand() *cobra.Command {
	return decideCommand(approval.Withdraw, &cobra.Command{
		Use:     "withdraw ID",
		Short:   "Withdraw your approval of a request that is not signed yet",
		Example: `  hsm-broker request withdraw 01J9ZK3V7Q --ssh ~/.ssh/id_ed25519`,
	})
}

// maxReason is the length of the longest reason, in bytes.
const maxReason = 1000

// decideCommand completes a command by which a person decides about a request.
func decideCommand(decision approval.Decision, c *cobra.Command) *cobra.Command {
	var from sources
	var reason string
	var yes bool
	c.Args = cli.Exactly(1)
	addJSON(askingAs(c, "", "that you sign with",
		func(ctx context.Context, c *cobra.Command, a *asker, args []string) error {
			switch {
			case decision == approval.Reject && reason == "":
				return cli.Required(c, "reason", `"not tested"`)
			case len(reason) > maxReason:
				return cli.Usage(c, failure.New(failure.Invalid, "--reason has %d bytes, and %d are the most", len(reason),
					maxReason))
			case a.signer == nil:
				return cli.Required(c, "ssh", "~/.ssh/id_ed25519, or --key with a key in a module")
			}
			r, err := a.Request(ctx, a.settings, args[0], 0)
			if err != nil {
				return err
			}
			seen, err := a.evidence(ctx, r.ID)
			if err != nil {
				return err
			}
			credential, err := seen.Mine(a.signer.kind, a.signer.public, decision)
			if err != nil {
				return err
			}
			if err := from.show(ctx, c, seen, r); err != nil {
				return err
			}
			if !yes {
				if err := cli.Ask(ctx, string(decision)+"? [y/N]", "y"); err != nil {
					return err
				}
			}
			envelope, err := a.signer.decide(ctx, seen, credential, decision, reason)
			if err != nil {
				return err
			}
			if err := a.stay(ctx); err != nil {
				return err
			}
			if r, err = a.Decide(ctx, a.settings, r.ID, envelope); err != nil {
				return err
			}
			return printOutcome(c, r)
		}))
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	if decision == approval.Approve {
		from.add(c)
	} else {
		from.offline = true
	}
	what := "why: the requester and all approvers see it, and it can be published with the approvals, so name no people"
	if decision == approval.Reject {
		what += " (required)"
	}
	c.Flags().StringVar(&reason, "reason", "", what)
	return c
}

// decide returns a decision about a request, signed.
func (s *signer) decide(ctx context.Context, seen *approver.Seen, credential string, decision approval.Decision,
	reason string) ([]byte, error) {
	a := approval.Approval{Approver: seen.You, Decision: decision, Reason: reason, Statement: seen.Hash,
		Time: time.Now().UTC().Truncate(time.Second)}
	_, _ = rand.Read(a.Random[:]) // does not fail
	document, err := a.Encode()
	if err != nil {
		return nil, err
	}
	envelope, err := s.sign(ctx, document, credential)
	if err != nil {
		return nil, err
	}
	return envelope.Encode()
}

// printTables prints tables with an empty line between two. Beside JSON, they go to standard error.
func printTables(c *cobra.Command, tables []approver.Table) error {
	w := c.OutOrStdout()
	if asJSON(c) {
		w = c.ErrOrStderr()
	}
	for i, t := range tables {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := cli.PrintTable(w, t.Header, t.Rows); err != nil {
			return err
		}
	}
	return nil
}
