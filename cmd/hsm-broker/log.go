package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

func logCommand() *cobra.Command {
	return cli.Group("log", "Verify, export and compare the log of a broker", logVerifyCommand(), logExportCommand(),
		logReconcileCommand(), logMonitorCommand(), logKeyCommand(), newEpochCommand())
}

// logFlags say which log is read, and how it is verified.
type logFlags struct {
	keys       []string
	origin, ca string
}

func (f *logFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.keys, "key", nil,
		"the log's public key: ORIGIN+ID+KEY, or a PEM file; again for each key that signed checkpoints")
	c.Flags().StringVar(&f.origin, "origin", "", "the log's name, such as broker.example.com/log, for a key in a PEM file")
	c.Flags().StringVar(&f.ca, "ca", "",
		"PEM file of the certificate authorities of the log's server (default: the system's)")
}

// verifiers returns the verifiers of the keys that were given.
func (f *logFlags) verifiers(c *cobra.Command) ([]*translog.Verifier, error) {
	if len(f.keys) == 0 {
		return nil, cli.Required(c, "key", "log.pem --origin broker.example.com/log")
	}
	var all []*translog.Verifier
	for _, text := range f.keys {
		v, err := f.verifier(c, text)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func (f *logFlags) verifier(c *cobra.Command, text string) (*translog.Verifier, error) {
	v, err := f.parse(c, text)
	if err == nil && f.origin != "" && v.Name() != f.origin {
		return nil, failure.New(failure.Invalid, "the key is of the log %q, and --origin is %q", v.Name(), f.origin).
			WithHint("leave --origin out, or give the key of that log")
	}
	return v, err
}

func (f *logFlags) parse(c *cobra.Command, text string) (*translog.Verifier, error) {
	if strings.Contains(text, "+") {
		return translog.ParseVerifier(text)
	}
	data, err := readFile(text)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return translog.ParseVerifier(string(data))
	}
	if f.origin == "" {
		return nil, cli.Required(c, "origin", "broker.example.com/log")
	}
	public, err := publicKey(block)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the public key in %s: %w", text, err).
			WithHint("use a PEM file with a block PUBLIC KEY or CERTIFICATE")
	}
	return translog.NewVerifier(f.origin, public)
}

// publicKey returns the public key of a PEM block.
func publicKey(block *pem.Block) (crypto.PublicKey, error) {
	if block.Type != "CERTIFICATE" {
		return x509.ParsePKIXPublicKey(block.Bytes)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	return certificate.PublicKey, nil
}

// files returns the log at a URL or in a folder.
func (f *logFlags) files(log string) (translog.Files, error) {
	if !isURL(log) {
		return translog.Dir(log), nil
	}
	roots, err := f.roots()
	if err != nil {
		return nil, err
	}
	return translog.URL(log, roots)
}

func isURL(log string) bool { return strings.Contains(log, "://") }

// roots returns the certificate authorities of the log's server; nil are those of the system.
func (f *logFlags) roots() (*x509.CertPool, error) {
	if f.ca == "" {
		return nil, nil
	}
	data, err := readFile(f.ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, failure.New(failure.Invalid, "%s has no certificate", f.ca).WithHint("use a PEM file")
	}
	return roots, nil
}

// verify verifies the log at a URL or in a folder.
func (f *logFlags) verify(ctx context.Context, log string, verifiers []*translog.Verifier, opts translog.Options,
) (*translog.Report, error) {
	if !isURL(log) {
		return translog.VerifyDir(ctx, log, verifiers, opts)
	}
	roots, err := f.roots()
	if err != nil {
		return nil, err
	}
	return translog.VerifyURL(ctx, log, roots, verifiers, opts)
}

func readFile(path string) ([]byte, error) {
	data, err := bound.ReadFile(path, 1<<20)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read %s: %w", path, err).
			WithHint("check the path, and that this user can read the file")
	}
	return data, nil
}

func logVerifyCommand() *cobra.Command {
	var flags logFlags
	var since string
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify DIR|URL",
		Short: "Verify a whole log: its checkpoint, its tree and each entry",
		Long: `Verify a log that was exported into a folder, or that a broker or a web server serves: the signature of
its checkpoint, that each tile and the root are those of the entries, and that each entry is one that a
broker logs: every use of a key has an intent before it, under a policy of the log, and one outcome. It
names the first entry or file that is wrong.

Keep the file checkpoint after each verification, and give it with --since the next time: the log must
continue it. So nobody can show you a log whose past was rewritten.`,
		Example: `  hsm-broker log verify https://broker.example.com/v1/log --key log.pem --origin broker.example.com/log`,
		Args:    cli.Exactly(1),
	}
	flags.add(c)
	c.Flags().StringVar(&since, "since", "", "file of an older checkpoint, which the log must continue")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		verifiers, err := flags.verifiers(c)
		if err != nil {
			return err
		}
		audit := broker.NewAudit()
		opts := translog.Options{
			Each: func(index int64, _ translog.Event, entry []byte) error { return audit.Entry(index, entry) },
		}
		if since != "" {
			data, err := readFile(since)
			if err != nil {
				return err
			}
			older, err := translog.Open(data, verifiers)
			if err != nil {
				return err
			}
			opts.Since = &older
		}
		report, err := flags.verify(c.Context(), args[0], verifiers, opts)
		if err != nil {
			return err
		}
		return printReport(c, report, asJSON)
	}
	return c
}

func logExportCommand() *cobra.Command {
	var flags logFlags
	var asJSON bool
	c := &cobra.Command{
		Use:   "export DIR|URL DIR",
		Short: "Copy a log into a folder, and verify what is copied",
		Long: `Copy a log into a folder that any web server can serve and 'hsm-broker log verify' reads. What is
copied is verified first. When the folder has a part of the log, only what follows is fetched, and it
must continue what is there. It can be interrupted and run again.`,
		Example: `  hsm-broker log export https://broker.example.com/v1/log /srv/log \
    --key log.pem --origin broker.example.com/log`,
		Args: cli.Exactly(2),
	}
	flags.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		verifiers, err := flags.verifiers(c)
		if err != nil {
			return err
		}
		if isURL(args[1]) {
			return cli.Usage(c, failure.New(failure.Invalid, "%s is not a folder", args[1]))
		}
		files, err := flags.files(args[0])
		if err != nil {
			return err
		}
		report, err := translog.Export(c.Context(), files, args[1], verifiers)
		if err != nil {
			return err
		}
		return printReport(c, report, asJSON)
	}
	return c
}

func printReport(c *cobra.Command, r *translog.Report, asJSON bool) error {
	if asJSON {
		return cli.PrintJSON(c.OutOrStdout(), r)
	}
	rows := [][]string{{"origin", r.Origin}, {"entries", fmt.Sprint(r.Size)}, {"root", r.Root.String()}}
	if r.Since != nil {
		rows = append(rows, []string{"continues", fmt.Sprintf("the checkpoint of %d entries", *r.Since)})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Types)) {
		rows = append(rows, []string{"type " + name, fmt.Sprint(r.Types[name])})
	}
	if r.Other > 0 {
		rows = append(rows, []string{"other types", fmt.Sprint(r.Other)})
	}
	if !r.First.IsZero() {
		rows = append(rows, []string{"time", local(r.First) + " to " + local(r.Last)})
	}
	if r.Backwards > 0 {
		rows = append(rows, []string{"clock", fmt.Sprintf("%d entries are older than the entry before", r.Backwards)})
	}
	if r.Duplicates > 0 {
		rows = append(rows, []string{"duplicates", fmt.Sprint(r.Duplicates)})
	}
	return cli.PrintTable(c.OutOrStdout(), []string{"LOG", "VERIFIED"}, rows)
}
