package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

func tagSignCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	c := &cobra.Command{
		Use:   "sign REPO:TAG[@DIGEST] --key KEY",
		Short: "Sign which image a tag is",
		Long: `Sign which image a tag is: the one that the registry has under the tag now, or the one with DIGEST. The
image has to be in the repository. The key is a targets key or that of a delegation whose paths match
the tag.

The command proposes the signed metadata, and waits until the publisher has published them. With the
snapshot and timestamp keys it publishes by itself.`,
		Example: `  hsm-image tag sign registry.example.com/team/app:v1 --key "pkcs11:token=signing;object=targets"
  hsm-image tag sign registry.example.com/team/app:release-1@sha256:... --key alice --wait 0`,
		Args: cli.Exactly(1),
	}
	return o.changes(c, ks, true, func(ctx context.Context, r *tags.Repository, n tagName) (tuf.Change, string, error) {
		wanted := n.tag
		if n.digest != "" {
			wanted = n.digest.String()
		}
		target, err := r.Find(ctx, n.tag, wanted)
		return tuf.Change{Set: []tuf.Target{target}}, fmt.Sprintf("%s:%s is %s", n.repository, n.tag, target.Digest), err
	})
}

func tagRemoveCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	c := &cobra.Command{
		Use:     "remove REPO:TAG --key KEY",
		Short:   "Take a tag out of the signed metadata",
		Long:    `Take a tag out of the signed metadata. It then does not verify, whatever the registry has under it.`,
		Example: `  hsm-image tag remove registry.example.com/team/app:v1 --key "pkcs11:token=signing;object=targets"`,
		Args:    cli.Exactly(1),
	}
	return o.changes(c, ks, false, func(_ context.Context, _ *tags.Repository, n tagName) (tuf.Change, string, error) {
		return tuf.Change{Remove: []string{n.tag}}, fmt.Sprintf("%s:%s is removed", n.repository, n.tag), nil
	})
}

// changes has a command sign a change of the tag that its argument names, of which want says what it is.
func (o *tagOptions) changes(c *cobra.Command, ks *keystore.Keystore, digestAllowed bool,
	want func(context.Context, *tags.Repository, tagName) (tuf.Change, string, error)) *cobra.Command {
	var keys keyFlags
	c.Flags().StringArrayVar(&keys.key, "key", nil, "key to sign with: a targets key, or that of a delegation; "+keyForms)
	keys.addOnline(c)
	wait := addWait(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(keys.key) == 0 {
			return cli.Required(c, "key", "pkcs11:token=signing;object=targets")
		}
		n, err := parseTag(args[0], digestAllowed)
		if err != nil {
			return err
		}
		return o.change(c, ks, n, keys, *wait, func(ctx context.Context, r *tags.Repository) (tuf.Change, string, error) {
			return want(ctx, r, n)
		})
	}
	return c
}

// change signs a change of tags and says what became of it.
func (o *tagOptions) change(c *cobra.Command, ks *keystore.Keystore, n tagName, keys keyFlags, wait time.Duration,
	want func(context.Context, *tags.Repository) (tuf.Change, string, error)) error {
	if err := cmp.Or(keys.checkOnline(c), tuf.CheckTag(n.tag)); err != nil {
		return err
	}
	ring := newKeyring(ks)
	defer ring.Close()
	return o.withRepository(n.repository, func(r *tags.Repository) error {
		change, what, err := want(c.Context(), r)
		if err != nil {
			return err
		}
		signers, err := ring.open(c.Context(), keys.all())
		if err != nil {
			return err
		}
		result, err := r.Change(c.Context(), change, signers, wait)
		if err != nil {
			return err
		}
		return tellResult(c.OutOrStdout(), what, n.repository, result, wait)
	})
}
