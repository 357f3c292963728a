package brokerfile

import (
	"strings"
	"testing"
)

// TestWeb reads where people sign in, names mistakes, and has a change of it proposed.
func TestWeb(t *testing.T) {
	t.Parallel()
	const right = "web:\n  oidc: {issuer: https://login.example.com, client-id: broker, secret: /etc/hsm-broker/oidc}\n"
	f := parse(t, replaced(t, "    client-ca: /etc/hsm-broker/ca.pem\n", "", "mtls: {}", "unix: {users: [root]}")+right)
	with, err := f.Decisive()
	if err != nil {
		t.Fatal(err)
	}
	f.Web.OIDC = nil
	without, err := f.Decisive()
	if err != nil || string(with) == string(without) || strings.Contains(string(with), "/etc/hsm-broker/oidc") {
		t.Errorf("%s, %v", with, err)
	}
	for wrong, want := range map[string]string{
		"issuer: http://login.example.com, client-id: broker":                "web.oidc.issuer",
		"issuer: https://login.example.com":                                  "web.oidc.client-id",
		"issuer: https://login.example.com, client-id: b, secret: file":      "web.oidc.secret",
		"issuer: https://login.example.com, client-id: b, ca: ca.pem":        "web.oidc.ca",
		"issuer: https://login.example.com, client-id: b, client-secret: /x": "client-secret",
	} {
		_, mistakes := Parse([]byte(valid + "web:\n  oidc: {" + wrong + "}\n"))
		if len(mistakes) != 1 || !strings.Contains(mistakes[0].String(), want) {
			t.Errorf("%s: %v", wrong, mistakes)
		}
	}
}
