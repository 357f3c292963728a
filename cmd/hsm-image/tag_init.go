package main

import (
	"cmp"
	"context"
	"fmt"
	"path"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

func tagInitCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	var keys keyFlags
	var threshold, targetsThreshold int
	var to string
	c := &cobra.Command{
		Use:   "init REPO --root KEY --targets KEY --snapshot KEY --timestamp KEY",
		Short: "Begin to sign the tags of a repository",
		Long: `Make the root of a repository's tags, publish the first metadata in the registry, and pin the root in
the trust manifest. The root is also written to a file, which others pin with
'notation-hsm trust tags add REPO --root FILE'.

With root keys elsewhere, given as pubkey:FILE, fewer than --threshold of them may sign here. Then
only the file is written: each custodian signs it with 'hsm-image tag root sign FILE --key KEY', and
'hsm-image tag root push REPO FILE' publishes it.`,
		Example: `  hsm-image tag init registry.example.com/team/app \
    --root "pkcs11:token=root-1;object=root" --root "pkcs11:token=root-2;object=root" --threshold 2 \
    --targets "pkcs11:token=signing;object=targets" \
    --snapshot "pkcs11:token=online;object=snapshot" --timestamp "pkcs11:token=online;object=timestamp"`,
		Args: cli.Exactly(1),
	}
	c.Flags().StringArrayVar(&keys.root, "root", nil, "root key: "+publicForms)
	c.Flags().IntVar(&threshold, "threshold", 1, "how many root keys have to sign a root")
	c.Flags().StringArrayVar(&keys.targets, "targets", nil, "targets key: "+publicForms)
	c.Flags().IntVar(&targetsThreshold, "targets-threshold", 1, "how many targets keys have to sign")
	c.Flags().StringArrayVar(&keys.snapshot, "snapshot", nil, "snapshot key: "+publicForms)
	c.Flags().StringArrayVar(&keys.timestamp, "timestamp", nil, "timestamp key: "+publicForms)
	c.Flags().StringVar(&to, "to", "", "file for the root (default: root-NAME.json, of the repository's last part)")
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := parseRepository(args[0])
		if err != nil {
			return err
		}
		for flag, given := range map[string][]string{"root": keys.root, "targets": keys.targets, "snapshot": keys.snapshot,
			"timestamp": keys.timestamp} {
			if len(given) == 0 {
				return cli.Required(c, flag, "pkcs11:token=signing;object="+flag)
			}
		}
		if threshold < 1 || targetsThreshold < 1 {
			return cli.Usage(c, failure.New(failure.Invalid, "--threshold and --targets-threshold have to be 1 or more"))
		}
		to = cmp.Or(to, rootFileName(name, 1))
		if err := o.notPinned(name); err != nil {
			return err
		}
		ring := newKeyring(ks)
		defer ring.Close()
		root, signers, err := ring.newRoot(c.Context(), keys, threshold, targetsThreshold)
		if err != nil {
			return err
		}
		if err := root.SignAny(c.Context(), signers); err != nil {
			return err
		}
		n := root.Lacking()
		if n == 0 {
			if err := o.checkVacant(c.Context(), name); err != nil {
				return err
			}
		}
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
		if n > 0 {
			fmt.Fprintf(c.OutOrStdout(), "wrote %s, which lacks %d signatures: have its custodians run\n"+
				"  hsm-image tag root sign %s --key KEY\nand then run\n  hsm-image tag root push %s %s --targets KEY "+
				"--snapshot KEY --timestamp KEY\n", to, n, to, name, to)
			return nil
		}
		return o.begin(c, name, root, to, signers)
	}
	return c
}

// rootFileName returns the name of the file of a root in the current folder: root-app.json for the first one of
// example.com/app, and then root-app-2.json and so on, so that no root replaces the one that verifiers pin.
func rootFileName(repository string, version int64) string {
	name := "root-" + path.Base(repository)
	if version > 1 {
		name = fmt.Sprintf("%s-%d", name, version)
	}
	return name + ".json"
}

// checkUnfinished fails with Conflict if a file has a root that lacks signatures: those that it has would be lost.
func checkUnfinished(file string) error {
	root, err := readRoot(file, "")
	if err != nil || root.Lacking() == 0 {
		return nil //nolint:nilerr // what is no root can be replaced
	}
	return failure.New(failure.Conflict, "%s has a root that still lacks signatures", file).
		WithHint("have it signed with 'hsm-image tag root sign', remove it, or name another file with --to")
}

// checkVacant fails with Conflict if a repository has signed tags, before a root is made that nobody can publish.
func (o *tagOptions) checkVacant(ctx context.Context, name string) error {
	r, closeAll, err := o.openWith(name, nil)
	if err != nil {
		return err
	}
	defer closeAll()
	return r.CheckVacant(ctx)
}

// notPinned fails with Conflict if the trust manifest has a root for a repository.
func (o *tagOptions) notPinned(name string) error {
	path, err := trust.Path(o.manifest)
	if err != nil {
		return err
	}
	if pin, err := trust.Pin(path, name); err == nil {
		return failure.New(failure.Conflict, "the trust manifest %s has a root for the tags of %s already, %s", path, name,
			pin.Fingerprint).WithHint("to begin anew, run first: notation-hsm trust tags remove " + name)
	} else if failure.From(err).Kind != failure.NotFound {
		return err
	}
	return nil
}

// newRoot returns the first root, and the signers of all keys that are not elsewhere.
func (k *keyring) newRoot(ctx context.Context, keys keyFlags, threshold, targetsThreshold int) (*tuf.RootFile,
	[]*tuf.Signer, error) {
	var all []*tuf.Signer
	var roles [4]tuf.RoleKeys
	for i, r := range []struct {
		references []string
		threshold  int
	}{{keys.root, threshold}, {keys.targets, targetsThreshold}, {keys.snapshot, 1}, {keys.timestamp, 1}} {
		role, signers, err := k.publics(ctx, r.references, r.threshold)
		if err != nil {
			return nil, nil, err
		}
		roles[i], all = role, append(all, signers...)
	}
	root, err := tuf.NewRoot(roles[0], roles[1], roles[2], roles[3])
	return root, all, err
}

// begin publishes the first metadata, and pins the root.
func (o *tagOptions) begin(c *cobra.Command, name string, root *tuf.RootFile, file string,
	signers []*tuf.Signer) error {
	data, err := root.Encode()
	if err != nil {
		return err
	}
	r, closeAll, err := o.openWith(name, data)
	if err != nil {
		return err
	}
	defer closeAll()
	if err := r.Init(c.Context(), root, signers); err != nil {
		return err
	}
	path, err := trust.Path(o.manifest)
	if err != nil {
		return err
	}
	if _, err := trust.Init(c.Context(), path); err != nil {
		return err
	}
	pin, err := trust.AddTags(c.Context(), path, trust.Tags{Scope: name, Root: data}, false)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.OutOrStdout(), "published the first metadata of %s\npinned its root in %s, fingerprint %s\n"+
		"verifiers pin %s; 'notation-hsm trust export' writes it for this machine\n", name, path, pin.Fingerprint, file)
	return nil
}
