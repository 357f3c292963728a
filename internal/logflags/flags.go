// Package logflags has the flags of commands that read the log of a broker, so that they are the same in all commands.
package logflags

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Flags say which key a log is verified with, and which certificate authorities its server has.
type Flags struct {
	Keys       []string // ORIGIN+ID+KEY, or files with it or with the public key in PEM
	Origin, CA string
}

// Add adds the flags to a command.
func (f *Flags) Add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.Keys, "key", nil,
		"the log's public key: ORIGIN+ID+KEY, or a PEM file; again for each key that signed checkpoints")
	c.Flags().StringVar(&f.Origin, "origin", "", "the log's name, such as broker.example.com/log, for a key in a PEM file")
	c.Flags().StringVar(&f.CA, "ca", "",
		"PEM file of the certificate authorities of the log's server (default: the system's)")
}

// Verifiers returns the verifiers of the keys that were given. It fails if there is none.
func (f *Flags) Verifiers(c *cobra.Command) ([]*translog.Verifier, error) {
	if len(f.Keys) == 0 {
		return nil, cli.Required(c, "key", "log.pem --origin broker.example.com/log")
	}
	var all []*translog.Verifier
	for _, text := range f.Keys {
		v, err := f.verifier(c, text)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func (f *Flags) verifier(c *cobra.Command, text string) (*translog.Verifier, error) {
	v, err := f.parse(c, text)
	if err == nil && f.Origin != "" && v.Name() != f.Origin {
		return nil, failure.New(failure.Invalid, "the key is of the log %q, and --origin is %q", v.Name(), f.Origin).
			WithHint("leave --origin out, or give the key of that log")
	}
	return v, err
}

func (f *Flags) parse(c *cobra.Command, text string) (*translog.Verifier, error) {
	if strings.Contains(text, "+") {
		return translog.ParseVerifier(text)
	}
	data, err := ReadFile(text)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return translog.ParseVerifier(string(data))
	}
	if f.Origin == "" {
		return nil, cli.Required(c, "origin", "broker.example.com/log")
	}
	public, err := publicKey(block)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the public key in %s: %w", text, err).
			WithHint("use a PEM file with a block PUBLIC KEY or CERTIFICATE")
	}
	return translog.NewVerifier(f.Origin, public)
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

// Files returns the log at a URL or in a folder.
func (f *Flags) Files(log string) (translog.Files, error) {
	if !IsURL(log) {
		return translog.Dir(log), nil
	}
	roots, err := f.roots()
	if err != nil {
		return nil, err
	}
	return translog.URL(log, roots)
}

// IsURL reports whether a log is named by a URL, and not by a folder.
func IsURL(log string) bool { return strings.Contains(log, "://") }

// roots returns the certificate authorities of the log's server; nil are those of the system.
func (f *Flags) roots() (*x509.CertPool, error) {
	if f.CA == "" {
		return nil, nil
	}
	data, err := ReadFile(f.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, failure.New(failure.Invalid, "%s has no certificate", f.CA).WithHint("use a PEM file")
	}
	return roots, nil
}

// Verify verifies the log at a URL or in a folder.
func (f *Flags) Verify(ctx context.Context, log string, verifiers []*translog.Verifier, opts translog.Options,
) (*translog.Report, error) {
	if !IsURL(log) {
		return translog.VerifyDir(ctx, log, verifiers, opts)
	}
	roots, err := f.roots()
	if err != nil {
		return nil, err
	}
	return translog.VerifyURL(ctx, log, roots, verifiers, opts)
}

// ReadFile reads a file of at most 1 MiB.
func ReadFile(path string) ([]byte, error) {
	data, err := bound.ReadFile(path, 1<<20)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read %s: %w", path, err).
			WithHint("check the path, and that this user can read the file")
	}
	return data, nil
}
