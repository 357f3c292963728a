package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/broker/web"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

// companyTime is how long the company's provider may take to answer.
const companyTime = 10 * time.Second

// companySignIn returns where people sign in beside their passkey; nil if the config has no provider. The client's
// secret is read at each sign-in, so that it can be replaced.
func companySignIn(f *brokerfile.File) (*web.OIDC, error) {
	o := f.Web.OIDC
	if o == nil {
		return nil, nil
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: companyTime,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if o.CA != "" {
		data, err := bound.ReadFile(o.CA, 1<<20)
		if err != nil {
			return nil, failure.New(failure.FileKind(err), "cannot read the CA of the company's sign-in: %w", err).
				WithHint("set web.oidc.ca in the config file")
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(data) {
			return nil, failure.New(failure.Invalid, "the file %s has no certificate in PEM", o.CA).
				WithHint("write the CA of the company's sign-in into it")
		}
		transport.TLSClientConfig.RootCAs = roots
	}
	made := &web.OIDC{Issuer: o.Issuer, ClientID: o.ClientID,
		Client: &http.Client{Transport: transport, Timeout: companyTime}}
	if o.Secret != "" {
		made.Secret = func(context.Context) (string, error) { return clientSecret(o.Secret) }
		if _, err := made.Secret(context.Background()); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// clientSecret reads the file with the secret of the broker as a client.
func clientSecret(path string) (string, error) {
	data, err := ownership.ReadSecret(path)
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(data))
	if secret == "" {
		return "", failure.New(failure.Invalid, "the file %s has no secret", path).
			WithHint("set web.oidc.secret to a file that the broker alone can read")
	}
	return secret, nil
}
