package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

func tagDelegateCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	return cli.Group("delegate", "Say who else may sign which tags", delegateAddCommand(ks, o),
		delegateRemoveCommand(ks, o))
}

func delegateAddCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	var keys keyFlags
	var paths []string
	var threshold int
	c := &cobra.Command{
		Use:   "add REPO NAME --paths PATTERN --key KEY --targets KEY",
		Short: "Let a signer sign tags, or change what it may sign",
		Long: `Let a signer sign the tags that match its paths: * is any text, ? one character, [a-z] one of a range.
--key is the signer's key. The key of a signer elsewhere is given as pubkey:FILE, a file that
'notation-hsm cert export --public KEY' writes. An existing delegation of the name is replaced.

Of several roles that sign a tag, the first counts: the targets keys, and then delegations in the order
in which they were added. A tag that matches the paths of a delegation that has signed nothing yet does
not verify, unless a role before it has signed the tag.`,
		Example: `  hsm-image tag delegate add registry.example.com/team/app alice --paths 'release-*' \
    --key pubkey:alice-public.pem --targets "pkcs11:token=signing;object=targets"`,
		Args: cli.Exactly(2),
	}
	c.Flags().StringArrayVar(&paths, "paths", nil, "pattern of the tags that the signer may sign; can be repeated")
	c.Flags().StringArrayVar(&keys.key, "key", nil, "key of the signer: "+publicForms)
	c.Flags().IntVar(&threshold, "threshold", 1, "how many of the signer's keys have to sign")
	keys.addTargets(c)
	keys.addOnline(c)
	wait := addWait(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := parseRepository(args[0])
		if err != nil {
			return err
		}
		switch {
		case len(paths) == 0:
			return cli.Required(c, "paths", "release-*")
		case len(keys.key) == 0:
			return cli.Required(c, "key", "pubkey:alice-public.pem")
		case len(keys.targets) == 0:
			return cli.Required(c, "targets", "pkcs11:token=signing;object=targets")
		}
		if err := keys.checkOnline(c); err != nil {
			return err
		}
		ring := newKeyring(ks)
		defer ring.Close()
		return o.withRepository(name, func(r *tags.Repository) error {
			role, own, err := ring.publics(c.Context(), keys.key, threshold)
			if err != nil {
				return err
			}
			keys.key = nil
			signers, err := ring.open(c.Context(), keys.all())
			if err != nil {
				return err
			}
			d := tuf.Delegation{Name: args[1], Paths: paths, RoleKeys: role}
			result, err := r.Delegate(c.Context(), d, append(signers, own...), *wait)
			if err != nil {
				return err
			}
			return tellResult(c.OutOrStdout(), fmt.Sprintf("%s may sign %s of %s", args[1],
				strings.Join(paths, ", "), name), name, result, *wait)
		})
	}
	return c
}

func delegateRemoveCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	var keys keyFlags
	c := &cobra.Command{
		Use:   "remove REPO NAME --targets KEY",
		Short: "Take a signer's right to sign tags, and all tags that it has signed",
		Long: `Remove a delegation. What it has signed does not verify any more, as soon as this is published: sign the
tags that are still good with another key.`,
		Example: `  hsm-image tag delegate remove registry.example.com/team/app alice \
    --targets "pkcs11:token=signing;object=targets"`,
		Args: cli.Exactly(2),
	}
	keys.addTargets(c)
	keys.addOnline(c)
	wait := addWait(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := parseRepository(args[0])
		if err != nil {
			return err
		}
		if len(keys.targets) == 0 {
			return cli.Required(c, "targets", "pkcs11:token=signing;object=targets")
		}
		if err := keys.checkOnline(c); err != nil {
			return err
		}
		if args[1] == tuf.Tags {
			return failure.New(failure.Invalid, "%q is the role of the targets keys, which cannot be removed", tuf.Tags).
				WithHint("to change the targets keys, run: hsm-image tag rotate " + name + " targets")
		}
		ring := newKeyring(ks)
		defer ring.Close()
		return o.withRepository(name, func(r *tags.Repository) error {
			signers, err := ring.open(c.Context(), keys.all())
			if err != nil {
				return err
			}
			if _, err := r.Delegation(c.Context(), args[1]); err != nil {
				return err
			}
			result, err := r.Delegate(c.Context(), tuf.Delegation{Name: args[1]}, signers, *wait)
			if err != nil {
				return err
			}
			return tellResult(c.OutOrStdout(), args[1]+" may not sign tags of "+name, name, result, *wait)
		})
	}
	return c
}
