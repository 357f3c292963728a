package identity

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Config is the section callers of the broker's config file.
type Config struct {
	OIDC   []Issuer `yaml:"oidc"`
	MTLS   *MTLS    `yaml:"mtls"`
	Unix   *Unix    `yaml:"unix"`
	Limits Limits   `yaml:"limits"`
}

// Issuer is an issuer of OIDC tokens whose holders may call.
type Issuer struct {
	Issuer           string        `yaml:"issuer"`             // URL, exactly as in the claim iss
	Audience         Strings       `yaml:"audience"`           // values of the claim aud that are accepted
	Type             string        `yaml:"type"`               // github, gitlab, kubernetes or other
	OneUse           *bool         `yaml:"one-use"`            // default: true for github and other
	RequestsPerToken int           `yaml:"requests-per-token"` // default: 32 for gitlab and kubernetes
	MaxLifetime      time.Duration `yaml:"max-lifetime"`       // of a token, from iat to exp; default: 24h
	CA               string        `yaml:"ca"`                 // PEM file; default: the system's CAs
	JWKSURL          string        `yaml:"jwks-url"`           // default: what discovery names
	JWKSFile         string        `yaml:"jwks-file"`          // instead of a URL
	PlainHTTP        bool          `yaml:"plain-http"`         // allows http to a loopback address
}

// MTLS says which certificates may call. A TLS server has to verify them first: its client CAs decide.
type MTLS struct {
	Allow []string `yaml:"allow"` // SPIFFE IDs and subjects (RFC 4514); default: all that the client CAs issued
}

// Unix says which users may call over the Unix socket.
type Unix struct {
	Users  []string `yaml:"users"`  // names or decimal ids
	Groups []string `yaml:"groups"` // names or decimal ids
}

// Administrator names one administrator of the broker: a user, or the certificate of a caller.
type Administrator struct {
	Unix string `yaml:"unix"` // name or decimal id
	MTLS string `yaml:"mtls"` // SPIFFE ID or subject (RFC 4514)
}

// Strings is a list that may be written as one string in YAML.
type Strings []string

// UnmarshalYAML decodes a string or a list of strings.
func (s *Strings) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		var one string
		if err := node.Decode(&one); err != nil {
			return err
		}
		*s = Strings{one}
		return nil
	}
	return node.Decode((*[]string)(s))
}

// Defaults and bounds of an issuer's settings.
const (
	defaultRequestsPerToken = 32
	maxRequestsPerToken     = 1000
	defaultMaxLifetime      = 24 * time.Hour
	maxMaxLifetime          = 7 * 24 * time.Hour
	minMaxLifetime          = time.Minute
)

// Check returns every mistake in the config. Each message begins with the path of the setting. It reads no file.
func (c *Config) Check() (mistakes []error) {
	seen := map[string]bool{}
	for n, issuer := range c.OIDC {
		at := fmt.Sprintf("callers.oidc[%d]", n)
		mistakes = append(mistakes, issuer.check(at)...)
		if seen[issuer.Issuer] {
			mistakes = append(mistakes, mistake("%s.issuer: is listed twice", at).
				WithHint("list each issuer once, with all its audiences"))
		}
		seen[issuer.Issuer] = true
	}
	if c.MTLS != nil {
		for n, name := range c.MTLS.Allow {
			if err := checkCertificateName(name); err != nil {
				mistakes = append(mistakes, mistake("callers.mtls.allow[%d]: %w", n, err).WithHint(hintCertificateName))
			}
		}
	}
	if c.Unix != nil && len(c.Unix.Users)+len(c.Unix.Groups) == 0 {
		mistakes = append(mistakes, mistake("callers.unix: lists no user and no group").
			WithHint("list users or groups, or remove the section"))
	}
	return append(mistakes, c.Limits.check()...)
}

// CheckAdministrators returns every mistake in the list of administrators.
func CheckAdministrators(administrators []Administrator) (mistakes []error) {
	for n, one := range administrators {
		if (one.Unix == "") == (one.MTLS == "") {
			mistakes = append(mistakes, mistake("administrators[%d]: has not exactly one of unix and mtls", n).
				WithHint("write one entry per administrator"))
		} else if one.MTLS != "" {
			if err := checkCertificateName(one.MTLS); err != nil {
				mistakes = append(mistakes, mistake("administrators[%d].mtls: %w", n, err).WithHint(hintCertificateName))
			}
		}
	}
	return mistakes
}

// mistake returns a mistake in the config.
func mistake(format string, args ...any) *failure.Error {
	return failure.New(failure.Invalid, format, args...)
}

func (i *Issuer) check(at string) (mistakes []error) {
	add := func(hint string, err *failure.Error) { mistakes = append(mistakes, err.WithHint(hint)) }
	if err := checkURL(i.Issuer, i.PlainHTTP); err != nil {
		add("write it exactly as the claim iss of its tokens", mistake("%s.issuer: %w", at, err))
	}
	if len(i.Audience) == 0 || slices.Contains(i.Audience, "") {
		add("set it to the URL of this broker, and have jobs request tokens for it", mistake("%s.audience: is empty", at))
	}
	if _, known := types[i.Type]; !known {
		add("use github, gitlab, kubernetes or other", mistake("%s.type: %q is unknown", at, i.Type))
	}
	if i.RequestsPerToken < 0 || i.RequestsPerToken > maxRequestsPerToken {
		add("use a number from 1 to 1000", mistake("%s.requests-per-token: is %d", at, i.RequestsPerToken))
	}
	if i.OneUse != nil && *i.OneUse && i.RequestsPerToken > 1 {
		add("set one of them", mistake("%s: has one-use and requests-per-token: %d", at, i.RequestsPerToken))
	}
	if i.OneUse != nil && !*i.OneUse && i.RequestsPerToken == 1 {
		add("set one of them", mistake("%s: is not one-use and has requests-per-token: 1", at))
	}
	if i.MaxLifetime != 0 && (i.MaxLifetime < minMaxLifetime || i.MaxLifetime > maxMaxLifetime) {
		add("use a time from 1m to 168h", mistake("%s.max-lifetime: is %s", at, i.MaxLifetime))
	}
	if i.JWKSURL != "" && i.JWKSFile != "" {
		add("set one of them", mistake("%s: has jwks-url and jwks-file", at))
	}
	if i.JWKSURL != "" {
		if err := checkURL(i.JWKSURL, i.PlainHTTP); err != nil {
			add("name the URL of its keys", mistake("%s.jwks-url: %w", at, err))
		}
	}
	if i.CA != "" && !filepath.IsAbs(i.CA) {
		add("name the file by its full path", mistake("%s.ca: %q is not a full path", at, i.CA))
	}
	if i.JWKSFile != "" && !filepath.IsAbs(i.JWKSFile) {
		add("name the file by its full path", mistake("%s.jwks-file: %q is not a full path", at, i.JWKSFile))
	}
	return mistakes
}

// uses returns how many requests a token is good for.
func (i *Issuer) uses() int {
	switch {
	case i.OneUse != nil && *i.OneUse:
		return 1
	case i.RequestsPerToken > 0:
		return i.RequestsPerToken
	case i.OneUse == nil && types[i.Type].oneUse:
		return 1
	}
	return defaultRequestsPerToken
}

// lifetime returns the longest time from iat to exp of a token.
func (i *Issuer) lifetime() time.Duration {
	if i.MaxLifetime > 0 {
		return i.MaxLifetime
	}
	return defaultMaxLifetime
}

// checkURL fails unless text is an https URL that names a host and neither user, query nor fragment. With plainHTTP, it
// may also be an http URL of a loopback address.
func checkURL(text string, plainHTTP bool) error {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return fmt.Errorf("is empty")
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return fmt.Errorf("%q is not a URL", text)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#"):
		return fmt.Errorf("%q has a user, a query or a fragment", text)
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && plainHTTP && isLoopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q is not an https URL", text)
}

// isLoopback reports whether host is a loopback address. A name is none: whoever answers for it decides what it is.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
