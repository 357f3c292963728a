package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// Files that init writes.
var (
	//go:embed init-config.yaml
	initConfig string
	//go:embed init-policy.yaml
	initPolicy string
	//go:embed init-approvers.yaml
	initApprovers string
)

// setup is what init fills the files with.
type setup struct {
	Dir, URL, Host, Address, Module, Token, PINSource, Key, LogKey, Repository, Image, Registry string
	UID                                                                                         int
	Approvers                                                                                   []firstApprover
	Quorum                                                                                      int
}

func initCommand() *cobra.Command {
	s := setup{UID: os.Geteuid()}
	var people []string
	c := &cobra.Command{
		Use:   "init DIR",
		Short: "Write a config, a policy and TLS certificates for a new broker, and say what follows",
		Long: `Write a commented config and policy for a new broker into a folder, with a CA for the certificates of the
broker and of callers that have no tokens of their own. It replaces no file. The keys that sign images
are made in the module, by the commands that it prints.`,
		Example: `  hsm-broker init /etc/hsm-broker --public-url https://broker.example.com:8443 \
    --module-path /usr/lib/softhsm/libsofthsm2.so --token signing --pin-source file:/etc/hsm-broker/pin \
    --repository example/app --image registry.example.com/app --approver alice=alice.pub --approver bob`,
		Args: cli.Exactly(1),
	}
	c.Flags().StringVar(&s.URL, "public-url", "https://127.0.0.1:8443", "the URL by which callers reach the broker")
	c.Flags().StringVar(&s.Module, "module-path", "/usr/lib/softhsm/libsofthsm2.so", "the module's PKCS#11 library")
	c.Flags().StringVar(&s.Token, "token", "signing", "label of the token")
	c.Flags().StringVar(&s.PINSource, "pin-source", "", "where the PIN comes from (default: file:DIR/pin)")
	c.Flags().StringVar(&s.Key, "key", "release", "label of the key that signs")
	c.Flags().StringVar(&s.LogKey, "log-key", "broker-log", "label of the key that signs the log")
	c.Flags().StringVar(&s.Repository, "repository", "example/app", "repository on GitHub whose tags are signed")
	c.Flags().StringVar(&s.Image, "image", "registry.example.com/app", "repository of the images")
	c.Flags().StringArrayVar(&people, "approver", nil,
		"first approver: NAME=FILE with an SSH or PEM public key, or NAME for a passkey (can be repeated)")
	c.RunE = func(c *cobra.Command, args []string) error {
		for _, person := range people {
			a, err := readFirst(person)
			if err != nil {
				return err
			}
			s.Approvers = append(s.Approvers, a)
		}
		s.Quorum = min(2, len(s.Approvers))
		dir, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		s.Dir = dir
		if s.PINSource == "" {
			s.PINSource = "file:" + filepath.Join(dir, "pin")
		}
		if err := s.write(); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), `%[1]s has the config, the policy, and TLS certificates. Three commands follow:

  for key in %[2]s %[3]s; do notation-hsm key generate --module-path %[4]s \
    --token %[5]s --pin-source '%[6]s' --spec EC-256 --label $key; done
  hsm-broker check-config --config %[1]s/config.yaml --online
  hsm-broker serve --config %[1]s/config.yaml

Before, put the PIN where pin-source says, and read %[1]s/policy.yaml: it says who may sign what.
Notation needs a certificate for %[2]s: make one with 'notation-hsm cert self-sign', or with 'notation-hsm cert csr'
and your CA, and store it with 'notation-hsm cert import'.
%[1]s/ca/ca.key issues certificates for TLS: move it to another machine.
`, dir, s.Key, s.LogKey, s.Module, s.Token, s.PINSource)
		for i := range s.Approvers {
			if link := s.Approvers[i].Link(s.URL); link != "" {
				fmt.Fprintf(c.OutOrStdout(), "\nSend this link to %s, who registers a passkey with it within 7 days of the first "+
					"start:\n  %s\n", s.Approvers[i].Name, link)
			}
		}
		return nil
	}
	return c
}

// write writes all files, or none that exists.
func (s *setup) write() error {
	u, err := url.Parse(s.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return failure.New(failure.Invalid, "%q is not an https URL", s.URL).
			WithHint("write it like --public-url https://broker.example.com:8443")
	}
	for name, value := range map[string]string{"DIR": s.Dir, "module-path": s.Module, "token": s.Token, "key": s.Key,
		"log-key": s.LogKey, "repository": s.Repository, "image": s.Image, "public-url": s.URL,
		"pin-source": strings.ReplaceAll(s.PINSource, " ", "")} {
		if strings.ContainsFunc(value, special) {
			return failure.New(failure.Invalid, "cannot write %s %q into a config: it has a special character", name, value).
				WithHint("use letters, digits and /._-+=:@~%, there")
		}
	}
	s.Host = u.Hostname()
	s.Address = net.JoinHostPort("0.0.0.0", "8443")
	if port := u.Port(); port != "" {
		s.Address = net.JoinHostPort("0.0.0.0", port)
	}
	ip := net.ParseIP(s.Host)
	switch {
	case ip != nil && ip.IsLoopback():
		s.Address = u.Host
	case s.Host == "localhost":
		s.Address = "127.0.0.1" + strings.TrimPrefix(s.Address, "0.0.0.0")
	}
	if ip != nil && slices.ContainsFunc(s.Approvers, func(a firstApprover) bool { return a.Token != "" }) {
		return failure.New(failure.Invalid, "browsers have passkeys for names alone, and the host of %s is an address",
			s.URL).
			WithHint("name the host, as in --public-url https://broker.example.com:8443, or https://localhost:8443")
	}
	s.Registry, _, _ = strings.Cut(s.Image, "/")
	files := map[string][]byte{}
	templates := map[string]string{"config.yaml": initConfig, "policy.yaml": initPolicy}
	if len(s.Approvers) > 0 {
		templates["approvers.yaml"] = initApprovers
	}
	for name, text := range templates {
		var out bytes.Buffer
		if err := template.Must(template.New(name).Parse(text)).Execute(&out, s); err != nil {
			return err
		}
		files[name] = out.Bytes()
	}
	if _, mistakes := brokerfile.Parse(files["config.yaml"]); len(mistakes) > 0 {
		return failure.New(failure.Invalid, "cannot make a config of the flags:\n%w", mistakes).
			WithHint("give other values")
	}
	if _, err := policy.Parse(files["policy.yaml"]); err != nil {
		return failure.New(failure.Invalid, "cannot make a policy of the flags: %w", err).WithHint("give other values")
	}
	if err := s.certificates(files); err != nil {
		return err
	}
	for name := range files {
		_, err := os.Lstat(filepath.Join(s.Dir, name))
		if err == nil {
			return failure.New(failure.Conflict, "cannot write %s: it exists", filepath.Join(s.Dir, name)).
				WithHint("name another folder, or move the file away")
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return failure.New(failure.FileKind(err), "cannot write a config: %w", err).WithHint("name another folder")
		}
	}
	return s.save(files)
}

// special reports whether a character means something to YAML, to a condition of a policy, or to a shell.
func special(r rune) bool { return r <= ' ' || strings.ContainsRune("\"'`\\#&*?|<>()[]{}!$;^\x7f", r) }

// save writes files into the folder. It removes those that it has written when it cannot write one.
func (s *setup) save(files map[string][]byte) (err error) {
	var written []string
	defer func() {
		if err != nil {
			for _, path := range written {
				_ = os.Remove(path)
			}
		}
	}()
	if err := os.MkdirAll(filepath.Join(s.Dir, "ca"), 0o700); err != nil {
		return failure.New(failure.FileKind(err), "cannot make the folder: %w", err)
	}
	for name, data := range files {
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, ".key") {
			mode = 0o600
		}
		path := filepath.Join(s.Dir, name)
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
		if err != nil {
			return failure.New(failure.FileKind(err), "cannot write the file: %w", err)
		}
		written = append(written, path)
		_, err = file.Write(data)
		if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
			return failure.New(failure.Unavailable, "cannot write the file: %w", err)
		}
	}
	return nil
}

// certificates adds a CA, the certificate of the broker, and one for the caller "ci".
func (s *setup) certificates(files map[string][]byte) error {
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "hsm-broker CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, MaxPathLenZero: true,
		NotAfter: time.Now().AddDate(10, 0, 0)}
	caKey, err := issue(files, "ca/ca", ca, nil, nil)
	if err != nil {
		return err
	}
	server := &x509.Certificate{Subject: pkix.Name{CommonName: s.Host}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotAfter: time.Now().AddDate(1, 0, 0)}
	if ip := net.ParseIP(s.Host); ip != nil {
		server.IPAddresses = []net.IP{ip}
	} else {
		server.DNSNames = []string{s.Host}
	}
	if _, err := issue(files, "tls", server, ca, caKey); err != nil {
		return err
	}
	client := &x509.Certificate{Subject: pkix.Name{CommonName: "ci"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotAfter: time.Now().AddDate(1, 0, 0)}
	_, err = issue(files, "ca/ci", client, ca, caKey)
	return err
}

// issue adds a certificate and its key as NAME.pem and NAME.key; a CA without an issuer is its own.
func issue(files map[string][]byte, name string, c, issuer *x509.Certificate, by *ecdsa.PrivateKey) (
	*ecdsa.PrivateKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if issuer == nil {
		issuer, by = c, private
	}
	if c.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, err
	}
	c.NotBefore = time.Now().Add(-time.Minute)
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, private.Public(), by)
	if err != nil {
		return nil, err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	files[name+".pem"] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	files[name+".key"] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
	return private, nil
}
