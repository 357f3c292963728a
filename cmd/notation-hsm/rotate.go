package main

import (
	"fmt"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/custody"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func keyRotateCommand(ks *keystore.Keystore) *cobra.Command {
	var o custody.RotationRequest
	var yes bool
	c := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Replace the key behind one of Notation's signing keys",
		Long: `Generate a new key with the spec of the key behind Notation's signing key NAME, on the same token,
under the next label; get it a certificate from the source of the old one; and change NAME to the
new key. The old key is kept as NAME-old-1.

The command prints the plan first, and asks for confirmation. An interrupted rotation resumes when
the command is run again.`,
		Example: `  notation-hsm key rotate release
  notation-hsm key rotate release --csr release-2.csr
  notation-hsm key rotate release --cert release-2.pem`,
		Args: cli.Exactly(1),
	}
	given, folder := cli.AddSettings(c, cli.TokenSettings...), addCAFolder(c)
	c.Flags().StringVar(&o.CA, "ca", "", "CA that issues the certificate (default: the CA that issued the old one)")
	c.Flags().StringVar(&o.Request, "csr", "", "write a certificate request for another CA to this file, and stop")
	c.Flags().StringVar(&o.Certificate, "cert", "",
		"resume with this PEM file: the certificate for the request, and its issuers")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		o.Name, o.Given = args[0], given()
		if o.Request != "" && (o.Certificate != "" || o.CA != "") {
			return cli.Usage(c, failure.New(failure.Invalid, "--csr excludes --cert and --ca").WithHint("give one of them"))
		}
		if o.CAFolder, err = folder(); err != nil {
			return err
		}
		out := c.ErrOrStderr()
		return custody.Rotate(c.Context(), ks, o, func(r *custody.Rotation) error {
			fmt.Fprintf(out,
				"rotating Notation's signing key %q\n  now:         %s\n  new key:     %s, %s\n  certificate: %s\n  old key:     "+
					"kept, as %q\n",
				r.Name, r.OldID, r.NewID, r.Spec, certificatePlan(r), r.OldName)
			if r.Source == custody.SelfSigned {
				fmt.Fprintln(out,
					"  note:        images signed with the new key verify only where its certificate is added to the trust store")
			}
			if yes {
				return nil
			}
			return cli.Ask(c.Context(), "type yes to rotate the key", "yes")
		}, notifier(c))
	}
	return c
}

func certificatePlan(r *custody.Rotation) string {
	switch r.Source {
	case custody.FromCA:
		return fmt.Sprintf("%q, from the CA %q, for %d days", r.Subject, r.CA, r.Days)
	case custody.ByRequest:
		return fmt.Sprintf("%q, from another CA, by a certificate request", r.Subject)
	}
	return fmt.Sprintf("%q, self-signed, for %d days", r.Subject, r.Days)
}
