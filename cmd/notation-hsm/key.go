package main

import (
	"fmt"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/custody"
)

func keyCommand(ks *keystore.Keystore) *cobra.Command {
	direct := ks.Direct()
	return cli.Group("key", "Generate, show and manage keys in a module", keyGenerateCommand(direct), keyListCommand(ks),
		keyShowCommand(ks), keyRotateCommand(direct), keyDeleteCommand(direct),
		keyBackupCommand(direct), keyRestoreCommand(direct), backupKeyCommand(direct))
}

func keyGenerateCommand(ks *keystore.Keystore) *cobra.Command {
	var r custody.KeyRequest
	c := &cobra.Command{
		Use:   "generate",
		Short: "Generate a key inside the module",
		Long: `Generate a key pair inside the module. The private key is sensitive, not extractable, and can only
sign; with --usage decrypt it can only open encrypted images (decrypt and unwrap with RSA, derive
with an elliptic curve). A label or id that another key on the token has is refused. The command
prints the URI of the new key.

With --backup-key, the key can leave the token, wrapped (encrypted) by a key that the security
officer trusts. 'key backup' needs this.`,
		Example: `  notation-hsm key generate --token signing --spec EC-256 --label release
  notation-hsm key generate --token signing --spec EC-256 --label nodes --usage decrypt`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	c.Flags().StringVar(&r.Spec, "spec", "EC-256", "RSA-2048, RSA-3072, RSA-4096, EC-256, EC-384 or EC-521")
	c.Flags().StringVar(&r.Usage, "usage", "sign", "sign; or decrypt, for a recipient of encrypted images")
	c.Flags().StringVar(&r.Label, "label", "", "label of the key, CKA_LABEL (required)")
	c.Flags().StringVar(&r.ID, "id", "", "id of the key, CKA_ID, in hex (default: random)")
	c.Flags().StringVar(&r.BackupKey, "backup-key", "",
		"label or URI of the wrapping key that can back up the key")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if r.Label == "" {
			return cli.Required(c, "label", "release")
		}
		s, err := ks.Resolve("", given(), config.Flags)
		if err != nil {
			return err
		}
		uri, extra, err := custody.Generate(c.Context(), s, r)
		if err != nil {
			return err
		}
		if extra != "" {
			fmt.Fprintf(c.ErrOrStderr(), "warning: the module does not limit keys to one usage: this key can also %s\n", extra)
		}
		if r.BackupKey != "" {
			fmt.Fprintln(c.ErrOrStderr(),
				"warning: this key can leave the token, wrapped by a key that the security officer trusts; to prevent that, "+
					"generate keys without --backup-key")
		}
		fmt.Fprintln(c.OutOrStdout(), uri)
		return nil
	}
	return c
}

func keyListCommand(ks *keystore.Keystore) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the private keys on a token",
		Example: "  notation-hsm key list --token signing",
		Args:    cli.Exactly(0),
	}
	given := cli.AddSettings(c, append(cli.TokenSettings, config.CertificateChain)...)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := ks.Resolve("", given(), config.Flags)
		if err != nil {
			return err
		}
		keys, err := custody.Keys(c.Context(), s)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.PrintJSON(c.OutOrStdout(), keys)
		}
		rows := make([][]string, len(keys))
		for i, k := range keys {
			expires := "-"
			if k.Certificate != nil {
				expires = k.Certificate.NotAfter.Format("2006-01-02")
			}
			rows[i] = []string{cli.OrDash(k.Spec), fmt.Sprintf("%q", k.Label), cli.OrDash(k.ID), keyUsages(k), expires,
				usable(k), k.URI}
		}
		return cli.PrintTable(c.OutOrStdout(),
			[]string{"SPEC", "LABEL", "ID", "USAGE", "CERTIFICATE UNTIL", "NOTATION", "URI"}, rows)
	}
	return c
}

func keyShowCommand(ks *keystore.Keystore) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "show KEY",
		Short:   "Show a key, its certificate, and whether Notation can sign with it",
		Example: `  notation-hsm key show "pkcs11:token=signing;object=release"`,
		Args:    cli.Exactly(1),
	}
	given := cli.AddSettings(c, append(cli.TokenSettings, config.CertificateChain)...)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := ks.Resolve(args[0], given(), config.Flags)
		if err != nil {
			return err
		}
		k, err := custody.Show(c.Context(), s)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.PrintJSON(c.OutOrStdout(), k)
		}
		rows := [][]string{
			{"URI:", k.URI}, {"Spec:", cli.OrDash(k.Spec)}, {"Label:", fmt.Sprintf("%q", k.Label)}, {"ID:", cli.OrDash(k.ID)},
			{"Usage:", keyUsages(k)},
			{"Sensitive:", cli.YesNo(k.Sensitive)}, {"Never extractable:", cli.YesNo(k.NeverExtractable)},
			{"Generated on the token:", cli.YesNo(k.Local)},
			{"PIN for each signature:", cli.YesNo(k.AlwaysAuth)},
		}
		if cert := k.Certificate; cert != nil {
			rows = append(rows, []string{"Certificate:", cert.Subject}, []string{"Issuer:", cert.Issuer},
				[]string{"Serial:", cert.Serial},
				[]string{"Expires:", cert.NotAfter.Format("2006-01-02 15:04:05 MST")})
		}
		if k.Formats != nil {
			rows = append(rows, []string{"Its broker accepts:", strings.Trim(fmt.Sprint(k.Formats), "[]")})
		}
		rows = append(rows, []string{"Notation:", usable(k)})
		return cli.PrintTable(c.OutOrStdout(), rows[0], rows[1:])
	}
	return c
}

func keyUsages(k custody.Key) string {
	var usages []string
	for _, u := range []struct {
		set  *bool
		name string
	}{{k.Sign, "sign"}, {k.Decrypt, "decrypt"}, {k.Unwrap, "unwrap"}, {k.Derive, "derive"}} {
		if u.set != nil && *u.set {
			usages = append(usages, u.name)
		}
	}
	return cli.OrDash(strings.Join(usages, ", "))
}

func usable(k custody.Key) string {
	if k.Usable {
		return "can sign"
	}
	return "cannot sign: " + k.Reason
}

func keyDeleteCommand(ks *keystore.Keystore) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "delete KEY",
		Short: "Delete a key and its certificates from the token",
		Long: `Delete a key, its public half and its own certificates from the token. The certificates of its
issuers stay. The command prints what will stop working, and asks for the label of the key on the
terminal. It refuses to delete a key that Notation, an unfinished rotation or a CA uses.`,
		Example: `  notation-hsm key delete "pkcs11:token=signing;object=release"`,
		Args:    cli.Exactly(1),
	}
	given, folder := cli.AddSettings(c, cli.TokenSettings...), addCAFolder(c)
	c.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := ks.Resolve(args[0], given(), config.Flags)
		if err != nil {
			return err
		}
		cas, err := folder()
		if err != nil {
			return err
		}
		out := c.ErrOrStderr()
		err = custody.Delete(c.Context(), s, cas, func(d custody.Deletion) error {
			fmt.Fprintf(out, "deleting %s (%s)\n", d.Key.URI, cli.OrDash(d.Key.Spec))
			for _, subject := range d.Certificates {
				fmt.Fprintf(out, "  with the certificate of %q\n", subject)
			}
			for _, consequence := range d.Consequences {
				fmt.Fprintf(out, "  %s\n", consequence)
			}
			if yes {
				return nil
			}
			if d.Key.Label == "" {
				return cli.Ask(c.Context(), "type the key's id to delete it", d.Key.ID)
			}
			return cli.Ask(c.Context(), "type the key's label to delete it", d.Key.Label)
		})
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "deleted")
		return nil
	}
	return c
}
