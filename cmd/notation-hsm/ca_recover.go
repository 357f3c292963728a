package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

func caRecoverCommand(ks *keystore.Keystore) *cobra.Command {
	var name, published string
	var never, yes bool
	c := &cobra.Command{
		Use:   "recover",
		Short: "Rebuild the ledger of a CA that is missing, outdated or damaged",
		Long: `Rebuild the ledger of a CA from the certificates in issued/, its last revocation list, and the
readable part of the old ledger. The command prints the new ledger and what cannot be recovered, and
asks for confirmation. If a newer list than the one in the CA's folder was published, name it with
--crl. The CA's key signs the new ledger. The settings given as flags are for that key.`,
		Example: `  notation-hsm ca recover --ca signing
  notation-hsm ca recover --ca signing --crl /var/www/pki/signing.crl --yes`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	open := addCA(ks, c, &name)
	c.Flags().StringVar(&published, "crl", "", "last published revocation list (DER)")
	c.Flags().BoolVar(&never, "no-crl", false, "state that no revocation list was ever signed")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if published != "" && never {
			return cli.Usage(c, failure.New(failure.Invalid, "--crl and --no-crl exclude each other"))
		}
		a, err := open()
		if err != nil {
			return err
		}
		out := c.ErrOrStderr()
		err = a.Recover(c.Context(), given(), published, never, func(r *ca.Recovery) error {
			if err := showRecovery(out, r); err != nil || yes {
				return err
			}
			return cli.Ask(c.Context(), "type yes to write this ledger", "yes")
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(out,
			"rebuilt and signed the ledger of the CA %q\nnext: notation-hsm ca crl --ca %s; then publish the list\n", a.Name,
			a.Name)
		return nil
	}
	return c
}

func showRecovery(out io.Writer, r *ca.Recovery) error {
	rows := entryRows(r.Entries)
	for i, e := range r.Entries {
		rows[i] = append(rows[i], cli.OrDash(r.Sources[e.Serial]))
	}
	if err := cli.PrintTable(out, []string{"SERIAL", "STATE", "SUBJECT", "ISSUED", "UNTIL", "REVOKED", "KNOWN FROM"},
		rows); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, list := range r.Lists {
		fmt.Fprintf(out, "read the list %s\n", list)
	}
	fmt.Fprintf(out, "the number of the next list will be greater than %s\n", r.Number)
	if r.Kept != "" {
		fmt.Fprintf(out, "keeping the old ledger as %s\n", r.Kept)
	}
	if lost := r.Lost(); len(lost) > 0 {
		fmt.Fprintf(out, "lost: the certificates with the serial numbers %s; the ledger has only these numbers\n",
			strings.Join(lost, ", "))
	}
	since := "ever"
	if !r.Newest.IsZero() {
		since = "since " + r.Newest.Format(time.RFC3339)
	}
	fmt.Fprintf(out,
		"unknown: revocations %s that are not in this table. Compare it with your own records, and revoke them again\n",
		since)
	fmt.Fprintln(out,
		"unknown: certificates that are in none of these places. If files in issued/ were lost too, ask the signers for "+
			"them,\nput them there as SERIAL.pem, and run this again")
	return nil
}
