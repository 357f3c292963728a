package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Bounds of what an issuer sends.
const (
	maxDiscovery = 64 << 10
	maxCAFile    = 1 << 20
)

var discoveryLimits = bound.Limits{Bytes: maxDiscovery, Depth: 8, Elements: 4000}

// newFetch returns a function that fetches the keys of an issuer: from a file, from a URL, or from where OpenID Connect
// Discovery 1.0 says. It fails when a file of the settings cannot be read.
func newFetch(settings Issuer) (func(context.Context) (*keySet, error), error) {
	if settings.JWKSFile != "" {
		read := func(context.Context) (*keySet, error) { return readKeyFile(settings.JWKSFile) }
		_, err := read(context.Background())
		return read, err
	}
	client, err := newClient(settings.CA)
	if err != nil {
		return nil, err
	}
	if settings.JWKSURL != "" {
		return func(ctx context.Context) (*keySet, error) { return fetchKeys(ctx, client, settings.JWKSURL) }, nil
	}
	return func(ctx context.Context) (*keySet, error) { return discover(ctx, client, settings) }, nil
}

func readKeyFile(path string) (*keySet, error) {
	data, err := bound.ReadFile(path, maxKeySet)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read jwks-file %s: %w", path, err).
			WithHint("name a JWKS file that the broker can read")
	}
	set, err := readKeySet(data)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read jwks-file %s: %w", path, err).
			WithHint("write the JWKS of the issuer to this file")
	}
	return set, nil
}

// newClient returns a client that follows no redirect. ca is a PEM file, or empty for the system's CAs.
func newClient(ca string) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		data, err := bound.ReadFile(ca, maxCAFile)
		if err != nil {
			return nil, failure.New(failure.FileKind(err), "cannot read ca %s: %w", ca, err).
				WithHint("name a PEM file that the broker can read")
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(data) {
			return nil, failure.New(failure.Invalid, "cannot read ca %s: it has no certificate", ca).
				WithHint("name a PEM file with the CA that issued the TLS certificate of the issuer")
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: fetchTimeout}).DialContext,
			TLSClientConfig:        config,
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// discover fetches the keys from where the issuer's discovery document says.
func discover(ctx context.Context, client *http.Client, settings Issuer) (*keySet, error) {
	url := strings.TrimSuffix(settings.Issuer, "/") + "/.well-known/openid-configuration"
	data, err := get(ctx, client, url, maxDiscovery)
	if err != nil {
		return nil, err
	}
	if err := bound.JSON(data, discoveryLimits); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", url, err)
	}
	var document map[string]json.RawMessage // a map, since names differ in case too
	var name, keys string
	var algorithms []string
	err = json.Unmarshal(data, &document)
	if err == nil {
		err = errors.Join(json.Unmarshal(document["issuer"], &name), json.Unmarshal(document["jwks_uri"], &keys))
	}
	if listed, has := document["id_token_signing_alg_values_supported"]; err == nil && has {
		err = json.Unmarshal(listed, &algorithms)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: it lacks issuer or jwks_uri, or is malformed", url)
	}
	if name != settings.Issuer {
		return nil, fmt.Errorf("cannot accept %s: it is of issuer %.200q", url, name)
	}
	if err := checkURL(keys, settings.PlainHTTP); err != nil {
		return nil, fmt.Errorf("cannot accept %s: jwks_uri %w", url, err)
	}
	set, err := fetchKeys(ctx, client, keys)
	if err != nil {
		return nil, err
	}
	set.algorithms = algorithms
	return set, nil
}

func fetchKeys(ctx context.Context, client *http.Client, url string) (*keySet, error) {
	data, err := get(ctx, client, url, maxKeySet)
	if err != nil {
		return nil, err
	}
	set, err := readKeySet(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", url, err)
	}
	return set, nil
}

// get fetches at most limit bytes from a URL.
func get(ctx context.Context, client *http.Client, url string, limit int) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, err // names the method and the URL
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("cannot fetch %s: status %d", url, response.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("cannot fetch %s: %w", url, err)
	}
	if len(data) > limit {
		return nil, fmt.Errorf("cannot fetch %s: it has more than %d bytes", url, limit)
	}
	return data, nil
}
