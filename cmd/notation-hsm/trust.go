package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
	"github.com/notation-hsm/notation-hsm/internal/trust"
)

func trustCommand(ks *keystore.Keystore) *cobra.Command {
	var manifest string
	c := cli.Group("trust", "Say who may sign which repositories, and tell Notation",
		trustInitCommand(&manifest),
		cli.Group("signer", "Add, remove and list signers",
			signerAddCommand(ks, &manifest), signerRemoveCommand(&manifest), signerListCommand(&manifest)),
		trustExportCommand(&manifest))
	c.PersistentFlags().StringVar(&manifest, "manifest", "",
		"the file with all signers (default: NOTATION_HSM_TRUST, else notation-hsm/trust.yaml in your "+
			"configuration directory)")
	return c
}

func trustInitCommand(manifest *string) *cobra.Command {
	return &cobra.Command{
		Use:     "init",
		Short:   "Make a trust manifest, without signers",
		Example: "  notation-hsm trust init",
		Args:    cli.Exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := trust.Path(*manifest)
			if err != nil {
				return err
			}
			made, err := trust.Init(c.Context(), path)
			if err != nil {
				return err
			}
			if made {
				fmt.Fprintf(c.ErrOrStderr(), "made %s\n", path)
			} else {
				fmt.Fprintf(c.ErrOrStderr(), "%s was there already, and is as it was\n", path)
			}
			return nil
		},
	}
}

func signerAddCommand(ks *keystore.Keystore, manifest *string) *cobra.Command {
	var g trust.Grant
	var by signerFlags
	var threshold int
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Let a signer sign in repositories",
		Long: `Let a signer sign in repositories. The signer is known by one of:

  --cert FILE  a self-signed certificate; or one under a CA, with its issuers in the same file: then everyone counts who has its subject
               from this root. With a CA's certificate, everyone with a certificate of this CA counts.
  --key KEY    the same, from the token of the key, or its certificate-chain setting
  --ca NAME    everyone with a certificate of a CA made by 'notation-hsm ca'

A signer who is there already gets more scopes, and needs none of these. The change counts after 'notation-hsm trust export'.`,
		Example: `  notation-hsm trust signer add alice --scope registry.example.com/team/app --cert alice.pem
  notation-hsm trust signer add releases --scope registry.example.com/team/app --ca team --subject "C=CH,ST=Zurich,O=Example,OU=Releases"
  notation-hsm trust signer add alice --scope registry.example.com/team/tools`,
		Args: cli.Exactly(1),
	}
	given, cas := cli.AddSettings(c, append(cli.TokenSettings, config.CertificateChain)...), addCAFolder(c)
	c.Flags().StringArrayVar(&g.Scopes, "scope", nil,
		`a repository, or "*" for all that have no signer of their own (required; may be repeated)`)
	c.Flags().StringVar(&by.file, "cert", "",
		"PEM file with the signer's certificate and its issuers, or a CA's certificate")
	c.Flags().StringVar(&by.key, "key", "", "the signer's key, by URI or alias")
	c.Flags().StringVar(&by.ca, "ca", "", "a CA, by its name")
	c.Flags().StringVar(&by.subject, "subject", "",
		"with a CA: only subjects that have these parts, C, ST and O among them")
	c.Flags().StringVar(&g.Level, "level", "",
		"how strictly Notation verifies: strict, permissive or audit (default strict)")
	c.Flags().IntVar(&threshold, "threshold", 1, "refused: one signature is always enough for Notation")
	_ = c.Flags().MarkHidden("threshold") // it is there to say why it is not
	c.RunE = func(c *cobra.Command, args []string) error {
		g.Name = args[0]
		switch {
		case threshold != 1:
			return failure.New(failure.Invalid,
				"a threshold of %d is not something Notation can verify: one good signature is always enough for it", threshold).
				WithHint("let a release pipeline check all signatures before it signs last, and trust its key alone")
		case len(g.Scopes) == 0:
			return failure.New(failure.Invalid, "signer %q needs a --scope to sign in", g.Name).
				WithHint("as in: --scope registry.example.com/team/app")
		}
		path, err := trust.Path(*manifest)
		if err != nil {
			return err
		}
		if g.Cert, err = certificate(c.Context(), ks, by, given(), cas); err != nil {
			return err
		}
		s, err := trust.Add(c.Context(), path, g)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.ErrOrStderr(),
			"signer %q may sign in %s (%s)\nfingerprint to compare: %s\nnext: notation-hsm trust export\n",
			s.Name, strings.Join(s.Scopes, ", "), s.Level, s.Fingerprint)
		return nil
	}
	return c
}

// signerFlags name the certificate that a signer is known by.
type signerFlags struct{ file, key, ca, subject string }

// certificate reads what the flags name; nothing where they name nothing.
func certificate(ctx context.Context, ks *keystore.Keystore, by signerFlags, settings map[string]string,
	cas func() (string, error)) (*trust.Certificate, error) {
	named := 0
	for _, value := range []string{by.file, by.key, by.ca} {
		if value != "" {
			named++
		}
	}
	const hint = "as in: --cert alice.pem, --key \"pkcs11:token=signing;object=release\", or --ca team"
	switch {
	case named > 1:
		return nil, failure.New(failure.Invalid, "a signer is known by one of --cert, --key and --ca").WithHint(hint)
	case by.subject != "" && by.file == "" && by.ca == "":
		return nil, failure.New(failure.Invalid, "a --subject limits a CA").WithHint("name the CA with --ca or --cert")
	case by.key == "" && len(settings) > 0:
		return nil, failure.New(failure.Invalid, "the settings of a token need a --key").WithHint(hint)
	case by.key != "":
		s, err := ks.Resolve(by.key, settings, config.Flags)
		if err != nil {
			return nil, err
		}
		return trust.FromKey(ctx, s)
	case by.ca != "":
		folder, err := cas()
		if err != nil {
			return nil, err
		}
		authority, err := ca.Open(ks, folder, by.ca)
		if err != nil {
			return nil, err
		}
		return trust.FromCA(authority.Certificate(), by.subject)
	case by.file != "":
		return trust.FromFile(by.file, by.subject)
	}
	return nil, nil
}

func signerRemoveCommand(manifest *string) *cobra.Command {
	var scopes []string
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Let a signer sign no longer: in some repositories, or in any",
		Long: "Let a signer sign no longer: in the scopes that are given, or in any. The change counts after " +
			"'notation-hsm trust export'.",
		Example: "  notation-hsm trust signer remove alice --scope registry.example.com/team/app",
		Args:    cli.Exactly(1),
	}
	c.Flags().StringArrayVar(&scopes, "scope", nil, "a repository to take from the signer (default: all; may be repeated)")
	c.RunE = func(c *cobra.Command, args []string) error {
		path, err := trust.Path(*manifest)
		if err != nil {
			return err
		}
		gone, err := trust.Remove(c.Context(), path, args[0], scopes)
		if err != nil {
			return err
		}
		what := "no longer signs in " + strings.Join(scopes, ", ")
		if gone {
			what = "is removed"
		}
		fmt.Fprintf(c.ErrOrStderr(),
			"signer %q %s\nnext: notation-hsm trust export; until then Notation takes the signatures\n", args[0], what)
		return nil
	}
	return c
}

func signerListCommand(manifest *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the signers, and where each may sign",
		Example: "  notation-hsm trust signer list",
		Args:    cli.Exactly(0),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		path, err := trust.Path(*manifest)
		if err != nil {
			return err
		}
		m, err := trust.Load(path)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.PrintJSON(c.OutOrStdout(), m.Signers)
		}
		var rows [][]string
		for _, s := range m.Signers {
			subject := s.Subject
			if subject == "" {
				subject = "any"
			}
			for _, scope := range s.Scopes {
				rows = append(rows, []string{s.Name, scope, s.Level, string(s.Kind), s.Trusts, subject,
					s.Until.Format("2006-01-02")})
			}
		}
		return cli.PrintTable(c.OutOrStdout(), []string{"NAME", "SCOPE", "LEVEL", "KIND", "CERTIFICATE", "SUBJECT", "UNTIL"},
			rows)
	}
	return c
}

func trustExportCommand(manifest *string) *cobra.Command {
	var to, format string
	c := &cobra.Command{
		Use:   "export",
		Short: "Write what Notation, Kyverno or Ratify verifies with",
		Long: `Write what verifies images from the manifest:

  --format notation  Notation's trust stores and trust policy: for you, or into a folder to ship to where images are verified, as Notation's
                     configuration directory. Statements and trust stores that others made are kept as they are; those of an earlier
                     export are replaced.
  --format kyverno   a policy for a cluster with Kyverno, as YAML
  --format ratify    resources for a cluster with Ratify and Gatekeeper, as YAML

What a format can't say exactly is refused.`,
		Example: `  notation-hsm trust export
  notation-hsm trust export --to cluster/notation
  notation-hsm trust export --format kyverno | kubectl apply -f -`,
		Args: cli.Exactly(0),
	}
	c.Flags().StringVar(&to, "to", "",
		"notation: a folder to write to (default: Notation's configuration directory); else: a file (default: "+
			"standard output)")
	c.Flags().StringVar(&format, "format", "notation", "notation, kyverno or ratify")
	c.RunE = func(c *cobra.Command, _ []string) error {
		path, err := trust.Path(*manifest)
		if err != nil {
			return err
		}
		switch format {
		case "notation":
			return exportNotation(c, path, to)
		case "kyverno":
			return exportYAML(c, trust.Kyverno, path, to)
		case "ratify":
			return exportYAML(c, trust.Ratify, path, to)
		}
		return failure.New(failure.Invalid, "there is no format %q", format).WithHint("use notation, kyverno or ratify")
	}
	return c
}

func exportNotation(c *cobra.Command, manifest, to string) error {
	done, err := trust.Export(c.Context(), manifest, to)
	if err != nil {
		return err
	}
	out := c.ErrOrStderr()
	if done.Removed {
		fmt.Fprintf(out, "removed %s: no signer is left, and so nothing verifies\n", done.Policy)
		return nil
	}
	fmt.Fprintf(out, "wrote %s: statements of signers: %d, kept of others: %d\n", done.Policy, done.Statements, done.Kept)
	return nil
}

func exportYAML(c *cobra.Command, export func(manifest string) ([]byte, error), manifest, to string) error {
	data, err := export(manifest)
	if err != nil {
		return err
	}
	if to == "" {
		_, err := c.OutOrStdout().Write(data)
		return err
	}
	if err := state.Write(to, data, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(c.ErrOrStderr(), "wrote %s\nnext: kubectl apply -f %s\n", to, to)
	return nil
}
