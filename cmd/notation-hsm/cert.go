package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/custody"
)

func certCommand(ks *keystore.Keystore) *cobra.Command {
	return cli.Group("cert", "Get certificates for keys, and store them on the token",
		certSelfSignCommand(ks), certCSRCommand(ks), certImportCommand(ks.Direct()), certExportCommand(ks))
}

func certSelfSignCommand(ks *keystore.Keystore) *cobra.Command {
	var subject string
	var days int
	c := &cobra.Command{
		Use:   "self-sign KEY",
		Short: "Create a self-signed certificate for a key, and print it as PEM",
		Example: `  notation-hsm cert self-sign "pkcs11:token=signing;object=release" \
    --subject "CN=release,O=Example,C=CH,ST=Zurich" --days 365 > release.pem`,
		Args: cli.Exactly(1),
	}
	c.Flags().IntVar(&days, "days", 365, "how many days it is valid")
	onSubject(ks, c, &subject, func(ctx context.Context, s *keystore.Reference) ([]byte, []string, error) {
		return custody.SelfSign(ctx, s, subject, days)
	})
	return c
}

func certCSRCommand(ks *keystore.Keystore) *cobra.Command {
	var subject string
	c := &cobra.Command{
		Use:   "csr KEY",
		Short: "Create a certificate request for a key, and print it as PEM",
		Example: `  notation-hsm cert csr "pkcs11:token=signing;object=release" \
    --subject "CN=release,O=Example,C=CH,ST=Zurich" > release.csr`,
		Args: cli.Exactly(1),
	}
	onSubject(ks, c, &subject, func(ctx context.Context, s *keystore.Reference) ([]byte, []string, error) {
		return custody.Request(ctx, s, subject)
	})
	return c
}

// onSubject adds flags and RunE to a command that prints PEM for a key and a subject.
func onSubject(ks *keystore.Keystore, c *cobra.Command, subject *string,
	run func(context.Context, *keystore.Reference) ([]byte, []string, error)) {
	given := cli.AddSettings(c, cli.TokenSettings...)
	c.Flags().StringVar(subject, "subject", "",
		"distinguished name, as in "+subjectExample+" (required)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if *subject == "" {
			return cli.Required(c, "subject", subjectExample)
		}
		s, err := ks.Resolve(args[0], given(), config.Flags)
		if err != nil {
			return err
		}
		data, missing, err := run(c.Context(), s)
		if err != nil {
			return err
		}
		warnIdentity(c.ErrOrStderr(), missing)
		_, err = c.OutOrStdout().Write(data)
		return err
	}
}

// subjectExample is a subject that Notation's trust policy can name.
const subjectExample = `"CN=release,O=Example,C=CH,ST=Zurich"`

// warnIdentity warns of attributes that a subject lacks for a trusted identity.
func warnIdentity(w io.Writer, missing []string) {
	if len(missing) > 0 {
		fmt.Fprintf(w, "warning: the subject has no %s, which a trusted identity in Notation's trust policy needs\n",
			strings.Join(missing, ", "))
	}
}

func certImportCommand(ks *keystore.Keystore) *cobra.Command {
	c := &cobra.Command{
		Use:   "import KEY FILE",
		Short: "Store a key's certificate and its issuers on the token",
		Long: `Store the certificate of a key, and its issuers from the same PEM file, on the token. A certificate
of another key is refused. A certificate that the token already has is not stored again.`,
		Example: `  notation-hsm cert import "pkcs11:token=signing;object=release" release.pem`,
		Args:    cli.Exactly(2),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := ks.Resolve(args[0], given(), config.Flags)
		if err != nil {
			return err
		}
		length, stored, err := custody.Import(c.Context(), s, args[1])
		if err != nil {
			return err
		}
		fmt.Fprintf(c.ErrOrStderr(), "stored %d of %d certificates (the token already had %d)\n", stored, length,
			length-stored)
		return nil
	}
	return c
}

func certExportCommand(ks *keystore.Keystore) *cobra.Command {
	c := &cobra.Command{
		Use:   "export KEY",
		Short: "Print the certificate chain of a key as PEM, leaf first; or its public key",
		Example: `  notation-hsm cert export "pkcs11:token=signing;object=release" > release.pem
  notation-hsm cert export --public "pkcs11:token=signing;object=nodes" > nodes.pem`,
		Args: cli.Exactly(1),
	}
	var public bool
	given := cli.AddSettings(c, append(cli.TokenSettings, config.CertificateChain)...)
	c.Flags().BoolVar(&public, "public", false, "print the public key instead, to which others can encrypt")
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := ks.Resolve(args[0], given(), config.Flags)
		if err != nil {
			return err
		}
		export := custody.Export
		if public {
			export = custody.ExportPublic
		}
		data, err := export(c.Context(), s)
		if err != nil {
			return err
		}
		_, err = c.OutOrStdout().Write(data)
		return err
	}
	return c
}
