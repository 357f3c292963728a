package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/attach"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/scope"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/trust/demand"
)

func approvalsVerifyCommand(o *approvalsOptions) *cobra.Command {
	var asJSON bool
	var trustDir string
	c := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Verify the approvals of an image as the trust directory demands them",
		Long: `Verify that one of the signatures of an image has a bundle of approvals that shows what the trust
directory demands: that enough of the people whom it names agreed to this very signature, and that the
log has it. Print who agreed, or why a bundle does not count. The exit code is 0 only if a bundle holds.

It verifies approvals alone, and not whether the signer is trusted: 'hsm-image verify' verifies both.`,
		Example: `  hsm-image approvals verify registry.example.com/team/app:1.2 --trust-dir cluster/notation`,
		Args:    cli.Exactly(1),
	}
	o.add(c)
	c.Flags().StringVar(&trustDir, "trust-dir", "",
		"folder with approvals.json, written by 'notation-hsm trust export --to' (default: Notation's)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := cli.RefuseEmpty(c, "trust-dir"); err != nil {
			return err
		}
		return o.withImage(c, args[0], func(ctx context.Context, i *approvedImage) error {
			demands, err := demandsOf(trustDir, i.name)
			if err != nil {
				return err
			}
			report, err := i.verify(ctx, c, demands)
			if err != nil {
				return err
			}
			if asJSON {
				err = cli.PrintJSON(c.OutOrStdout(), report)
			} else {
				err = printVerified(c, report)
			}
			if err == nil && !report.Verified {
				err = failure.New(failure.Denied, "the image %s is not approved as %s demands", report.Digest, i.name).
					WithHint("have it approved and signed again by the broker, and attach the approvals")
			}
			return err
		})
	}
	return c
}

// demandsOf returns what a trust directory demands of signatures in a repository. It fails with Invalid if that is
// nothing, and with NotFound without the directory.
func demandsOf(folder, repository string) ([]*proof.Demand, error) {
	if folder == "" {
		var err error
		if folder, err = folders.NotationConfig(); err != nil {
			return nil, err
		}
	}
	name, err := scope.Canonical(repository)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(folder); err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot access the trust directory: %w", err).
			WithHint("name the folder with --trust-dir, or write it with 'notation-hsm trust export'")
	}
	required, err := trust.ReadApprovals(folder)
	if err != nil {
		return nil, err
	}
	demands, err := demand.Of(required, name)
	if err == nil && len(demands) == 0 {
		err = failure.New(failure.Invalid, "the trust directory %s demands no approvals for %s", folder, name).
			WithHint("add them with 'notation-hsm trust approvals add', and export again with 'notation-hsm trust export'")
	}
	return demands, err
}

// verify verifies the bundles beside an image. The image is approved if one of them holds for one of its signatures
// under all demands.
func (i *approvedImage) verify(ctx context.Context, c *cobra.Command, demands []*proof.Demand) (*approvalsReport,
	error) {
	bundles, err := i.bundles(ctx, c)
	if err != nil {
		return nil, err
	}
	report := &approvalsReport{Repository: i.name, Digest: i.descriptor.Digest.String(), Approvals: []shownApprovals{}}
	now := time.Now()
	for _, b := range bundles {
		matched := false
		for _, s := range i.signatures {
			signed := attach.Signed(b.decoded, s.Payload)
			if signed == nil {
				continue
			}
			matched = true
			shown, err := verifyAll(b.data, s.Signature, demands, now)
			if err != nil {
				report.Refused = append(report.Refused, refusedBundle{b.Digest.String(), s.manifest.Digest.String(),
					err.Error()})
				continue
			}
			report.Verified = true
			report.Approvals = append(report.Approvals, newShown(b.Descriptor, s, shown, true))
		}
		if !matched {
			report.Refused = append(report.Refused, refusedBundle{b.Digest.String(), "",
				"it is of no signature of the image"})
		}
	}
	return report, nil
}

// verifyAll verifies a bundle under all demands, of which there are several while an export is under way.
func verifyAll(bundle []byte, s proof.Signature, demands []*proof.Demand, now time.Time) (shown *proof.Shown,
	err error) {
	for _, d := range demands {
		if shown, err = proof.Verify(bundle, s, d, now); err != nil {
			return nil, err
		}
	}
	return shown, nil
}

func printVerified(c *cobra.Command, report *approvalsReport) error {
	verdict := "not approved"
	if report.Verified {
		verdict = "approved"
	}
	fmt.Fprintf(c.OutOrStdout(), "%s@%s: %s\n", report.Repository, report.Digest, verdict)
	if err := printApprovals(c.OutOrStdout(), report.Approvals); err != nil {
		return err
	}
	for _, r := range report.Refused {
		rows := [][]string{{"  signature", cli.OrDash(r.Signature)}, {"  reason", r.Reason}}
		if err := cli.PrintTable(c.OutOrStdout(), []string{"refused " + r.Bundle}, rows); err != nil {
			return err
		}
	}
	return nil
}
