package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/custody"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

func caCommand(ks *keystore.Keystore) *cobra.Command {
	direct := ks.Direct() // a CA signs its ledger, which is no format of a broker
	return cli.Group("ca", "Run a certificate authority (CA) whose key stays in a module", caInitCommand(direct),
		caIssueCommand(direct), caListCommand(direct), caShowCommand(direct), caRevokeCommand(direct, ks),
		caCRLCommand(direct), caRecoverCommand(direct))
}

func caInitCommand(ks *keystore.Keystore) *cobra.Command {
	var reference, parent string
	var terms ca.Terms
	var pathLength int
	c := &cobra.Command{
		Use:   "init NAME",
		Short: "Create a root CA or an intermediate CA for a key in a module",
		Long: `Create a CA for a key in a module: a root, or with --parent an intermediate. With intermediates, the
token of the root is needed only to certify them and to sign the root's revocation lists. The
settings given as flags are for the key of the new CA and are stored with the CA. A library or
command that they name is also added to the config file. The command prints the certificate of the
CA and its issuers as PEM.`,
		Example: `  notation-hsm ca init root --key "pkcs11:token=vault;object=root" \
    --subject "CN=Example Root,O=Example,C=CH,ST=Zurich" --days 7300
  notation-hsm ca init signing --parent root --key "pkcs11:token=issuing;object=signing" \
    --subject "CN=Example Signing,O=Example,C=CH,ST=Zurich" --days 1825 --path-length 0 \
    --cdp http://pki.example.com/root.crl`,
		Args: cli.Exactly(1),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	folder := addCAFolder(c)
	addTerms(c, &terms)
	c.Flags().StringVar(&reference, "key", "", "URI or alias of the CA's key (required)")
	c.Flags().StringVar(&parent, "parent", "", "CA that certifies this one (default: none; the CA is a root)")
	c.Flags().IntVar(&pathLength, "path-length", 0, "largest number of CAs in a chain below this one (default: no limit)")
	c.Flags().StringArrayVar(&terms.Permit, "permit", nil,
		"name constraint: permit names below dns:, email:, uri: or ip:; can be repeated")
	c.Flags().StringArrayVar(&terms.Exclude, "exclude", nil,
		"name constraint: exclude names below dns:, email:, uri: or ip:; can be repeated")
	c.RunE = func(c *cobra.Command, args []string) error {
		switch {
		case reference == "":
			return cli.Required(c, "key", `"pkcs11:token=vault;object=root"`)
		case terms.Subject == "":
			return cli.Required(c, "subject", `"CN=Example Root,O=Example,C=CH,ST=Zurich"`)
		case terms.Days == 0:
			return cli.Required(c, "days", "7300")
		}
		if c.Flags().Changed("path-length") {
			terms.PathLength = &pathLength
		}
		dir, err := folder()
		if err != nil {
			return err
		}
		stored, err := config.Lasting(given())
		if err != nil {
			return err
		}
		origin := config.Stored(filepath.Join(dir, args[0]))
		if err := custody.Allow(c.Context(), reference, stored, origin, notifier(c)); err != nil {
			return err
		}
		a, err := ca.Init(c.Context(), ks, dir, args[0], reference, stored, config.Flags, parent, terms)
		if err != nil {
			return err
		}
		_, err = c.OutOrStdout().Write(a.Chain())
		return err
	}
	return c
}

func caIssueCommand(ks *keystore.Keystore) *cobra.Command {
	var name, csr, reference, same string
	var yes bool
	var terms ca.Terms
	c := &cobra.Command{
		Use:   "issue",
		Short: "Issue a certificate for a signer, and print it with its chain",
		Long: `Issue a certificate that Notation accepts for signing, for a key in a module or for a certificate
request. The command prints the chain as PEM: leaf, intermediates, root. For a key, the chain is
also stored on its token. From a request only the key is used, and the subject unless --subject is
given; the command prints the certificate first, and asks for confirmation. A subject that is in a
certificate of another key, revoked or not, is refused unless --allow-subject-of names that
certificate. The settings given as flags are for --key if it is given, and else for the CA's key.`,
		Example: `  notation-hsm ca issue --ca signing --key "pkcs11:token=signing;object=release" \
    --subject "CN=release,O=Example,C=CH,ST=Zurich" --days 365 \
    --cdp http://pki.example.com/signing.crl > release.pem
  notation-hsm ca issue --ca signing --csr release.csr --days 365 > release.pem
  notation-hsm ca issue --ca signing --csr release.csr --days 365 --yes \
    --subject "CN=release,O=Example,C=CH,ST=Zurich" > release.pem`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	open := addCA(ks, c, &name)
	addTerms(c, &terms)
	c.Flags().StringVar(&csr, "csr", "", "PEM file with the certificate request")
	c.Flags().StringVar(&reference, "key", "", "URI or alias of the key to certify")
	c.Flags().StringVar(&same, "allow-subject-of", "",
		"allow the subject of the certificate of another key, by its serial number in hex")
	c.Flags().BoolVar(&yes, "yes", false, "with --csr: do not ask for confirmation")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if (csr == "") == (reference == "") {
			return cli.Usage(c, failure.New(failure.Invalid, "exactly one of --csr and --key is required"))
		}
		switch {
		case reference != "" && terms.Subject == "":
			return cli.Required(c, "subject", subjectExample)
		case terms.Days == 0:
			return cli.Required(c, "days", "365")
		}
		a, err := open()
		if err != nil {
			return err
		}
		var result *ca.Issued
		if csr != "" {
			result, err = a.IssueRequest(c.Context(), csr, given(), terms, ca.AllowSubjectOf(same), func(shown ca.Part) error {
				if err := printPart(c.ErrOrStderr(), shown); err != nil || yes {
					return err
				}
				return cli.Ask(c.Context(), "type yes to issue this certificate", "yes")
			})
		} else {
			var s *keystore.Reference
			if s, err = ks.Resolve(reference, given(), config.Flags); err == nil {
				result, err = a.IssueKey(c.Context(), s, terms, ca.AllowSubjectOf(same))
			}
		}
		if result == nil {
			return err
		}
		reportMigration(c, a)
		warnIdentity(c.ErrOrStderr(), result.Lacks)
		_, printed := c.OutOrStdout().Write(result.Chain)
		return errors.Join(err, printed)
	}
	return c
}

func caListCommand(ks *keystore.Keystore) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the CAs",
		Example: "  notation-hsm ca list",
		Args:    cli.Exactly(0),
	}
	folder := addCAFolder(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		dir, err := folder()
		if err != nil {
			return err
		}
		all, err := ca.List(ks, dir)
		if err != nil {
			return err
		}
		shown := make([]*ca.Summary, len(all))
		rows := make([][]string, len(all))
		for i, a := range all {
			if shown[i], err = a.Show(); err != nil {
				return err
			}
			s := shown[i]
			rows[i] = []string{s.Name, cli.OrDash(s.Parent), fmt.Sprintf("%q", s.Subject), day(s.NotAfter),
				fmt.Sprint(len(s.Issued)), fmt.Sprint(s.Revoked), nextUpdate(s), s.Key}
		}
		if asJSON {
			return cli.PrintJSON(c.OutOrStdout(), shown)
		}
		return cli.PrintTable(c.OutOrStdout(),
			[]string{"NAME", "PARENT", "SUBJECT", "UNTIL", "ISSUED", "REVOKED", "NEXT CRL BY", "KEY"}, rows)
	}
	return c
}

func caShowCommand(ks *keystore.Keystore) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a CA, and the certificates that it has issued",
		Example: "  notation-hsm ca show signing",
		Args:    cli.Exactly(1),
	}
	folder := addCAFolder(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		dir, err := folder()
		if err != nil {
			return err
		}
		a, err := ca.Open(ks, dir, args[0])
		if err != nil {
			return err
		}
		s, err := a.Show()
		if err != nil {
			return err
		}
		if asJSON {
			return cli.PrintJSON(c.OutOrStdout(), s)
		}
		rows := append([][]string{{"Name:", s.Name}, {"Parent:", cli.OrDash(s.Parent)}, {"Key:", s.Key}}, a.Describe()...)
		rows = append(rows, []string{"SHA-256:", s.Fingerprint}, []string{"Folder:", s.Folder},
			[]string{"Issued:", fmt.Sprint(len(s.Issued))},
			[]string{"Revoked:", fmt.Sprint(s.Revoked)}, []string{"Next CRL by:", nextUpdate(s)},
			[]string{"Ledger:", ledgerState(s)})
		if err := cli.PrintTable(c.OutOrStdout(), rows[0], rows[1:]); err != nil || len(s.Issued) == 0 {
			return err
		}
		fmt.Fprintln(c.OutOrStdout())
		return cli.PrintTable(c.OutOrStdout(), []string{"SERIAL", "STATE", "SUBJECT", "ISSUED", "UNTIL", "REVOKED"},
			entryRows(s.Issued))
	}
	return c
}

func ledgerState(s *ca.Summary) string {
	switch {
	case s.Head == "":
		return "none yet; the next use of the CA's key migrates the record of an earlier version"
	case s.Unsigned > 0:
		return fmt.Sprintf("%d records, head %s, the last %d not signed yet", s.Records, s.Head, s.Unsigned)
	}
	return fmt.Sprintf("%d records, head %s, signed", s.Records, s.Head)
}

func entryRows(entries []ca.Entry) [][]string {
	rows := make([][]string, len(entries))
	for i, e := range entries {
		revoked := "-"
		if e.Revoked != nil {
			revoked = day(*e.Revoked) + " " + string(e.Reason)
		}
		rows[i] = []string{e.Serial, e.State(), fmt.Sprintf("%q", e.Subject), day(e.Issued), day(e.NotAfter), revoked}
	}
	return rows
}

func caRevokeCommand(cas, ks *keystore.Keystore) *cobra.Command {
	var name, serial, reference, file, reason string
	c := &cobra.Command{
		Use:   "revoke",
		Short: "Revoke a certificate, or all certificates of a key",
		Long: `Record in the CA's ledger that a certificate, or every certificate of a key, is revoked. A
revocation cannot be undone. Verifiers learn of it from the next revocation list: run 'notation-hsm
ca crl', and publish the list. The CA's key signs the ledger; if the key cannot be reached, the
revocation is recorded without its signature. The settings given as flags are for --key.`,
		Example: `  notation-hsm ca revoke --ca signing --reason keyCompromise \
    --key "pkcs11:token=signing;object=release"
  notation-hsm ca revoke --ca signing --cert release.pem --reason superseded`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	open := addCA(cas, c, &name)
	c.Flags().StringVar(&serial, "serial", "", "serial number of the certificate in hex, as 'ca show' prints it")
	c.Flags().StringVar(&reference, "key", "", "URI or alias of the key whose certificates are revoked")
	c.Flags().StringVar(&file, "cert", "", "PEM file that begins with the certificate")
	c.Flags().StringVar(&reason, "reason", "", "reason (required): "+strings.Join(ca.Reasons(), ", "))
	c.RunE = func(c *cobra.Command, _ []string) error {
		count := 0
		for _, value := range []string{serial, reference, file} {
			if value != "" {
				count++
			}
		}
		if count != 1 {
			return cli.Usage(c, failure.New(failure.Invalid, "exactly one of --serial, --key and --cert is required"))
		}
		if reason == "" {
			return cli.Required(c, "reason", "keyCompromise")
		}
		a, err := open()
		if err != nil {
			return err
		}
		var done ca.Revocation
		switch {
		case serial != "":
			done, err = a.RevokeSerial(c.Context(), serial, reason)
		case file != "":
			done, err = a.RevokeFile(c.Context(), file, reason)
		default:
			var s *keystore.Reference
			if s, err = ks.Resolve(reference, given(), config.Flags); err == nil {
				done, err = a.RevokeKey(c.Context(), s, reason)
			}
		}
		if err != nil {
			return err
		}
		reportMigration(c, a)
		out := c.ErrOrStderr()
		for _, e := range done.Entries {
			fmt.Fprintf(out, "certificate %s of %q is revoked since %s (%s)\n", e.Serial, e.Subject,
				e.Revoked.Format(time.RFC3339), e.Reason)
		}
		if done.Unsigned != nil {
			fmt.Fprintf(out,
				"warning: the CA's key did not sign the revocation, so whoever can write to %s can still remove it: %s\n",
				a.Path(), failure.From(done.Unsigned))
		}
		fmt.Fprintf(out,
			"next: notation-hsm ca crl --ca %s; then publish the list, from which verifiers learn of the revocation\n",
			a.Name)
		return nil
	}
	return c
}

func caCRLCommand(ks *keystore.Keystore) *cobra.Command {
	var name, next, out string
	c := &cobra.Command{
		Use:   "crl",
		Short: "Sign a new revocation list, and print the path of its file",
		Long: `Sign a new list of all revoked certificates, in DER for publication over HTTP, and print the path of
its file. Verifiers refuse a list after its next update, so sign a new one before then, even if
nothing was revoked. Verifiers can cache a list until its next update, so a distant next update
delays the effect of revocations. The settings given as flags are for the CA's key.`,
		Example: "  notation-hsm ca crl --ca signing --next-update 7d --out /var/www/pki/signing.crl",
		Args:    cli.Exactly(0),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	open := addCA(ks, c, &name)
	c.Flags().StringVar(&next, "next-update", "7d", "how long the list is valid, such as 7d or 12h")
	c.Flags().StringVar(&out, "out", "", "also write the list to this file")
	c.RunE = func(c *cobra.Command, _ []string) error {
		a, err := open()
		if err != nil {
			return err
		}
		list, path, err := a.CRL(c.Context(), given(), next, out)
		if err == nil && out != "" {
			path, err = out, state.Write(out, list.Raw, 0o644)
		}
		if err != nil {
			return err
		}
		reportMigration(c, a)
		fmt.Fprintf(c.ErrOrStderr(),
			"list %s with %d revoked certificates is valid until %s: publish it, and sign the next list before then\n",
			list.Number, len(list.RevokedCertificateEntries), list.NextUpdate.Format(time.RFC3339))
		fmt.Fprintln(c.OutOrStdout(), path)
		return nil
	}
	return c
}

// addTerms gives a command the flags for the terms of a certificate.
func addTerms(c *cobra.Command, terms *ca.Terms) {
	c.Flags().StringVar(&terms.Subject, "subject", "", "distinguished name, as in "+subjectExample)
	c.Flags().IntVar(&terms.Days, "days", 0, "how many days the certificate is valid (required)")
	c.Flags().StringVar(&terms.CDP, "cdp", "", "http:// URL at which the issuer's revocation list is published")
	c.Flags().StringVar(&terms.OCSP, "ocsp", "", "http:// URL of an OCSP responder for the issuer's certificates")
}

// addCAFolder gives a command the flag for the folder of the CAs, and returns a function that returns the folder.
func addCAFolder(c *cobra.Command) func() (string, error) {
	dir := c.Flags().String("ca-dir", "",
		"folder of the CAs (default: NOTATION_HSM_CA_DIR, else notation-hsm/ca in the user's configuration directory)")
	return func() (string, error) { return ca.Folder(*dir) }
}

// addCA gives a command the flags that name a CA, and returns a function that opens it.
func addCA(ks *keystore.Keystore, c *cobra.Command, name *string) func() (*ca.Authority, error) {
	folder := addCAFolder(c)
	c.Flags().StringVar(name, "ca", "", "name of the CA (required)")
	return func() (*ca.Authority, error) {
		if *name == "" {
			return nil, cli.Required(c, "ca", "signing")
		}
		dir, err := folder()
		if err != nil {
			return nil, err
		}
		return ca.Open(ks, dir, *name)
	}
}

// reportMigration tells the user that the record of a CA of an earlier version is now a ledger.
func reportMigration(c *cobra.Command, a *ca.Authority) {
	if a.Moved {
		fmt.Fprintf(c.ErrOrStderr(),
			"moved the record of the CA %q from index.json and crlnumber into %s, signed by its key; back up that file "+
				"from now on\n", a.Name, a.Path())
	}
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func nextUpdate(s *ca.Summary) string {
	if s.CRLNextUpdate == nil {
		return "no CRL yet"
	}
	return s.CRLNextUpdate.UTC().Format("2006-01-02 15:04:05 MST")
}
