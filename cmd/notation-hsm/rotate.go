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
		Short: "Put a new key behind one of Notation's signing keys",
		Long: `Make a new key like the one that Notation's signing key NAME has, on the same token, with the next label; get it a certificate from
where the old one came from; and have NAME mean the new key. The old key stays, as NAME-old-1.

The plan is shown and confirmed first. A rotation that was interrupted, wherever, goes on when the same command is run again.`,
		Example: `  notation-hsm key rotate release
  notation-hsm key rotate release --csr release-2.csr
  notation-hsm key rotate release --cert release-2.pem`,
		Args: cli.Exactly(1),
	}
	given, folder := cli.AddSettings(c, cli.TokenSettings...), addCAFolder(c)
	c.Flags().StringVar(&o.CA, "ca", "", "have this CA issue the certificate (default: the CA that issued the old one)")
	c.Flags().StringVar(&o.Request, "csr", "", "write a certificate request to this file, for a CA elsewhere, and stop")
	c.Flags().StringVar(&o.Certificate, "cert", "",
		"go on with this file: the certificate for that request, and its issuers")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		o.Name, o.Given = args[0], given()
		if o.Request != "" && (o.Certificate != "" || o.CA != "") {
			return failure.New(failure.Invalid, "--csr goes with neither --cert nor --ca").WithHint("give one of them")
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
					"  note:        nobody trusts the new certificate yet; images signed with it verify where it is added to the "+
						"trust store")
			}
			if yes {
				return nil
			}
			return cli.Ask(c.Context(), "type yes to do this", "yes")
		}, func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) })
	}
	return c
}

func certificatePlan(r *custody.Rotation) string {
	switch r.Source {
	case custody.FromCA:
		return fmt.Sprintf("%q, from the CA %q, for %d days", r.Subject, r.CA, r.Days)
	case custody.ByRequest:
		return fmt.Sprintf("%q, from a CA elsewhere, which gets a request", r.Subject)
	}
	return fmt.Sprintf("%q, self-signed, for %d days", r.Subject, r.Days)
}
