package main

import (
	"fmt"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/custody"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

func keyBackupCommand(ks *keystore.Keystore) *cobra.Command {
	var to, wrapping string
	c := &cobra.Command{
		Use:   "backup KEY",
		Short: "Write a key to a file, wrapped inside the module",
		Long: `Write a key that was made with --backup-key to a file. The module wraps (encrypts) it under the wrapping key; the file has its public
half and certificates beside it, and is of no use without a token that holds the wrapping key.`,
		Example: `  notation-hsm key backup "pkcs11:token=signing;object=release" --to release.backup.json`,
		Args:    cli.Exactly(1),
	}
	given := cli.AddSettings(c, append(cli.TokenSettings, config.CertificateChain)...)
	c.Flags().StringVar(&to, "to", "", "the file (required)")
	c.Flags().StringVar(&wrapping, "backup-key", "",
		"the wrapping key, by its label or URI (default: the only one on the token)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if to == "" {
			return failure.New(failure.Invalid, "a backup needs a file").WithHint("as in: --to release.backup.json")
		}
		s, err := ks.Resolve(args[0], given(), config.Flags)
		if err != nil {
			return err
		}
		w, err := custody.Backup(c.Context(), s, wrapping, to)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.ErrOrStderr(), "the key is in %s, wrapped by %q with id %x\n", to, w.Label, w.ID)
		return nil
	}
	return c
}

func keyRestoreCommand(ks *keystore.Keystore) *cobra.Command {
	var unauthenticated bool
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a key again from its backup, and prove it",
		Long: `Make a key again on a token that holds the wrapping key, with its certificates. Nothing is made unless the backup's MAC verifies under
the wrapping key. The new key is kept only if the module gave it the usage of the backup and it works: a test signature has to verify
under the public key in the backup, or, for a recipient's key, what is encrypted to that public key has to open. The key's URI is printed.`,
		Example: "  notation-hsm key restore release.backup.json --token signing-2",
		Args:    cli.Exactly(1),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	c.Flags().BoolVar(&unauthenticated, "unauthenticated", false,
		"restore a backup of version 1 too, which has no MAC, so that its usage and names may have been changed")
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := ks.Resolve("", given(), config.Flags)
		if err != nil {
			return err
		}
		out := c.ErrOrStderr()
		var accept func(custody.Unauthenticated) error
		if unauthenticated {
			accept = func(u custody.Unauthenticated) error {
				fmt.Fprintf(out,
					"warning: this backup has no MAC; check that it is the key you mean: %s, label %q, id %s, usage %s, "+
						"certificate of %q\n",
					u.Spec, u.Label, u.ID, u.Usage, u.Certificate)
				return nil
			}
		}
		r, err := custody.Restore(c.Context(), s, args[0], accept)
		if err != nil {
			return err
		}
		proof := "a test signature verifies under the old public key"
		if r.Usage == key.Decrypt {
			proof = "it decrypts what is encrypted to the old public key"
		}
		fmt.Fprintf(out, "the key is back, with %d certificate(s); %s\n", r.Certificates, proof)
		fmt.Fprintln(c.OutOrStdout(), r.URI)
		return nil
	}
	return c
}

func backupKeyCommand(ks *keystore.Keystore) *cobra.Command {
	return cli.Group("backup-key", "Make a wrapping key for backups, and bring it to other tokens",
		backupKeyGenerateCommand(ks), backupKeyRestoreCommand(ks))
}

const soPINHelp = "where the security officer's PIN comes from, as --pin-source (required)"

func backupKeyGenerateCommand(ks *keystore.Keystore) *cobra.Command {
	var sharing custody.Sharing
	var so string
	c := &cobra.Command{
		Use:   "generate",
		Short: "Make a wrapping key, split among custodians",
		Long: `Make an AES-256 key that wraps other keys and does nothing else, put it on the token as one that the security officer trusts, and
write a share of it for each custodian. As many of them as the threshold says can bring it to another token together; fewer know
nothing of it. Outside the token it is in this command's memory alone, while it is split.

With --to, once for each share and in their order, each share is encrypted to its custodian before it is written: an age or SSH public
key, or the certificate of a key in the custodian's own module. Without, the files are in the clear: hand them out, and delete them here.`,
		Example: `  notation-hsm key backup-key generate --token signing --label backup --threshold 2 --folder shares --so-pin-source prompt \
    --to age1... --to "$(cat bob.pub)" --to cert:carol.pem`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.ModulePath, config.Token, config.SlotID, config.Timeout)
	c.Flags().StringVar(&sharing.Label, "label", "", "the wrapping key's label (required)")
	c.Flags().IntVar(&sharing.Shares, "shares", 0, "how many shares to make (default: one for each --to)")
	c.Flags().IntVar(&sharing.Threshold, "threshold", 0, "how many of them make the key again (required)")
	c.Flags().StringArrayVar(&sharing.Custodians, "to", nil,
		"whom a share is encrypted to: age1..., ssh-..., cert:FILE or pubkey:FILE; once for each share")
	c.Flags().StringVar(&sharing.Folder, "folder", "", "folder for the share files (required)")
	c.Flags().StringVar(&so, "so-pin-source", "", soPINHelp)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if sharing.Folder == "" {
			return failure.New(failure.Invalid, "the shares need a folder").WithHint("as in: --folder shares")
		}
		if !c.Flags().Changed("shares") {
			sharing.Shares = len(sharing.Custodians)
		}
		s, err := ks.Resolve("", given(), config.Flags)
		if err != nil {
			return err
		}
		w, paths, err := custody.NewWrappingKey(c.Context(), s, so, sharing)
		if err != nil {
			return err
		}
		out := c.ErrOrStderr()
		fmt.Fprintf(out, "the wrapping key %q with id %x is on the token; %d of these make it again:\n", w.Label, w.ID,
			sharing.Threshold)
		for i, path := range paths {
			if len(sharing.Custodians) == 0 {
				fmt.Fprintf(out, "  %s\n", path)
			} else {
				fmt.Fprintf(out, "  %s for %s\n", path, sharing.Custodians[i])
			}
		}
		if len(sharing.Custodians) > 0 {
			fmt.Fprintln(out, "next: give each custodian theirs; try a restoration with them, on a spare token")
			return nil
		}
		fmt.Fprintln(out,
			"warning: these files are in the clear: whoever reads enough of them has the key; --to encrypts each to "+
				"its custodian")
		fmt.Fprintln(out, "next: give each custodian one of them, and delete them here")
		return nil
	}
	return c
}

func backupKeyRestoreCommand(ks *keystore.Keystore) *cobra.Command {
	var o custody.ShareFiles
	var so string
	var unauthenticated bool
	c := &cobra.Command{
		Use:   "restore",
		Short: "Bring a wrapping key to a token, from the shares of its custodians",
		Long: `Bring a wrapping key to a token, from as many shares as its threshold says. Nothing is put on the token unless all of them are whole, of
one key, and their tag is that of the key they make: label, threshold and number of shares are as they were when it was made.

Encrypted shares are opened in memory, each with the identity of its custodian: a file with an age identity or an SSH private key, whose
passphrase is asked for on the terminal, or the URI of a key in a module, whose PIN comes from where the URI or the config file says.`,
		Example: `  notation-hsm key backup-key restore --token signing-2 --so-pin-source prompt --shares share-1.age,share-3.jwe \
    --identity alice.txt --identity "pkcs11:token=carol;object=share?pin-source=prompt"`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.ModulePath, config.Token, config.SlotID, config.Timeout)
	c.Flags().StringSliceVar(&o.Files, "shares", nil, "share files, with commas between them or one by one (required)")
	c.Flags().StringArrayVar(&o.Identities, "identity", nil,
		"what opens an encrypted share: a file with an age or SSH key, or the URI of a key in a module; repeat for others")
	c.Flags().StringVar(&so, "so-pin-source", "", soPINHelp)
	c.Flags().BoolVar(&unauthenticated, "unauthenticated", false,
		"use shares of version 1 too, which have no tag, so that the label may have been changed")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := ks.Resolve("", given(), config.Flags)
		if err != nil {
			return err
		}
		out := c.ErrOrStderr()
		o.Ask = cli.AskPassphrase
		if unauthenticated {
			o.Accept = func(u custody.Untagged) error {
				fmt.Fprintf(out,
					"warning: these shares have no tag; check that it is the key you mean: label %q, %d of %d shares\n", u.Label,
					u.Threshold, u.Of)
				return nil
			}
		}
		w, err := custody.RestoreWrappingKey(c.Context(), s, so, o)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "the wrapping key %q with id %x is on the token\n", w.Label, w.ID)
		return nil
	}
	return c
}
