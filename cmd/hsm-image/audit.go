package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/audit"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/logflags"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	"github.com/notation-hsm/notation-hsm/internal/trust"
)

// settle is how long a broker takes to publish a signature: a second, and some more.
const settle = 2 * time.Second

// auditFlags are the flags of audit.
type auditFlags struct {
	logflags.Flags
	manifest    string
	logs, certs []string
	registry    approvalsOptions
	asJSON      bool
}

func auditCommand() *cobra.Command {
	var f auditFlags
	c := &cobra.Command{
		Use:   "audit REPOSITORY --log URL|DIR --key KEY",
		Short: "Find signatures in a repository that are not in the log of the broker",
		Long: `Look up every Notation signature in a repository in the log of the broker that holds the keys. A
signature that is not in the log was made without the broker, such as by someone who knows the PIN of a
key: it is an incident, and the exit code is 1.

All signatures are looked up. With --cert or --manifest, only those by the keys of these certificates, or
of certificates under them.

It reads all tags, the images of indexes, and what refers to them. A registry does not list images without
a tag: their signatures are found only where the registry has the tags of the referrers tag schema.
Signatures of the log that the repository does not have are listed as well, and are no incident: images
are deleted.`,
		Example: `  hsm-image audit registry.example.com/team/app --log https://broker.example.com/v1/log \
    --key log.pem --origin broker.example.com/log --manifest trust.yaml`,
		Args: cli.Exactly(1),
	}
	f.registry.add(c)
	c.Flags().StringArrayVar(&f.logs, "log", nil,
		"URL of the log, or the folder that it was exported to; again for copies of earlier epochs (required)")
	f.Add(c)
	c.Flags().StringArrayVar(&f.certs, "cert", nil,
		"PEM file with certificates of keys, or of their CAs, whose signatures are audited; can be repeated")
	c.Flags().StringVar(&f.manifest, "manifest", "", "trust manifest, whose signers' signatures are audited")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error { return f.run(c, args[0]) }
	return c
}

func (f *auditFlags) run(c *cobra.Command, text string) error {
	if err := cli.RefuseEmpty(c, "ca", "manifest"); err != nil {
		return err
	}
	if len(f.logs) == 0 {
		return cli.Required(c, "log", "https://broker.example.com/v1/log")
	}
	repository, err := parseRepository(text)
	if err != nil {
		return err
	}
	certificates, err := f.certificates()
	if err != nil {
		return err
	}
	verify, err := f.verifyLogs(c)
	if err != nil {
		return err
	}
	wait := settle
	if !logflags.IsURL(f.logs[0]) { // a folder does not change
		wait = 0
	}
	registries := registry.New(registry.Options{AuthFile: f.registry.authFile, PlainHTTP: f.registry.plainHTTP,
		Limits: audit.Limits})
	defer registries.Close()
	report, err := audit.Run(c.Context(), audit.Options{Registries: registries, Repository: repository,
		Certificates: certificates, Check: gate.CheckEnvelope, Logs: verify, Settle: wait})
	if err != nil {
		return err
	}
	if f.asJSON {
		err = cli.PrintJSON(c.OutOrStdout(), report)
	} else {
		err = printAudit(c, report)
	}
	if n := len(report.Incidents); err == nil && n > 0 {
		err = failure.New(failure.Conflict, "%d of %d signatures in %s are not in the log %s", n, report.Signatures,
			repository, report.Logs[0].Origin).
			WithHint("block the key with 'hsm-broker key block', change its PIN, and find out who has signed")
	}
	return err
}

// certificates returns those whose signatures are audited; none means all signatures.
func (f *auditFlags) certificates() (all []*x509.Certificate, err error) {
	for _, path := range f.certs {
		list, err := certs.ReadFile(path)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	if f.manifest == "" {
		return all, nil
	}
	m, err := trust.Load(f.manifest)
	if err != nil {
		return nil, err
	}
	for _, s := range m.Signers {
		list, err := certs.Parse([]byte(s.Certificate))
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	if len(all) == 0 {
		return nil, failure.New(failure.Invalid, "the trust manifest %s has no signer", f.manifest).
			WithHint("leave --manifest out, to audit all signatures")
	}
	return all, nil
}

// verifyLogs returns what verifies the logs.
func (f *auditFlags) verifyLogs(c *cobra.Command) (all []func(context.Context, translog.Options) (*translog.Report,
	error), err error) {
	verifiers, err := f.Verifiers(c)
	if err != nil {
		return nil, err
	}
	for _, log := range f.logs {
		all = append(all, func(ctx context.Context, opts translog.Options) (*translog.Report, error) {
			return f.Verify(ctx, log, verifiers, opts)
		})
	}
	return all, nil
}

func printAudit(c *cobra.Command, r *audit.Report) error {
	w := c.OutOrStdout()
	var rows [][]string
	for _, log := range r.Logs {
		rows = append(rows, []string{"  log", fmt.Sprintf("%s, %d entries", log.Origin, log.Size)})
	}
	rows = append(rows, []string{"  images", fmt.Sprint(r.Images)}, []string{"  signatures", fmt.Sprint(r.Signatures)},
		[]string{"  by other keys", fmt.Sprint(r.Others)}, []string{"  not valid", fmt.Sprint(r.Invalid)},
		[]string{"  only in the log", fmt.Sprint(r.AbsentCount)}, []string{"  incidents", fmt.Sprint(len(r.Incidents))})
	if err := cli.PrintTable(w, []string{r.Repository}, rows); err != nil {
		return err
	}
	for _, i := range r.Incidents {
		rows := [][]string{{"  tag", cli.OrDash(i.Tag)}, {"  image", i.Image}, {"  signature", i.Signature},
			{"  signer", i.Subject}, {"  certificate", i.Leaf}, {"  signed", cli.FormatTime(&i.Signed) + " (as it says)"},
			{"  reason", i.Reason}}
		fmt.Fprintln(w)
		if err := cli.PrintTable(w, []string{"incident"}, rows); err != nil {
			return err
		}
	}
	if len(r.Absent) == 0 {
		return nil
	}
	rows = nil
	for _, a := range r.Absent {
		rows = append(rows, []string{fmt.Sprint(a.Index), cli.FormatTime(&a.Time), a.Key, a.Image})
	}
	fmt.Fprintln(w)
	return cli.PrintTable(w, []string{"ONLY IN THE LOG", "SIGNED", "KEY", "IMAGE"}, rows)
}
