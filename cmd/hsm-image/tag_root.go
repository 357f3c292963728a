package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

func tagRootCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	return cli.Group("root", "Sign a root that is passed around as a file", rootSignCommand(ks), rootShowCommand(),
		rootPushCommand(ks, o))
}

const maxRootFile = 256 << 10 // bytes

// readRoot reads a root.json; previous is the file of the root before it, or "".
func readRoot(path, previous string) (*tuf.RootFile, error) {
	var before []byte
	var err error
	if previous != "" {
		if before, err = readFile(previous); err != nil {
			return nil, err
		}
	}
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	root, err := tuf.ParseRoot(data, before)
	if err != nil && failure.From(err).Kind == failure.Denied {
		return nil, failure.New(failure.Invalid, "%s is not a root: %w", path, err).
			WithHint("name the file that 'hsm-image tag init' or 'hsm-image tag rotate' has written")
	}
	return root, err
}

func readFile(path string) ([]byte, error) {
	data, err := bound.ReadFile(path, maxRootFile)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the root: %w", err).
			WithHint("name the file that 'hsm-image tag init' or 'hsm-image tag rotate' has written")
	}
	return data, nil
}

func rootSignCommand(ks *keystore.Keystore) *cobra.Command {
	var keys keyFlags
	var previous string
	c := &cobra.Command{
		Use:   "sign FILE --key KEY",
		Short: "Add a custodian's signature to a root",
		Long: `Show a root and add the signature of one of its keys. The machine needs no network. To sign with a key
that only the root before had, name that root's file with --previous.`,
		Example: `  hsm-image tag root sign root-app.json --key "pkcs11:token=root-2;object=root"`,
		Args:    cli.Exactly(1),
	}
	c.Flags().StringArrayVar(&keys.root, "key", nil, "root key; "+keyForms)
	c.Flags().StringVar(&previous, "previous", "",
		"file of the root before, whose keys sign the change of the root's keys")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(keys.root) == 0 {
			return cli.Required(c, "key", "pkcs11:token=root-2;object=root")
		}
		root, err := readRoot(args[0], previous)
		if err != nil {
			return err
		}
		ring := newKeyring(ks)
		defer ring.Close()
		signers, err := ring.open(c.Context(), keys.root)
		if err != nil {
			return err
		}
		if err := root.Sign(c.Context(), signers); err != nil {
			return err
		}
		data, err := root.Encode()
		if err != nil {
			return err
		}
		if err := state.Write(args[0], data, 0o644); err != nil {
			return err
		}
		return printRoot(c, root, false)
	}
	return c
}

func rootShowCommand() *cobra.Command {
	var previous string
	var asJSON bool
	c := &cobra.Command{
		Use:     "show FILE",
		Short:   "Show the keys of a root, and who has signed it",
		Example: `  hsm-image tag root show root-app.json`,
		Args:    cli.Exactly(1),
	}
	c.Flags().StringVar(&previous, "previous", "", "file of the root before, whose keys sign as well")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		root, err := readRoot(args[0], previous)
		if err != nil {
			return err
		}
		return printRoot(c, root, asJSON)
	}
	return c
}

// printRoot prints the roles of a root, and how many signatures it lacks.
func printRoot(c *cobra.Command, root *tuf.RootFile, asJSON bool) error {
	if asJSON {
		return cli.PrintJSON(c.OutOrStdout(), struct {
			Version int64          `json:"version"`
			Lacking int            `json:"lacking"`
			Roles   []tuf.RoleInfo `json:"roles"`
		}{root.Version(), root.Lacking(), root.Describe()})
	}
	roles := root.Describe()
	var rows [][]string
	for _, r := range roles {
		rows = append(rows, []string{r.Name, fmt.Sprintf("%d of %s", r.Threshold, shortIDs(r.Keys))})
	}
	if err := cli.PrintTable(c.OutOrStdout(), []string{"ROLE", "KEYS"}, rows); err != nil {
		return err
	}
	fmt.Fprintf(c.OutOrStdout(), "version %d, expires %s, signed by %s, lacks %d signatures\n", root.Version(),
		cli.FormatTime(&roles[0].Expires), cli.OrDash(shortIDs(roles[0].Signed)), root.Lacking())
	return nil
}

func rootPushCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	var keys keyFlags
	c := &cobra.Command{
		Use:   "push REPO FILE",
		Short: "Publish a root that its custodians have signed",
		Long: `Publish a root: the first one of a repository, with the keys of targets, snapshot and timestamp, or the
one that follows the published root. If it has new targets keys, give them: they sign again what the
old ones have signed.`,
		Example: `  hsm-image tag root push registry.example.com/team/app root-app.json`,
		Args:    cli.Exactly(2),
	}
	keys.addTargets(c)
	keys.addOnline(c)
	wait := addWait(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := parseRepository(args[0])
		if err != nil {
			return err
		}
		root, err := readRoot(args[1], "")
		if err != nil {
			return err
		}
		ring := newKeyring(ks)
		defer ring.Close()
		signers, err := ring.open(c.Context(), keys.all())
		if err != nil {
			return err
		}
		if path, err := trust.Path(o.manifest); err != nil {
			return err
		} else if _, err := trust.Pin(path, name); root.Version() == 1 && err != nil &&
			failure.From(err).Kind == failure.NotFound {
			return o.begin(c, name, root, args[1], signers)
		}
		return o.withRepository(name, func(r *tags.Repository) error {
			data, err := root.Encode()
			if err != nil {
				return err
			}
			next, err := r.ParseRoot(c.Context(), data)
			if err != nil {
				return err
			}
			result, err := r.ProposeRoot(c.Context(), next, signers, *wait)
			if err != nil {
				return err
			}
			return tellResult(c.OutOrStdout(), fmt.Sprintf("version %d of the root of %s", next.Version(), name), name, result,
				*wait)
		})
	}
	return c
}
