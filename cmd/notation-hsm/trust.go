package main

import (
	"cmp"
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
	c := cli.Group("trust", "Define who may sign for which repositories, and export it as trust policy",
		trustInitCommand(&manifest),
		cli.Group("signer", "Add, remove and list signers",
			signerAddCommand(ks, &manifest), signerRemoveCommand(&manifest), signerListCommand(&manifest)),
		cli.Group("tags", "Name the repositories whose tags TUF metadata define",
			tagsAddCommand(&manifest), tagsRemoveCommand(&manifest), tagsListCommand(&manifest)),
		cli.Group("approver", "Add, remove and list people whose approvals count",
			approverAddCommand(&manifest), approverRemoveCommand(&manifest), approverListCommand(&manifest)),
		cli.Group("approvals", "Name the repositories whose signatures need approvals",
			approvalsAddCommand(&manifest), approvalsRemoveCommand(&manifest), approvalsListCommand(&manifest)),
		trustExportCommand(&manifest))
	c.PersistentFlags().StringVar(&manifest, "manifest", "",
		"trust manifest: the file with all signers (default: NOTATION_HSM_TRUST, else notation-hsm/trust.yaml in the "+
			"user's configuration directory)")
	return c
}

func trustInitCommand(manifest *string) *cobra.Command {
	return &cobra.Command{
		Use:     "init",
		Short:   "Create a trust manifest without signers",
		Example: "  notation-hsm trust init",
		Args:    cli.Exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := trust.Path(*manifest)
			if err != nil {
				return err
			}
			created, err := trust.Init(c.Context(), path)
			if err != nil {
				return err
			}
			if created {
				fmt.Fprintf(c.ErrOrStderr(), "created %s\n", path)
			} else {
				fmt.Fprintf(c.ErrOrStderr(), "%s exists already, and was not changed\n", path)
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
		Short: "Allow a signer to sign for repositories",
		Long: `Allow a signer to sign for repositories. One of these flags identifies the signer:

  --cert FILE  a self-signed certificate; or a certificate and its issuers: then every certificate
               with its subject under the same root is accepted. With the certificate of a CA, every
               certificate of that CA is accepted.
  --key KEY    the same, with the certificates on the token of the key, or in its certificate-chain
               setting
  --ca NAME    every certificate of a CA that 'notation-hsm ca' runs

To add scopes to a signer that exists already, give none of these flags. The change takes effect
with 'notation-hsm trust export'.`,
		Example: `  notation-hsm trust signer add alice --scope registry.example.com/team/app --cert alice.pem
  notation-hsm trust signer add releases --scope registry.example.com/team/app --ca team \
    --subject "C=CH,ST=Zurich,O=Example,OU=Releases"
  notation-hsm trust signer add alice --scope registry.example.com/team/tools
  notation-hsm trust signer add bob --scope registry.example.com/team/app --cert bob.pem --paths 'release-*'`,
		Args: cli.Exactly(1),
	}
	given, cas := cli.AddSettings(c, append(cli.TokenSettings, config.CertificateChain)...), addCAFolder(c)
	c.Flags().StringArrayVar(&g.Scopes, "scope", nil,
		`repository, or "*" for all repositories that have no signer (required; can be repeated)`)
	c.Flags().StringVar(&by.file, "cert", "",
		"PEM file with the certificate of the signer and its issuers, or with the certificate of a CA")
	c.Flags().StringVar(&by.key, "key", "", "URI or alias of the signer's key")
	c.Flags().StringVar(&by.ca, "ca", "", "name of a CA")
	c.Flags().StringVar(&by.subject, "subject", "",
		"with a CA: accept only subjects with these attributes, which must include C, ST and O")
	c.Flags().StringVar(&g.Level, "level", "",
		"Notation's verification level: strict, permissive or audit (default: strict)")
	c.Flags().StringArrayVar(&g.Paths, "paths", nil,
		"pattern of the tags that the signer may sign, as in 'release-*'; the tags of the scopes need a root, from "+
			"'trust tags add' (default: all tags; can be repeated)")
	c.Flags().IntVar(&threshold, "threshold", 1, "refused: Notation always accepts one signature")
	_ = c.Flags().MarkHidden("threshold") // it exists to explain why there is no threshold
	c.RunE = func(c *cobra.Command, args []string) error {
		g.Name = args[0]
		switch {
		case threshold != 1:
			return cli.Usage(c, failure.New(failure.Unsupported,
				"cannot require %d signatures: Notation always accepts one valid signature", threshold).
				WithHint("let a release pipeline verify all signatures before it signs last, and trust only its key"))
		case len(g.Scopes) == 0:
			return cli.Required(c, "scope", "registry.example.com/team/app")
		}
		path, err := trust.Path(*manifest)
		if err != nil {
			return err
		}
		if g.Cert, err = signerCertificate(c, ks, by, given(), cas); err != nil {
			return err
		}
		s, err := trust.Add(c.Context(), path, g)
		if err != nil {
			return err
		}
		only := ""
		if len(s.Paths) > 0 {
			only = ", only the tags " + strings.Join(s.Paths, ", ")
		}
		fmt.Fprintf(c.ErrOrStderr(),
			"signer %q may sign for %s (%s)%s\nfingerprint to compare: %s\nnext: notation-hsm trust export\n",
			s.Name, strings.Join(s.Scopes, ", "), s.Level, only, s.Fingerprint)
		return nil
	}
	return c
}

// signerFlags are the flags that identify a signer.
type signerFlags struct{ file, key, ca, subject string }

// signerCertificate reads the certificate that the flags name. It returns nil if they name none.
func signerCertificate(c *cobra.Command, ks *keystore.Keystore, by signerFlags, settings map[string]string,
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
		return nil, cli.Usage(c, failure.New(failure.Invalid, "--cert, --key and --ca exclude each other").WithHint(hint))
	case by.subject != "" && by.file == "" && by.ca == "":
		return nil, cli.Usage(c, failure.New(failure.Invalid, "--subject needs --ca or --cert").
			WithHint("name the CA whose subjects it limits"))
	case by.key == "" && len(settings) > 0:
		return nil, cli.Usage(c, failure.New(failure.Invalid, "the settings of a token need --key").WithHint(hint))
	case by.key != "":
		s, err := ks.Resolve(by.key, settings, config.Flags)
		if err != nil {
			return nil, err
		}
		return trust.FromKey(c.Context(), s)
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
		Short: "Remove a signer, from some repositories or altogether",
		Long: `Remove scopes from a signer, or without --scope the signer. The change takes effect with
'notation-hsm trust export'.`,
		Example: "  notation-hsm trust signer remove alice --scope registry.example.com/team/app",
		Args:    cli.Exactly(1),
	}
	c.Flags().StringArrayVar(&scopes, "scope", nil, "repository to remove from the signer (default: all; can be repeated)")
	c.RunE = func(c *cobra.Command, args []string) error {
		path, err := trust.Path(*manifest)
		if err != nil {
			return err
		}
		removed, err := trust.Remove(c.Context(), path, args[0], scopes)
		if err != nil {
			return err
		}
		what := "may no longer sign for " + strings.Join(scopes, ", ")
		if removed {
			what = "is removed"
		}
		fmt.Fprintf(c.ErrOrStderr(),
			"signer %q %s\nnext: notation-hsm trust export; until then Notation accepts the signatures\n", args[0], what)
		return nil
	}
	return c
}

func signerListCommand(manifest *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the signers and their repositories",
		Example: "  notation-hsm trust signer list",
		Args:    cli.Exactly(0),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		m, err := loadManifest(*manifest)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.PrintJSON(c.OutOrStdout(), m.Signers)
		}
		var rows [][]string
		for _, s := range m.Signers {
			subject, paths := cmp.Or(s.Subject, "any"), cmp.Or(strings.Join(s.Paths, " "), "any")
			for _, scope := range s.Scopes {
				rows = append(rows, []string{s.Name, scope, s.Level, string(s.Kind), s.Trusts, subject,
					s.Until.Format("2006-01-02"), paths})
			}
		}
		return cli.PrintTable(c.OutOrStdout(), []string{"NAME", "SCOPE", "LEVEL", "KIND", "CERTIFICATE", "SUBJECT", "UNTIL",
			"PATHS"}, rows)
	}
	return c
}

func trustExportCommand(manifest *string) *cobra.Command {
	var to, format, attestor string
	c := &cobra.Command{
		Use:   "export",
		Short: "Write the trust policy for Notation, Kyverno or Ratify",
		Long: `Write the trust policy of the manifest in a format:

  --format notation  Notation's trust stores and trust policy, for this user; or with --to in a
                     folder, to use as Notation's configuration directory on other machines.
                     Statements and trust stores of others are not changed; those of an earlier
                     export are replaced.
  --format kyverno   policy for a cluster with Kyverno, as YAML
  --format ratify    resources for a cluster with Ratify and Gatekeeper, as YAML

A manifest that a format cannot express exactly is refused, but for two things that the command then
says: 'notation verify' knows neither the paths of signers nor approvals, and Kyverno trusts an
attestor for approvals if you name one. The attestor verifies bundles of approvals with 'hsm-image
approvals verify', and signs those that pass with Notation.`,
		Example: `  notation-hsm trust export
  notation-hsm trust export --to cluster/notation
  notation-hsm trust export --format kyverno | kubectl apply -f -
  notation-hsm trust export --format kyverno --approvals-attestor attestor.pem --to kyverno.yaml`,
		Args: cli.Exactly(0),
	}
	c.Flags().StringVar(&to, "to", "",
		"notation: folder to write to (default: Notation's configuration directory); else: file (default: standard output)")
	c.Flags().StringVar(&format, "format", "notation", "notation, kyverno or ratify")
	c.Flags().StringVar(&attestor, "approvals-attestor", "",
		"kyverno: PEM file with the certificate of who verifies approvals in place of Kyverno, and signs their bundles")
	c.RunE = func(c *cobra.Command, _ []string) error {
		path, err := trust.Path(*manifest)
		if err != nil {
			return err
		}
		if attestor != "" && format != "kyverno" {
			return cli.Usage(c, failure.New(failure.Invalid, "--approvals-attestor needs --format kyverno").
				WithHint("remove one of the two"))
		}
		switch format {
		case "notation":
			return exportNotation(c, path, to)
		case "kyverno":
			return exportYAML(c, func(path string) ([]byte, error) { return trust.Kyverno(path, attestor) }, path, to)
		case "ratify":
			return exportYAML(c, trust.Ratify, path, to)
		}
		return cli.Usage(c, failure.New(failure.Invalid, "unknown --format %q", format).
			WithHint("use notation, kyverno or ratify"))
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
		fmt.Fprintf(out, "removed %s: without signers, nothing verifies\n", done.Policy)
		return nil
	}
	fmt.Fprintf(out, "wrote %s: statements of signers: %d, of others: %d\n", done.Policy, done.Statements, done.Kept)
	if done.Tags > 0 {
		fmt.Fprintf(out, "repositories whose tags have a root: %d\n", done.Tags)
	}
	for _, name := range done.Restricted {
		fmt.Fprintf(out, "warning: signer %q has paths, which 'notation verify' does not know: it accepts the signer for "+
			"every tag, unlike 'hsm-image verify' and containerd's gate\n", name)
	}
	for _, scope := range done.Approvals {
		fmt.Fprintf(out, "warning: signatures in %s need approvals, which 'notation verify' does not check, unlike "+
			"'hsm-image verify' and containerd's gate\n", scope)
	}
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

// loadManifest reads the trust manifest of a flag, or the default one.
func loadManifest(manifest string) (*trust.Manifest, error) {
	path, err := trust.Path(manifest)
	if err != nil {
		return nil, err
	}
	return trust.Load(path)
}
