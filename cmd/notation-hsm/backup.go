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
		Short: "Back up a key to a file, wrapped inside the module",
		Long: `Back up a key that was generated with --backup-key to a file. The module wraps (encrypts) the key
under the wrapping key. The file also has the public half and the certificates of the key. Only a
token that holds the wrapping key can restore it.`,
		Example: `  notation-hsm key backup "pkcs11:token=signing;object=release" --to release.backup.json`,
		Args:    cli.Exactly(1),
	}
	given := cli.AddSettings(c, append(cli.TokenSettings, config.CertificateChain)...)
	c.Flags().StringVar(&to, "to", "", "file to write (required)")
	c.Flags().StringVar(&wrapping, "backup-key", "",
		"label or URI of the wrapping key (default: the only one on the token)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if to == "" {
			return cli.Required(c, "to", "release.backup.json")
		}
		s, err := ks.Resolve(args[0], given(), config.Flags)
		if err != nil {
			return err
		}
		w, err := custody.Backup(c.Context(), s, wrapping, to)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.ErrOrStderr(), "wrote the key to %s, wrapped by the key %q with id %x\n", to, w.Label, w.ID)
		return nil
	}
	return c
}

func keyRestoreCommand(ks *keystore.Keystore) *cobra.Command {
	var unauthenticated bool
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Restore a key from its backup, and prove that it works",
		Long: `Restore a key and its certificates on a token that holds the wrapping key. Nothing is created unless
the MAC of the backup verifies under the wrapping key. The restored key is deleted again unless the
module gave it the usage in the backup and it works: its test signature must verify under the public
key in the backup; a recipient's key must decrypt what is encrypted to that public key. The command
prints the URI of the key.`,
		Example: "  notation-hsm key restore release.backup.json --token signing-2",
		Args:    cli.Exactly(1),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	c.Flags().BoolVar(&unauthenticated, "unauthenticated", false,
		"also restore a backup of version 1, which has no MAC: its usage and names can be forged")
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
					"warning: this backup has no MAC; check that this is the right key: %s, label %q, id %s, usage %s, "+
						"certificate of %q\n",
					u.Spec, u.Label, u.ID, u.Usage, u.Certificate)
				return nil
			}
		}
		r, err := custody.Restore(c.Context(), s, args[0], accept)
		if err != nil {
			return err
		}
		proof := "its test signature verifies under the public key in the backup"
		if r.Usage == key.Decrypt {
			proof = "it decrypts what is encrypted to the public key in the backup"
		}
		fmt.Fprintf(out, "restored the key with %d certificate(s): %s\n", r.Certificates, proof)
		fmt.Fprintln(c.OutOrStdout(), r.URI)
		return nil
	}
	return c
}

func backupKeyCommand(ks *keystore.Keystore) *cobra.Command {
	return cli.Group("backup-key", "Generate a wrapping key for backups, and restore it on other tokens",
		backupKeyGenerateCommand(ks), backupKeyRestoreCommand(ks))
}

const soPINHelp = "where the security officer's PIN comes from, in the format of --pin-source (required)"

const soPINExample = "prompt"

func backupKeyGenerateCommand(ks *keystore.Keystore) *cobra.Command {
	var sharing custody.Sharing
	var so string
	c := &cobra.Command{
		Use:   "generate",
		Short: "Generate a wrapping key, split among custodians",
		Long: `Generate an AES-256 key that can only wrap other keys, put it on the token as a key that the
security officer trusts, and write a share of it for each custodian. Custodians can restore the key
on another token when as many of them as --threshold come together; fewer learn nothing about it.
Outside the token, the whole key exists only in the memory of this command.

With --to, given once for each share and in their order, each share is encrypted to its custodian
before it is written: to an age or SSH public key, or to the certificate of a key in the custodian's
module. Without --to, the files are not encrypted: give them to the custodians, and delete them
here.`,
		Example: `  notation-hsm key backup-key generate --token signing --label backup --threshold 2 \
    --folder shares --so-pin-source prompt --to age1... --to "$(cat bob.pub)" --to cert:carol.pem`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.ModulePath, config.Token, config.SlotID, config.Timeout)
	c.Flags().StringVar(&sharing.Label, "label", "", "label of the wrapping key (required)")
	c.Flags().IntVar(&sharing.Shares, "shares", 0, "how many shares to write (default: one for each --to)")
	c.Flags().IntVar(&sharing.Threshold, "threshold", 0, "how many shares restore the key, at least 2 (required)")
	c.Flags().StringArrayVar(&sharing.Custodians, "to", nil,
		"custodian to encrypt a share to: age1..., ssh-..., cert:FILE or pubkey:FILE; once for each share")
	c.Flags().StringVar(&sharing.Folder, "folder", "", "folder for the share files (required)")
	c.Flags().StringVar(&so, "so-pin-source", "", soPINHelp)
	c.RunE = func(c *cobra.Command, _ []string) error {
		switch {
		case sharing.Label == "":
			return cli.Required(c, "label", "backup")
		case sharing.Folder == "":
			return cli.Required(c, "folder", "shares")
		case sharing.Threshold == 0:
			return cli.Required(c, "threshold", "2")
		case so == "":
			return cli.Required(c, "so-pin-source", soPINExample)
		case sharing.Shares == 0 && len(sharing.Custodians) == 0:
			return cli.Usage(c, failure.New(failure.Invalid, "--to or --shares is required").
				WithHint("give --to once for each custodian; or --shares for shares that are not encrypted"))
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
		fmt.Fprintf(out, "the wrapping key %q with id %x is on the token; %d of these files restore it:\n", w.Label,
			w.ID, sharing.Threshold)
		for i, path := range paths {
			if len(sharing.Custodians) == 0 {
				fmt.Fprintf(out, "  %s\n", path)
			} else {
				fmt.Fprintf(out, "  %s for %s\n", path, sharing.Custodians[i])
			}
		}
		if len(sharing.Custodians) > 0 {
			fmt.Fprintln(out, "next: give each custodian their file, and test a restore on another token with them")
			return nil
		}
		fmt.Fprintln(out,
			"warning: these files are not encrypted: whoever reads enough of them has the key; --to encrypts each to "+
				"its custodian")
		fmt.Fprintln(out, "next: give each custodian one of these files, and delete them here")
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
		Short: "Restore a wrapping key on a token, from the shares of its custodians",
		Long: `Restore a wrapping key on a token from shares, as many as its threshold. The key is put on the token
only if all shares are unchanged and belong to one key, and their tag verifies under that key: it
authenticates the label, the threshold and the number of shares.

Encrypted shares are decrypted in memory, each with the identity of its custodian: a file with an
age identity or an SSH private key, whose passphrase is asked for on the terminal, or the URI of a
key in a module, whose PIN comes from the pin-source of the URI or the config file.`,
		Example: `  notation-hsm key backup-key restore --token signing-2 --so-pin-source prompt \
    --shares share-1.age,share-3.jwe \
    --identity alice.txt --identity "pkcs11:token=carol;object=share?pin-source=prompt"`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.ModulePath, config.Token, config.SlotID, config.Timeout)
	c.Flags().StringSliceVar(&o.Files, "shares", nil, "share files, separated by commas; can be repeated (required)")
	c.Flags().StringArrayVar(&o.Identities, "identity", nil,
		"identity that decrypts a share: a file with an age or SSH key, or the URI of a key in a module; can be repeated")
	c.Flags().StringVar(&so, "so-pin-source", "", soPINHelp)
	c.Flags().BoolVar(&unauthenticated, "unauthenticated", false,
		"also use shares of version 1, which have no tag: their label can be forged")
	c.RunE = func(c *cobra.Command, _ []string) error {
		switch {
		case len(o.Files) == 0:
			return cli.Required(c, "shares", "share-1.age,share-3.jwe")
		case so == "":
			return cli.Required(c, "so-pin-source", soPINExample)
		}
		s, err := ks.Resolve("", given(), config.Flags)
		if err != nil {
			return err
		}
		out := c.ErrOrStderr()
		o.Ask = cli.AskPassphrase
		if unauthenticated {
			o.Accept = func(u custody.Untagged) error {
				fmt.Fprintf(out,
					"warning: these shares have no tag; check that this is the right key: label %q, %d of %d shares\n", u.Label,
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
