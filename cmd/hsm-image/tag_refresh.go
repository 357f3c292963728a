package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

func tagRefreshCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	var keys keyFlags
	var every time.Duration
	c := &cobra.Command{
		Use:   "refresh REPO... --snapshot KEY --timestamp KEY",
		Short: "Publish what signers have proposed, and sign anew what expires",
		Long: `Publish: verify what signers have proposed, sign new snapshots and timestamps, and write them to the
registry. A timestamp expires after a day, a snapshot after a week: run this every few hours, or let it
run with --every. There must be one publisher for a repository.

With targets keys or keys of delegations (--key), it first signs their files anew when half of their
lifetime of 90 days has passed.`,
		Example: `  hsm-image tag refresh registry.example.com/team/app \
    --snapshot "pkcs11:token=online;object=snapshot" --timestamp "pkcs11:token=online;object=timestamp"
  hsm-image tag refresh registry.example.com/team/app --every 10s --snapshot snapshot --timestamp timestamp
  hsm-image tag refresh registry.example.com/team/app --key "pkcs11:token=signing;object=targets"`,
		Args: func(c *cobra.Command, args []string) error {
			if err := cobra.MinimumNArgs(1)(c, args); err != nil {
				return cli.Usage(c, err)
			}
			return nil
		},
	}
	c.Flags().StringArrayVar(&keys.key, "key", nil,
		"targets key, or that of a delegation, to sign its files anew; "+keyForms)
	keys.addOnline(c)
	c.Flags().DurationVar(&every, "every", 0, "go on, and look for proposals this often (default: once)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(keys.all()) == 0 {
			return cli.Required(c, "timestamp", "pkcs11:token=online;object=timestamp")
		}
		if err := keys.checkOnline(c); err != nil {
			return err
		}
		if c.Flags().Changed("every") && every < time.Second {
			return cli.Usage(c, failure.New(failure.Invalid, "--every has to be one second or more"))
		}
		var names []string
		for _, arg := range args {
			name, err := parseRepository(arg)
			if err != nil {
				return err
			}
			names = append(names, name)
		}
		ring := newKeyring(ks)
		defer ring.Close()
		signers, err := ring.open(c.Context(), keys.all())
		if err != nil {
			return err
		}
		publishes := len(keys.snapshot)+len(keys.timestamp) > 0
		for first := true; ; first = false {
			var failed error
			for _, name := range names {
				if err := o.refresh(c, name, signers, len(keys.key) > 0, publishes, first && every == 0); err != nil {
					failed = err
					if every > 0 {
						_, _ = c.ErrOrStderr().Write(cli.FormatError(err))
					}
				}
			}
			if every == 0 {
				return failed
			}
			select {
			case <-c.Context().Done():
				return nil
			case <-time.After(every):
			}
		}
	}
	return c
}

// refresh signs anew what expires of the signers' roles, and publishes. once is the only round.
func (o *tagOptions) refresh(c *cobra.Command, name string, signers []*tuf.Signer, renews, publishes, once bool) error {
	return o.withRepository(name, func(r *tags.Repository) error {
		if renews {
			if err := renew(c, r, signers, !publishes && once); err != nil {
				return err
			}
		}
		if !publishes {
			return nil
		}
		report, err := r.Publish(c.Context(), signers, once)
		if err != nil {
			return err
		}
		if report.Published {
			fmt.Fprintf(c.OutOrStdout(), "%s: published version %d with %d proposals\n", name, report.Versions.Timestamp,
				report.Proposals)
		}
		if report.Restored {
			fmt.Fprintf(c.ErrOrStderr(), "warning: %s: %s\n", name, tags.RestoredTag)
		}
		for _, why := range report.Held {
			fmt.Fprintf(c.ErrOrStderr(), "warning: %s: not published: %s\n", name, why)
		}
		for _, why := range append(report.Refused, report.Kept...) {
			fmt.Fprintf(c.ErrOrStderr(), "warning: %s: %s\n", name, why)
		}
		return nil
	})
}

// renew signs the files of the signers' roles anew: all, or those that half of their lifetime has passed of. It fails if
// all are asked for and there are none.
func renew(c *cobra.Command, r *tags.Repository, signers []*tuf.Signer, all bool) error {
	renewed, err := r.Renew(c.Context(), signers, all)
	if err != nil {
		return err
	}
	for _, result := range renewed {
		fmt.Fprintf(c.OutOrStdout(), "%s: signed %d files of the role %s anew\n", r.Name, result.Files, result.Role)
	}
	if all && len(renewed) == 0 {
		return failure.New(failure.Denied, "cannot sign files of %s anew: no key is of a role that signs tags", r.Name).
			WithHint("list the keys of each role: hsm-image tag status " + r.Name)
	}
	return nil
}
