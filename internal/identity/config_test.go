package identity

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func decode(text string) (Config, error) {
	var c Config
	err := yaml.Load([]byte(text), &c, yaml.WithKnownFields(), yaml.WithUniqueKeys())
	return c, err
}

func TestDecodeConfig(t *testing.T) {
	got, err := decode(`
oidc:
- issuer: https://token.actions.githubusercontent.com
  audience: https://broker.example.com
  type: github
- issuer: https://gitlab.example.com
  audience: [https://broker.example.com, broker]
  type: gitlab
  one-use: false
  requests-per-token: 64
  max-lifetime: 2h
  ca: /etc/hsm-broker/gitlab.pem
  jwks-url: https://gitlab.example.com/oauth/discovery/keys
- {issuer: "http://127.0.0.1:8080", audience: a, type: other, plain-http: true, jwks-file: /etc/hsm-broker/keys.json}
mtls: {allow: ["spiffe://example.com/ci", "CN=ci,O=Example"]}
unix: {users: [ci, "1000"], groups: [wheel]}
limits: {requests: 5 per second, open: 7, size: 64KiB}
`)
	if err != nil {
		t.Fatal(err)
	}
	no := false
	want := Config{
		OIDC: []Issuer{
			{Issuer: "https://token.actions.githubusercontent.com", Audience: Strings{audience}, Type: "github"},
			{Issuer: "https://gitlab.example.com", Audience: Strings{audience, "broker"}, Type: "gitlab", OneUse: &no,
				RequestsPerToken: 64, MaxLifetime: 2 * time.Hour, CA: "/etc/hsm-broker/gitlab.pem",
				JWKSURL: "https://gitlab.example.com/oauth/discovery/keys"},
			{Issuer: "http://127.0.0.1:8080", Audience: Strings{"a"}, Type: "other", PlainHTTP: true,
				JWKSFile: "/etc/hsm-broker/keys.json"},
		},
		MTLS:   &MTLS{Allow: []string{"spiffe://example.com/ci", "CN=ci,O=Example"}},
		Unix:   &Unix{Users: []string{"ci", "1000"}, Groups: []string{"wheel"}},
		Limits: Limits{Requests: Rate{5, time.Second}, Open: 7, Size: 64 << 10},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("config is %+v, want %+v", got, want)
	}
	if mistakes := got.Check(); len(mistakes) > 0 {
		t.Errorf("mistakes are %v", mistakes)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, text := range []string{
		"oidcs: []", "oidc: [{issuers: a}]", "oidc: [{audience: {a: b}}]", "oidc: [{audience: [[a]]}]",
		"oidc: [{one-use: perhaps}]", "oidc: [{requests-per-token: many}]", "oidc: [{max-lifetime: 2 hours}]",
		"oidc: [{issuer: a, issuer: b}]", "mtls: {deny: []}", "unix: {user: ci}", "limits: {request: 5 per second}",
		"limits: {requests: 600}", "limits: {requests: 0 per minute}", "limits: {requests: -1 per minute}",
		"limits: {requests: 600 per fortnight}", "limits: {requests: 600 in minute}", "limits: {requests: 6 per 10 minute}",
		"limits: {requests: 9999999999999999999 per minute}", "limits: {requests: [600 per minute]}",
		"limits: {requests: {count: 600}}", "limits: {size: 0}", "limits: {size: -1}", "limits: {size: 1MB}",
		"limits: {size: 4096MiB}", "limits: {size: 1.5MiB}", "limits: {size: []}", "limits: {open: some}",
	} {
		if c, err := decode(text); err == nil {
			t.Errorf("%s was decoded: %+v", text, c)
		}
	}
}

func TestLimits(t *testing.T) {
	for text, want := range map[string]Size{"1MiB": 1 << 20, "64 KiB": 64 << 10, "65536": 65536, "2047MiB": 2047 << 20} {
		if c, err := decode("limits: {size: " + text + "}"); err != nil || c.Limits.Size != want {
			t.Errorf("size %s is %d, %v", text, c.Limits.Size, err)
		}
	}
	for text, want := range map[string]Rate{"1 per second": {1, time.Second}, "2 per minute": {2, time.Minute},
		"3 per hour": {3, time.Hour}, "4 per day": {4, 24 * time.Hour}} {
		if c, err := decode("limits: {requests: " + text + "}"); err != nil || c.Limits.Requests != want {
			t.Errorf("rate %s is %v, %v", text, c.Limits.Requests, err)
		}
	}
	if got, want := (Limits{}).WithDefaults(), (Limits{Rate{600, time.Minute}, 100, 1536 << 10}); got != want {
		t.Errorf("defaults are %+v", got)
	}
	set := Limits{Rate{1, time.Hour}, 2, 3}
	if got := set.WithDefaults(); got != set {
		t.Errorf("limits that are set became %+v", got)
	}
}

func TestCheck(t *testing.T) {
	good := `issuer: "https://issuer.example.com", audience: a, type: github`
	for _, test := range []struct{ text, want string }{
		{`oidc: [{audience: a, type: github}]`, "callers.oidc[0].issuer: is empty"},
		{`oidc: [{issuer: issuer.example.com, audience: a, type: github}]`, "is not a URL"},
		{`oidc: [{issuer: approver, audience: a, type: other}]`, "is not a URL"},
		{`oidc: [{issuer: publisher, audience: a, type: other}]`, "is not a URL"},
		{`oidc: [{issuer: "https:issuer.example.com", audience: a, type: github}]`, "is not a URL"},
		{`oidc: [{issuer: "ftp://example.com", audience: a, type: github}]`, "is not an https URL"},
		{`oidc: [{issuer: "http://127.0.0.1", audience: a, type: github}]`, "is not an https URL"},
		{`oidc: [{issuer: "http://127.0.0.2:1", audience: a, type: other, plain-http: true, jwks-url: "http://localhost"}]`,
			"jwks-url: \"http://localhost\" is not an https URL"},
		{`oidc: [{issuer: "http://example.com", audience: a, type: github, plain-http: true}]`,
			"is not an https URL"},
		{`oidc: [{issuer: "https://u:p@example.com", audience: a, type: github}]`,
			"has a user, a query or a fragment"},
		{`oidc: [{issuer: "https://example.com?a", audience: a, type: github}]`,
			"has a user, a query or a fragment"},
		{`oidc: [{issuer: "https://example.com?", audience: a, type: github}]`,
			"has a user, a query or a fragment"},
		{`oidc: [{issuer: "https://example.com#", audience: a, type: github}]`,
			"has a user, a query or a fragment"},
		{`oidc: [{issuer: "https://example.com", type: github}]`, "callers.oidc[0].audience: is empty"},
		{`oidc: [{issuer: "https://example.com", audience: "", type: github}]`,
			"callers.oidc[0].audience: is empty"},
		{`oidc: [{issuer: "https://example.com", audience: , type: github}]`,
			"callers.oidc[0].audience: is empty"},
		{`oidc: [{issuer: "https://example.com", audience: [a, ""], type: github}]`,
			"callers.oidc[0].audience: is empty"},
		{`oidc: [{issuer: "https://example.com", audience: a}]`, `callers.oidc[0].type: "" is unknown`},
		{`oidc: [{issuer: "https://example.com", audience: a, type: GitHub}]`,
			`callers.oidc[0].type: "GitHub" is unknown`},
		{`oidc: [{` + good + `, requests-per-token: -1}]`, "requests-per-token: is -1"},
		{`oidc: [{` + good + `, requests-per-token: 1001}]`, "requests-per-token: is 1001"},
		{`oidc: [{` + good + `, requests-per-token: 2, one-use: true}]`, "has one-use and requests-per-token: 2"},
		{`oidc: [{` + good + `, requests-per-token: 1, one-use: false}]`,
			"is not one-use and has requests-per-token: 1"},
		{`oidc: [{` + good + `, max-lifetime: 59s}]`, "max-lifetime: is 59s"},
		{`oidc: [{` + good + `, max-lifetime: 169h}]`, "max-lifetime: is 169h0m0s"},
		{`oidc: [{` + good + `, jwks-file: /a, jwks-url: "https://example.com/keys"}]`,
			"has jwks-url and jwks-file"},
		{`oidc: [{` + good + `, jwks-url: keys}]`, "jwks-url: \"keys\" is not a URL"},
		{`oidc: [{` + good + `, jwks-file: keys.json}]`, "jwks-file: \"keys.json\" is not a full path"},
		{`oidc: [{` + good + `, ca: ca.pem}]`, "ca: \"ca.pem\" is not a full path"},
		{`oidc: [{` + good + `}, {` + good + `}]`, "callers.oidc[1].issuer: is listed twice"},
		{`mtls: {allow: [ci]}`, `callers.mtls.allow[0]: "ci" is neither a SPIFFE ID nor a subject`},
		{`mtls: {allow: ["CN=ci", "spiffe://example.com"]}`,
			`callers.mtls.allow[1]: "spiffe://example.com" is not a SPIFFE ID`},
		{`mtls: {allow: ["SPIFFE://example.com/ci"]}`, "is not a SPIFFE ID"},
		{`mtls: {allow: ["spiffe://example.com/a b"]}`, "is not a SPIFFE ID"},
		{`unix: {}`, "callers.unix: lists no user and no group"},
		{`limits: {open: -1}`, "callers.limits.open: is -1"},
	} {
		c, err := decode(test.text)
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
			continue
		}
		mistakes := c.Check()
		if len(mistakes) != 1 {
			t.Errorf("%s: mistakes are %v, want one", test.text, mistakes)
			continue
		}
		checkFailure(t, mistakes[0], failure.Invalid, test.want)
	}
}

func TestCheckFindsAll(t *testing.T) {
	c, err := decode(`{oidc: [{}, {issuer: a, ca: b, max-lifetime: 1s}], mtls: {allow: [ci]}, unix: {},
		limits: {open: -1}}`)
	if err != nil {
		t.Fatal(err)
	}
	administrators := []Administrator{{}, {Unix: "root", MTLS: "CN=a"}, {MTLS: "root"}, {Unix: "root"}}
	if got := len(c.Check()); got != 11 {
		t.Errorf("there are %d mistakes, want 11: %v", got, c.Check())
	}
	if got := len(CheckAdministrators(administrators)); got != 3 {
		t.Errorf("there are %d mistakes, want 3: %v", got, CheckAdministrators(administrators))
	}
	_, err = New(c, administrators)
	if err == nil || strings.Count(err.Error(), "\n") != 13 {
		t.Errorf("New fails with %v, want all 14 mistakes", err)
	}
}

// TestDocumentedConfig verifies that the configs in docs/callers.md have no mistake.
func TestDocumentedConfig(t *testing.T) {
	data, err := os.ReadFile("../../docs/callers.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(callers:.*?)```").FindAllSubmatch(data, -1)
	if len(blocks) < 2 {
		t.Fatalf("there are %d configs, want 2 or more", len(blocks))
	}
	for _, block := range blocks {
		var file struct {
			Callers        Config          `yaml:"callers"`
			Administrators []Administrator `yaml:"administrators"`
		}
		if err := yaml.Load(block[1], &file, yaml.WithKnownFields(), yaml.WithUniqueKeys()); err != nil {
			t.Error(err)
		}
		if mistakes := append(file.Callers.Check(), CheckAdministrators(file.Administrators)...); len(mistakes) > 0 {
			t.Errorf("mistakes are %v in %s", mistakes, block[1])
		}
	}
}
