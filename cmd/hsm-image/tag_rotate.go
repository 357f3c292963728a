package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

func tagRotateCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	var keys keyFlags
	var fresh []string
	var threshold int
	var to string
	c := &cobra.Command{
		Use:   "rotate REPO ROLE --new KEY",
		Short: "Replace the keys of root, targets, snapshot, timestamp or a delegation",
		Long: `Replace all keys of a role by those of --new.

The keys of root, targets, snapshot and timestamp are in the root: give the root keys with --root; to
replace the root's own keys, the old ones there and the new ones with --new. If root keys are elsewhere,
the new root is written to a file: its custodians sign it with 'hsm-image tag root sign FILE', and
'hsm-image tag root push REPO FILE' publishes it.

The keys of a delegation are named by the targets keys: give them with --targets. What the role has
signed is signed again by the new keys. With a new key as pubkey:FILE, its holder signs that, with
'hsm-image tag refresh REPO --key KEY'; the change is published with it.

To publish new snapshot or timestamp keys, give all of the new ones.`,
		Example: `  hsm-image tag rotate registry.example.com/team/app timestamp \
    --new "pkcs11:token=online;object=timestamp-2" \
    --root "pkcs11:token=root-1;object=root" --root "pkcs11:token=root-2;object=root" \
    --snapshot "pkcs11:token=online;object=snapshot"
  hsm-image tag rotate registry.example.com/team/app alice --new pubkey:alice-2-public.pem \
    --targets "pkcs11:token=signing;object=targets"`,
		Args: cli.Exactly(2),
	}
	c.Flags().StringArrayVar(&fresh, "new", nil, "new key of the role: "+publicForms)
	c.Flags().IntVar(&threshold, "threshold", 0, "how many of the new keys have to sign (default: as many as before)")
	c.Flags().StringVar(&to, "to", "", "file for a root that lacks signatures (default: root-NAME-VERSION.json)")
	keys.addRoot(c)
	keys.addTargets(c)
	keys.addOnline(c)
	wait := addWait(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := parseRepository(args[0])
		if err != nil {
			return err
		}
		if len(fresh) == 0 {
			return cli.Required(c, "new", "pkcs11:token=signing;object=new")
		}
		if c.Flags().Changed("threshold") && threshold < 1 {
			return cli.Usage(c, failure.New(failure.Invalid, "--threshold has to be 1 or more"))
		}
		ring := newKeyring(ks)
		defer ring.Close()
		return o.withRepository(name, func(r *tags.Repository) error {
			role, own, err := ring.publics(c.Context(), fresh, threshold)
			if err != nil {
				return err
			}
			signers, err := ring.open(c.Context(), keys.all())
			if err != nil {
				return err
			}
			signers = append(signers, own...)
			var result *tags.Result
			if args[1] == tuf.Tags {
				return failure.New(failure.Invalid, "the role %q has the keys of targets", tuf.Tags).
					WithHint("run: hsm-image tag rotate " + name + " targets")
			}
			if slices.Contains([]string{tuf.Root, tuf.Targets, tuf.Snapshot, tuf.Timestamp}, args[1]) {
				root, err := r.NextRoot(c.Context(), map[string]tuf.RoleKeys{args[1]: role}, signers)
				if err != nil {
					return err
				}
				if root.Lacking() > 0 {
					return writeRoot(c, root, name, cmp.Or(to, rootFileName(name, root.Version())))
				}
				result, err = r.ProposeRoot(c.Context(), root, signers, *wait)
				if err != nil {
					return err
				}
			} else {
				d, err := r.Delegation(c.Context(), args[1])
				if err != nil {
					return err
				}
				role.Threshold = cmp.Or(role.Threshold, d.Threshold)
				d.RoleKeys = role
				if result, err = r.Delegate(c.Context(), d, signers, *wait); err != nil {
					return err
				}
			}
			return tellResult(c.OutOrStdout(), "the new keys of "+args[1]+" of "+name, name, result, *wait)
		})
	}
	return c
}

// writeRoot writes a root that lacks signatures to a file, and says what to do with it.
func writeRoot(c *cobra.Command, root *tuf.RootFile, name, to string) error {
	if err := checkUnfinished(to); err != nil {
		return err
	}
	data, err := root.Encode()
	if err != nil {
		return err
	}
	if err := state.Write(to, data, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(c.OutOrStdout(), "wrote %s, which lacks %d signatures: have its custodians run\n"+
		"  hsm-image tag root sign %s --key KEY\nand then run\n  hsm-image tag root push %s %s\n", to, root.Lacking(), to,
		name, to)
	return nil
}
