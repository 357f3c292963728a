package main

import (
	"context"
	"fmt"
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/attach"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// maxAttached is the number of bundles of one image that are read.
const maxAttached = 100

func approvalsShowCommand(o *approvalsOptions) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show IMAGE",
		Short: "Show the approvals that are beside an image, without verifying them",
		Long: `Show the bundles of approvals that are beside an image in its registry: who agreed to which signature,
when, with what and why. Nothing of it is verified: whoever can push to the repository can write it.
'hsm-image approvals verify' verifies it.

People are shown by their ids in the broker's log.`,
		Example: `  hsm-image approvals show registry.example.com/team/app:1.2`,
		Args:    cli.Exactly(1),
	}
	o.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		return o.withImage(c, args[0], func(ctx context.Context, i *approvedImage) error {
			shown, err := i.show(ctx, c)
			if err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(c.OutOrStdout(), approvalsReport{Repository: i.name, Digest: i.descriptor.Digest.String(),
					Approvals: shown})
			}
			fmt.Fprintf(c.OutOrStdout(), "not verified: anyone who can push to the repository can write this\n")
			return printApprovals(c.OutOrStdout(), shown)
		})
	}
	return c
}

// approvalsReport is what is printed of an image.
type approvalsReport struct {
	Repository string           `json:"repository"`
	Digest     string           `json:"digest"`
	Verified   bool             `json:"verified"`
	Approvals  []shownApprovals `json:"approvals"`
	Refused    []refusedBundle  `json:"refused,omitempty"` // why bundles do not count
}

// shownApprovals are the approvals of a signature.
type shownApprovals struct {
	Bundle     string          `json:"bundle"`    // digest of its manifest
	Signature  string          `json:"signature"` // digest of its manifest
	Subject    string          `json:"subject"`   // of the signing certificate
	Request    string          `json:"request"`   // ID
	Key        string          `json:"key"`
	Log        string          `json:"log"`   // origin
	Index      int64           `json:"index"` // of the entry of the signature
	Signed     time.Time       `json:"signed"`
	Repository string          `json:"repository,omitempty"`
	Rule       string          `json:"rule,omitempty"`
	BreakGlass bool            `json:"breakGlass,omitempty"`
	Reason     string          `json:"reason,omitempty"`
	Approvers  []shownApprover `json:"approvers"`
	Witnesses  []string        `json:"witnesses,omitempty"`
}

// shownApprover is a person who agreed.
type shownApprover struct {
	Name   string    `json:"name,omitempty"`
	ID     string    `json:"id"`
	Kind   string    `json:"kind,omitempty"`
	Time   time.Time `json:"time"`
	Reason string    `json:"reason,omitempty"`
	// Discounted approvals have verified, or are known from the log alone, and count for no group that is demanded.
	Discounted bool `json:"discounted,omitempty"`
}

// refusedBundle is a bundle that does not show what is demanded.
type refusedBundle struct {
	Bundle    string `json:"bundle"`
	Signature string `json:"signature"`
	Reason    string `json:"reason"`
}

func newShown(bundle ocispec.Descriptor, of imageSignature, s *proof.Shown, verified bool) shownApprovals {
	a := shownApprovals{Bundle: bundle.Digest.String(), Signature: of.manifest.Digest.String(),
		Subject: of.Chain[0].Subject.String(), Request: s.Request, Key: s.Key, Log: s.Log, Index: s.Index,
		Signed: s.Signed.UTC(), Repository: s.Repository, Rule: s.Rule, BreakGlass: s.BreakGlass, Reason: s.Reason,
		Approvers: []shownApprover{}, Witnesses: s.Witnesses}
	for _, p := range s.Approvers {
		a.Approvers = append(a.Approvers, shownApprover{Name: p.Name, ID: p.ID, Kind: string(p.Kind), Time: p.Time.UTC(),
			Reason: p.Reason, Discounted: verified && !p.Counts})
	}
	return a
}

// attached is a bundle beside the image.
type attached struct {
	ocispec.Descriptor
	data    []byte
	decoded *proof.Bundle
}

// bundles returns the bundles beside the image. Those that cannot be read are told, and left out. It fails with
// NotFound if there is none.
func (i *approvedImage) bundles(ctx context.Context, c *cobra.Command) ([]attached, error) {
	listed, more, err := attach.List(ctx, i.repository, i.descriptor, proof.MediaType, maxAttached)
	if err != nil {
		return nil, unreadImage(err, "cannot list the approvals of %s: %w", i.descriptor.Digest, err)
	}
	if more {
		fmt.Fprintf(c.ErrOrStderr(), "warning: the image has more than %d bundles of approvals\n", maxAttached)
	}
	var all []attached
	for _, d := range listed {
		one := attached{Descriptor: d}
		one.data, err = attach.Fetch(ctx, i.repository, d)
		if kind := registry.Kind(err); err != nil && (kind != failure.Invalid && kind != failure.NotFound ||
			registry.Exhausted(err)) {
			return nil, unreadImage(err, "cannot read the approvals %s: %w", d.Digest, err)
		}
		if err == nil {
			one.decoded, err = proof.Decode(one.data)
		}
		if err != nil {
			fmt.Fprintf(c.ErrOrStderr(), "warning: the approvals %s are left out: %.500q\n", d.Digest, err.Error())
			continue
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return nil, failure.New(failure.NotFound, "the image %s has no approvals", i.descriptor.Digest).
			WithHint("attach those of its signature: hsm-image approvals attach IMAGE")
	}
	return all, nil
}

// show returns what the bundles say of the signatures that they are of.
func (i *approvedImage) show(ctx context.Context, c *cobra.Command) ([]shownApprovals, error) {
	bundles, err := i.bundles(ctx, c)
	if err != nil {
		return nil, err
	}
	shown := []shownApprovals{}
	for _, b := range bundles {
		found := false
		for _, s := range i.signatures {
			if attach.Signed(b.decoded, s.Payload) == nil {
				continue
			}
			found = true
			described, err := attach.Describe(b.decoded, s.Payload, nil)
			if err != nil {
				fmt.Fprintf(c.ErrOrStderr(), "warning: the approvals %s are left out: %.500q\n", b.Digest, err.Error())
				continue
			}
			shown = append(shown, newShown(b.Descriptor, s, described, false))
		}
		if !found {
			fmt.Fprintf(c.ErrOrStderr(), "warning: the approvals %s are of no signature of the image\n", b.Digest)
		}
	}
	return shown, nil
}

// printApprovals prints a paragraph for each signature and bundle.
func printApprovals(w io.Writer, all []shownApprovals) error {
	for _, a := range all {
		fmt.Fprintln(w)
		rule := a.Rule
		if a.BreakGlass {
			rule += " (for emergencies)"
		}
		rows := [][]string{{"  signature", a.Signature}, {"  signer", a.Subject}, {"  bundle", a.Bundle}, {"  key", a.Key},
			{"  rule", cli.OrDash(rule)}, {"  repository", cli.OrDash(a.Repository)}, {"  reason", cli.OrDash(a.Reason)},
			{"  log", fmt.Sprintf("%s, entry %d", a.Log, a.Index)}, {"  signed", cli.FormatTime(&a.Signed)}}
		for _, p := range a.Approvers {
			rows = append(rows, []string{"  approved", p.String()})
		}
		for _, name := range a.Witnesses {
			rows = append(rows, []string{"  witness", name})
		}
		if err := cli.PrintTable(w, []string{"request " + a.Request}, rows); err != nil {
			return err
		}
	}
	return nil
}

// String returns who agreed, how, when and why.
func (p shownApprover) String() string {
	who := p.Name
	if who == "" {
		who = p.ID
	}
	text := fmt.Sprintf("%s, %s, %s", who, p.Time.Format(time.RFC3339), cli.OrDash(p.Kind))
	if p.Reason != "" {
		text += fmt.Sprintf(", %q", p.Reason)
	}
	if p.Discounted {
		text += " (does not count)"
	}
	return text
}
