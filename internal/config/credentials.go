package config

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Credentials authenticate an https broker, and this process to it.
type Credentials struct {
	CA          string // PEM file of the CA of the broker's certificate; "" for the system's roots
	Certificate string // PEM file of the client's certificate and its issuers; "" for none
	Key         string // PEM file of its private key; set with Certificate
	Token       TokenSource
}

// TokenSource is where an OIDC token for a broker comes from. At most one field is set.
type TokenSource struct {
	GitHub   bool   // from the endpoint that GitHub Actions gives the job, one for each request
	Variable string // environment variable
	File     string // absolute path, read for each request
}

// KubernetesToken is the file of the token source kubernetes: a projected service account token.
const KubernetesToken = "/var/run/secrets/tokens/notation-hsm" //nolint:gosec // it is a path

// maxApprovalWait is the longest approval-wait. A longer one is a mistake: after 5 minutes, the payload is too old.
const maxApprovalWait = 24 * time.Hour

// String returns the source as the setting has it; "" for none.
func (t TokenSource) String() string {
	switch {
	case t.GitHub:
		return "github"
	case t.Variable != "":
		return "gitlab:" + t.Variable
	case t.File == KubernetesToken:
		return "kubernetes"
	case t.File != "":
		return "file:" + t.File
	}
	return ""
}

// parseTokenSource parses the setting broker-token. It returns false for another form. The value may be a token itself.
func parseTokenSource(text string) (t TokenSource, ok bool) {
	switch kind, rest, named := strings.Cut(text, ":"); {
	case text == "github":
		return TokenSource{GitHub: true}, true
	case text == "kubernetes":
		return TokenSource{File: KubernetesToken}, true
	case kind == "gitlab" && named && isVariable(rest):
		return TokenSource{Variable: rest}, true
	case kind == "file" && filepath.IsAbs(rest) && !strings.ContainsRune(rest, 0):
		return TokenSource{File: rest}, true
	}
	return t, false
}

// isVariable reports whether a text can be the name of an environment variable.
func isVariable(text string) bool {
	return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(text)
}

// checkStored refuses credentials of a broker in data: whoever wrote it would decide which file is sent where.
func checkStored(name string, from Origin) error {
	if from.namesPrograms || !slices.Contains(BrokerCredentials, name) {
		return nil
	}
	return failure.New(failure.Denied, "cannot take %s from %s", name, from.name).
		WithHint("set " + EnvironmentName(name) + ", or write " + name + " into the config file")
}

// chooseCredentials takes each credential from the strongest layer that has it.
func (s *Settings) chooseCredentials(layers []layer) error {
	find := func(name string) (string, layer) {
		i := slices.IndexFunc(layers, func(l layer) bool { return l.values[name] != "" })
		if i < 0 {
			return "", layer{}
		}
		return layers[i].values[name], layers[i]
	}
	path := func(name string) string {
		value, from := find(name)
		if value != "" && !filepath.IsAbs(value) {
			value = filepath.Join(from.dir, value)
		}
		return value
	}
	c := &Credentials{CA: path(BrokerCA), Certificate: path(BrokerCert), Key: path(BrokerKey)}
	if (c.Certificate == "") != (c.Key == "") {
		return failure.New(failure.Invalid, "%s and %s are not both set", BrokerCert, BrokerKey).
			WithHint("set both, or neither")
	}
	if text, from := find(BrokerToken); text != "" {
		source, ok := parseTokenSource(text)
		if !ok { // the value is not shown: it may be the token itself
			return failure.New(failure.Invalid, "invalid %s in %s", BrokerToken, from.origin.name).
				WithHint("write it as github, gitlab:VARIABLE, kubernetes or file:/path")
		}
		c.Token = source
	}
	s.Credentials = c
	return nil
}

// IsRepository reports whether a text names a repository with its registry, without tag and digest.
func IsRepository(text string) bool {
	const form = `^[a-zA-Z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$`
	return len(text) <= 512 && regexp.MustCompile(form).MatchString(text)
}

// applyRequest sets what a broker is told beside the payload.
func (s *Settings) applyRequest(find func(string) (string, layer)) error {
	if text, from := find(ApprovalWait); text != "" {
		wait, err := time.ParseDuration(text)
		if err != nil || wait < 0 || wait > maxApprovalWait {
			return invalidSetting(ApprovalWait, text, from.origin.name).WithHint(`write it like "30s" or "4m"`)
		}
		s.ApprovalWait = wait
	}
	text, from := find(Repository)
	if text != "" && !IsRepository(text) {
		return invalidSetting(Repository, text, from.origin.name).
			WithHint("write it like registry.example.com/team/app, without tag and digest")
	}
	s.Repository = text
	return nil
}
