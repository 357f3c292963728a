package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

func checkConfigCommand() *cobra.Command {
	var file string
	var online bool
	c := &cobra.Command{
		Use:   "check-config",
		Short: "Find every mistake in a broker's config file and its policy, with lines",
		Long: `Find every mistake in a broker's config file and its policy, with lines, and warn of what works but is
probably not meant. With --online, it also connects to the database of replicas, logs in to the modules,
looks at each key, and asks the issuers for their keys.`,
		Args: cli.Exactly(0),
	}
	addConfig(c, &file)
	c.Flags().BoolVar(&online, "online", false,
		"connect to the database, log in to the modules, and look at the keys and issuers, too")
	c.RunE = func(c *cobra.Command, _ []string) error {
		found := &findings{c: c, file: file}
		f, p := found.read()
		if f != nil && p != nil {
			found.compare(f, p)
			found.files(f)
			found.tags(f, p)
			found.notices(f, p)
			if online && found.mistakes == 0 {
				if found.database(c.Context(), f) { // it has the PINs that were refused, which are not tried
					found.modules(c.Context(), f, p)
				}
				found.issuers(c.Context(), f)
			}
		}
		if found.mistakes > 0 {
			return failure.New(failure.Invalid, "%d mistakes", found.mistakes).WithHint("correct them, and run it again")
		}
		fmt.Fprintf(c.OutOrStdout(), "%s: valid; warnings: %d\n", file, found.warnings)
		return nil
	}
	return c
}

// findings print what is wrong with a config.
type findings struct {
	c                  *cobra.Command
	file               string
	mistakes, warnings int
}

func (f *findings) mistake(where, hint, format string, args ...any) {
	f.mistakes++
	text := where + ": " + fmt.Sprintf(format, args...)
	if hint != "" {
		text += " (" + hint + ")"
	}
	fmt.Fprintln(f.c.OutOrStdout(), text)
}

func (f *findings) failed(where string, err error) {
	e := failure.From(err)
	f.mistake(where, e.Hint, "%s", e.What)
}

func (f *findings) warn(where, format string, args ...any) {
	f.warnings++
	fmt.Fprintln(f.c.OutOrStdout(), "warning: "+where+": "+fmt.Sprintf(format, args...))
}

// read reads the config and the policy that it names, and prints all mistakes in both.
func (f *findings) read() (*brokerfile.File, *policy.Policy) {
	text, err := bound.ReadFile(f.file, brokerfile.MaxFile)
	if err != nil {
		f.mistake(f.file, "name it with --config, or make one with 'hsm-broker init'", "cannot read the config file: %v", err)
		return nil, nil
	}
	config, mistakes := brokerfile.Parse(text)
	for _, m := range mistakes {
		where := f.file
		if m.Line > 0 {
			where = fmt.Sprintf("%s:%d", f.file, m.Line)
		}
		f.mistake(where, m.Hint, "%s", m.What)
	}
	if config == nil || !filepath.IsAbs(config.Policy) {
		return nil, nil
	}
	data, err := bound.ReadFile(config.Policy, policy.MaxFile)
	if err != nil {
		f.mistake(config.Policy, "set policy in the config file", "cannot read the policy: %v", err)
		return nil, nil
	}
	p, err := policy.Parse(data)
	var problems policy.Problems
	if errors.As(err, &problems) {
		for _, one := range problems {
			f.mistake(config.Policy, "", "%s", one)
		}
		return nil, nil
	}
	if err != nil {
		f.failed(config.Policy, err)
		return nil, nil
	}
	for _, w := range p.Warnings() {
		f.warn(config.Policy, "%s", w)
	}
	if len(mistakes) > 0 {
		return nil, nil
	}
	return config, p
}

// compare holds the config against the policy.
func (f *findings) compare(c *brokerfile.File, p *policy.Policy) {
	var logKeys []string
	for _, uri := range c.Log.Key {
		if u, err := config.ParseURI(uri); err == nil {
			logKeys = append(logKeys, u.String())
		}
	}
	for _, k := range p.Keys() {
		where := c.Policy + ": keys." + k.Name
		for i, uri := range k.URIs {
			u, err := config.ParseURI(uri)
			if err == nil {
				_, err = c.ModuleOf(u)
			}
			if err != nil {
				f.failed(whichOf(where, k.URIs, i), err)
			}
			if slices.Contains(logKeys, uri) {
				f.mistake(whichOf(where, k.URIs, i), "make a key of its own for the log", "it is the log's key")
			}
		}
		if len(k.URIs) > 1 && c.Keys[k.Name].CertificateChain == "" {
			f.warn(f.file, "keys.%s is in several modules, and no certificate-chain says which public key is right", k.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Keys)) {
		if p.Key(name) == nil {
			f.warn(f.file, "keys.%s: the policy has no such key", name)
		}
	}
	for _, m := range c.Modules {
		if m[config.PINSource] == "" {
			f.warn(f.file, "the token %s has no pin-source: the broker cannot log in by itself", m[config.Token])
		}
	}
}

// files looks at the files that the config names.
func (f *findings) files(c *brokerfile.File) {
	if h := c.Listen.HTTPS; h != nil {
		pair, err := tls.LoadX509KeyPair(h.Certificate, h.Key)
		if err != nil {
			f.mistake(f.file, "", "listen.https: cannot use the certificate and key: %v", err)
		} else {
			f.certificate(c, pair.Leaf)
		}
		if info, err := os.Stat(h.Key); err == nil && info.Mode().Perm()&0o077 != 0 {
			f.mistake(h.Key, "chmod 600", "others can read the private key")
		}
	}
	if _, err := c.Decisive(); err != nil {
		f.failed(f.file, err)
	} else if h := c.Listen.HTTPS; h != nil && h.ClientCA != "" {
		data, err := os.ReadFile(h.ClientCA)
		if err != nil || !x509.NewCertPool().AppendCertsFromPEM(data) {
			f.mistake(f.file, "name a PEM file with the CA of callers' certificates",
				"listen.https.client-ca: %s has no certificate", h.ClientCA)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Keys)) {
		if path := c.Keys[name].CertificateChain; path != "" {
			if _, err := certs.ReadFile(path); err != nil {
				f.failed(f.file+": keys."+name+".certificate-chain", err)
			}
		}
	}
	if callers, err := identity.New(c.Callers, c.Administrators); err != nil { // which reads the files of issuers
		f.failed(f.file+": callers", err)
	} else {
		callers.Close()
	}
	if c.Shared() {
		f.shared(c)
		return
	}
	store := c.Folder()
	if err := ownership.Check(store, os.Geteuid()); err != nil && !failure.Is(err, failure.NotFound) {
		f.failed(f.file+": store", err)
	}
	own, err1 := os.Stat(nearest(store))
	other, err2 := os.Stat(nearest(filepath.Dir(c.Log.CheckpointFile)))
	if err1 == nil && err2 == nil && own.Sys().(*syscall.Stat_t).Dev == other.Sys().(*syscall.Stat_t).Dev {
		f.warn(f.file, "log.checkpoint-file is on the disk of the store: a restored disk brings both back, and nobody "+
			"notices that entries of the log are lost")
	}
}

// nearest returns a path, or the nearest folder above it that exists.
func nearest(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || filepath.Dir(path) == path {
			return path
		}
		path = filepath.Dir(path)
	}
}

// certificate looks at the server's certificate.
func (f *findings) certificate(c *brokerfile.File, leaf *x509.Certificate) {
	u, err := url.Parse(c.PublicURL)
	if err == nil {
		err = leaf.VerifyHostname(u.Hostname())
	}
	if err != nil {
		f.mistake(f.file, "get a certificate for the host of public-url", "listen.https.certificate: %v", err)
	}
	if left := time.Until(leaf.NotAfter); left < 14*24*time.Hour {
		f.warn(f.file, "listen.https.certificate ends on %s", leaf.NotAfter.Format(time.DateOnly))
	}
}

// issuers asks the issuers of tokens for their keys.
func (f *findings) issuers(ctx context.Context, c *brokerfile.File) {
	callers, err := identity.New(c.Callers, c.Administrators)
	if err != nil {
		f.failed(f.file+": callers", err)
		return
	}
	defer callers.Close()
	for _, i := range callers.Ready(ctx) {
		if i.Err != nil {
			f.failed(f.file+": callers.oidc "+i.Issuer, i.Err)
		}
	}
}
