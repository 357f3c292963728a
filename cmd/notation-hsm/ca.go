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
	return cli.Group("ca", "Run a certificate authority whose key stays in a module",
		caInitCommand(ks), caIssueCommand(ks), caListCommand(ks), caShowCommand(ks), caRevokeCommand(ks), caCRLCommand(ks),
		caRecoverCommand(ks))
}

func caInitCommand(ks *keystore.Keystore) *cobra.Command {
	var reference, parent string
	var terms ca.Terms
	var pathLength int
	c := &cobra.Command{
		Use:   "init NAME",
		Short: "Make a root CA, or an intermediate, of a key in a module",
		Long: `Make a CA of a key in a module: a root, or with --parent an intermediate. The root's token is then needed only to certify
intermediates and to sign the root's own revocation lists. The settings given as flags are stored with the CA; they are for the new CA's
key. A library or command that they name is listed in the config file as well. The new CA's certificate and its issuers are printed as PEM.`,
		Example: `  notation-hsm ca init root --key "pkcs11:token=vault;object=root" --subject "CN=Example Root,O=Example,C=CH,ST=Zurich" --days 7300
  notation-hsm ca init signing --parent root --key "pkcs11:token=issuing;object=signing" --path-length 0 \
    --subject "CN=Example Signing,O=Example,C=CH,ST=Zurich" --days 1825 --cdp http://pki.example.com/root.crl`,
		Args: cli.Exactly(1),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	folder := addCAFolder(c)
	addTerms(c, &terms)
	c.Flags().StringVar(&reference, "key", "", "the CA's key, by URI or alias (required)")
	c.Flags().StringVar(&parent, "parent", "", "the CA that certifies this one (default: none, a root)")
	c.Flags().IntVar(&pathLength, "path-length", 0, "how many CAs may follow below this one (default: no limit)")
	c.Flags().StringArrayVar(&terms.Permit, "permit", nil,
		"name constraint: dns:, email:, uri: or ip: and what is allowed below; may be repeated")
	c.Flags().StringArrayVar(&terms.Exclude, "exclude", nil, "name constraint: what is not allowed below; may be repeated")
	c.RunE = func(c *cobra.Command, args []string) error {
		if reference == "" {
			return failure.New(failure.Invalid, "a CA needs a --key").WithHint(`as in: --key "pkcs11:token=vault;object=root"`)
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
		say := func(format string, args ...any) { fmt.Fprintf(c.ErrOrStderr(), format+"\n", args...) }
		if err := custody.Allow(c.Context(), reference, stored, config.Stored(filepath.Join(dir, args[0])), say); err != nil {
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
		Short: "Issue a signer's certificate, and print it with its chain",
		Long: `Issue a certificate that Notation accepts for signing, for a key in a module or for a certificate request. For a key, the chain is
also stored beside it. The chain is printed as PEM: leaf, intermediates, root. Of a request only its key counts, and its subject unless
--subject is given; the certificate that comes of it is shown first, and has to be agreed to. A subject that a certificate of another key has,
revoked or not, is refused unless --allow-subject-of names that certificate. The settings given as flags are for --key, or else for the CA's
key.`,
		Example: `  notation-hsm ca issue --ca signing --key "pkcs11:token=signing;object=release" --subject "CN=release,O=Example,C=CH,ST=Zurich" \
    --days 365 --cdp http://pki.example.com/signing.crl > release.pem
  notation-hsm ca issue --ca signing --csr release.csr --days 365 > release.pem
  notation-hsm ca issue --ca signing --csr release.csr --subject "CN=release,O=Example,C=CH,ST=Zurich" --days 365 --yes > release.pem`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	open := addCA(ks, c, &name)
	addTerms(c, &terms)
	c.Flags().StringVar(&csr, "csr", "", "file with the certificate request, in PEM")
	c.Flags().StringVar(&reference, "key", "", "the key to certify, by URI or alias")
	c.Flags().StringVar(&same, "allow-subject-of", "",
		"let the key have the subject of the certificate with this serial number, which is another key's")
	c.Flags().BoolVar(&yes, "yes", false, "with --csr: don't ask")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if (csr == "") == (reference == "") {
			return failure.New(failure.Invalid, "what to certify is given by one of --csr and --key").
				WithHint("see '" + c.CommandPath() + " --help'")
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
		sayMoved(c, a)
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
		Short:   "Show a CA's certificate, and what became of those it has issued",
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
		return "none yet; the record of an earlier version is moved when the CA's key is used next"
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

func caRevokeCommand(ks *keystore.Keystore) *cobra.Command {
	var name, serial, reference, file, reason string
	c := &cobra.Command{
		Use:   "revoke",
		Short: "Revoke a certificate, or all of a key's",
		Long: `Note in the CA's ledger that a certificate is revoked, or every certificate of a key. The world learns of it from the next revocation
list: run 'notation-hsm ca crl' and publish that. What is revoked stays so. The CA's key signs the ledger if it can be reached; if not, the
revocation is noted without. The settings given as flags are for --key.`,
		Example: `  notation-hsm ca revoke --ca signing --key "pkcs11:token=signing;object=release" --reason keyCompromise
  notation-hsm ca revoke --ca signing --cert release.pem --reason superseded`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	open := addCA(ks, c, &name)
	c.Flags().StringVar(&serial, "serial", "", "the certificate's serial number, in hex, as 'ca show' prints it")
	c.Flags().StringVar(&reference, "key", "", "the key whose certificates are meant, by URI or alias")
	c.Flags().StringVar(&file, "cert", "", "PEM file with the certificate first")
	c.Flags().StringVar(&reason, "reason", "", "why (required): "+strings.Join(ca.Reasons(), ", "))
	c.RunE = func(c *cobra.Command, _ []string) error {
		count := 0
		for _, value := range []string{serial, reference, file} {
			if value != "" {
				count++
			}
		}
		if count != 1 {
			return failure.New(failure.Invalid, "what to revoke is given by one of --serial, --key and --cert").
				WithHint("see '" + c.CommandPath() + " --help'")
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
		sayMoved(c, a)
		out := c.ErrOrStderr()
		for _, e := range done.Entries {
			fmt.Fprintf(out, "certificate %s of %q is revoked since %s (%s)\n", e.Serial, e.Subject,
				e.Revoked.Format(time.RFC3339), e.Reason)
		}
		if done.Unsigned != nil {
			fmt.Fprintf(out,
				"warning: the CA's key did not sign the revocation, so whoever can write to %s can still remove it: %s\n", a.Path(),
				failure.From(done.Unsigned))
		}
		fmt.Fprintf(out,
			"next: notation-hsm ca crl --ca %s, and publish the list where the certificates say; until then nobody knows\n",
			a.Name)
		return nil
	}
	return c
}

func caCRLCommand(ks *keystore.Keystore) *cobra.Command {
	var name, next, out string
	c := &cobra.Command{
		Use:   "crl",
		Short: "Sign a new revocation list, and print where it is",
		Long: `Sign a new list of all revoked certificates (DER, as it is published over HTTP) and print the path of its file. Verifiers refuse a list
whose next update has passed, so sign a new one before then, revoked or not; and they may keep a list until then, so a far next update
delays what you revoke. The settings given as flags are for the CA's key.`,
		Example: "  notation-hsm ca crl --ca signing --next-update 7d --out /var/www/pki/signing.crl",
		Args:    cli.Exactly(0),
	}
	given := cli.AddSettings(c, cli.TokenSettings...)
	open := addCA(ks, c, &name)
	c.Flags().StringVar(&next, "next-update", "7d", "how long the list holds, such as 7d or 12h")
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
		sayMoved(c, a)
		fmt.Fprintf(c.ErrOrStderr(),
			"list %s with %d revoked certificates holds until %s: publish it, and sign the next one before then\n",
			list.Number, len(list.RevokedCertificateEntries), list.NextUpdate.Format(time.RFC3339))
		fmt.Fprintln(c.OutOrStdout(), path)
		return nil
	}
	return c
}

func addTerms(c *cobra.Command, terms *ca.Terms) {
	c.Flags().StringVar(&terms.Subject, "subject", "", `distinguished name, as in "CN=release,O=Example,C=CH,ST=Zurich"`)
	c.Flags().IntVar(&terms.Days, "days", 0, "how long it is valid (required)")
	c.Flags().StringVar(&terms.CDP, "cdp", "", "http:// address that the issuer's revocation list is published at")
	c.Flags().StringVar(&terms.OCSP, "ocsp", "", "http:// address of an OCSP responder for the issuer's certificates")
}

// addCAFolder gives a command the flag for the folder of the CAs, and returns a function that finds it.
func addCAFolder(c *cobra.Command) func() (string, error) {
	dir := c.Flags().String("ca-dir", "",
		"folder of the CAs (default NOTATION_HSM_CA_DIR, else notation-hsm/ca in the user's configuration directory)")
	return func() (string, error) { return ca.Folder(*dir) }
}

// addCA gives a command the flags that name a CA, and returns a function that opens it.
func addCA(ks *keystore.Keystore, c *cobra.Command, name *string) func() (*ca.Authority, error) {
	folder := addCAFolder(c)
	c.Flags().StringVar(name, "ca", "", "the CA, by its name (required)")
	return func() (*ca.Authority, error) {
		if *name == "" {
			return nil, failure.New(failure.Invalid, "which CA is meant is given by --ca").
				WithHint("as in: --ca signing; see 'notation-hsm ca list'")
		}
		dir, err := folder()
		if err != nil {
			return nil, err
		}
		return ca.Open(ks, dir, *name)
	}
}

// sayMoved tells that a CA of an earlier version has a ledger now.
func sayMoved(c *cobra.Command, a *ca.Authority) {
	if a.Moved {
		fmt.Fprintf(c.ErrOrStderr(),
			"the record of the CA %q was moved from index.json and crlnumber into %s, signed by its key; back that up "+
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
