package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

func caRecoverCommand(ks *keystore.Keystore) *cobra.Command {
	var name, published string
	var never, yes bool
	c := &cobra.Command{
		Use:   "recover",
		Short: "Rebuild the ledger of a CA that is missing, older or damaged",
		Long: `Rebuild the ledger of a CA from the certificates in issued/, its last revocation list, and what can be read of the old ledger. What
will be in it is shown first, and what can't be known. If a list is published that is newer than the one in the CA's folder, name it with --crl.
The CA's key signs the new ledger. The settings given as flags are for that key.`,
		Example: `  notation-hsm ca recover --ca signing
  notation-hsm ca recover --ca signing --crl /var/www/pki/signing.crl --yes`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	open := addCA(ks, c, &name)
	c.Flags().StringVar(&published, "crl", "", "also take in this list, the last that was published (DER)")
	c.Flags().BoolVar(&never, "no-crl", false, "no revocation list was ever signed")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	c.RunE = func(c *cobra.Command, _ []string) error {
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
			"the ledger of the CA %q is rebuilt and signed\nnext: notation-hsm ca crl --ca %s, and publish the list\n", a.Name,
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
		fmt.Fprintf(out, "from the list %s\n", list)
	}
	fmt.Fprintf(out, "the next list has a number greater than %s\n", r.Number)
	if r.Kept != "" {
		fmt.Fprintf(out, "the old ledger is kept as %s\n", r.Kept)
	}
	if lost := r.Lost(); len(lost) > 0 {
		fmt.Fprintf(out, "lost: the certificates of %s; they stay on record by their serial numbers\n",
			strings.Join(lost, ", "))
	}
	since := "ever"
	if !r.Newest.IsZero() {
		since = "since " + r.Newest.Format(time.RFC3339)
	}
	fmt.Fprintf(out,
		"can't be known: what was revoked %s and is not in this table. Compare it with your own notes, and revoke it again\n",
		since)
	fmt.Fprintln(out,
		"can't be known: certificates that are in none of these places. If files in issued/ were lost too, ask the signers "+
			"for theirs,\n"+
			"put them there as SERIAL.pem, and run this again")
	return nil
}
