package config

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestBrokerName parses names of keys at a broker, and refuses what is none.
func TestBrokerName(t *testing.T) {
	t.Parallel()
	for text, name := range map[string]string{"broker:release": "release", "broker:": "", "broker:a%2Fb%20c": "a/b c",
		"broker:pkcs11:token=a;object=b": "pkcs11:token=a;object=b", "broker:...": "..."} {
		u, err := ParseURI(text)
		if err != nil || !u.Broker || u.Object != name || u.Scheme() != BrokerScheme {
			t.Errorf("%s parses as %+v, %v", text, u, err)
		}
	}
	for _, text := range []string{"broker:a?pin-source=env:X", "broker:%zz", "broker:..", "broker:.", "broker:%2E%2E",
		"broker:a%0Ab", "broker:pin-value=1234", "broker:" + strings.Repeat("x", 256)} {
		if u, err := ParseURI(text); !failure.Is(err, failure.Invalid) || strings.Contains(err.Error(), "1234") {
			t.Errorf("%.20s parses as %+v, %v", text, u, err)
		}
	}
}

// TestBrokerPlaces takes the broker from the strongest place that names one. Data may name one, and may not unset it.
func TestBrokerPlaces(t *testing.T) {
	const uri = "pkcs11:token=signing;object=release"
	for name, c := range map[string]struct {
		file, variable, given, reference string
		want                             string
	}{
		"nowhere": {"", "", "", uri, ""},
		"file":    {"broker: unix:/file", "", "", uri, "unix:/file"},
		"entry before the top": {"broker: unix:/file\nkeys: {a: {uri: 'broker:b', broker: 'unix:/own'}}", "", "", "a",
			"unix:/own"},
		"environment":               {"broker: unix:/file", "unix:/variable", "", uri, "unix:/variable"},
		"plugin config":             {"", "unix:/variable", "unix:/given", uri, "unix:/given"},
		"empty in data":             {"", "unix:/variable", "", uri, "unix:/variable"},
		"by default":                {"", "", "", "broker:release", "unix:/run/user/7/notation-hsm/broker.sock"},
		"the token":                 {"token: 'broker:'", "", "", "", "unix:/run/user/7/notation-hsm/broker.sock"},
		"a key of a NetHSM as well": {"", "unix:/variable", "", "nethsm:release", "unix:/variable"},
	} {
		t.Run(name, func(t *testing.T) {
			configure(t, c.file)
			t.Setenv("NOTATION_HSM_BROKER", c.variable)
			t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
			s, err := Resolve(c.reference, map[string]string{Broker: c.given}, PluginConfig)
			if err != nil || s.Broker != c.want {
				t.Fatalf("%+v, %v", s, err)
			}
			if wantScheme := map[bool]string{true: Scheme, false: BrokerScheme}[c.want == ""]; s.Scheme() != wantScheme {
				t.Errorf("the scheme is %s", s.Scheme())
			}
			direct, err := Resolve(c.reference, map[string]string{Broker: c.given}, PluginConfig.Direct())
			switch {
			case strings.HasPrefix(c.want, "unix:/run") || name == "entry before the top":
				if !failure.Is(err, failure.Unsupported) || !strings.Contains(err.Error(), "cannot change broker:") {
					t.Errorf("direct: %v", err)
				}
			case c.reference == "nethsm:release": // the NetHSM has no settings here
			case err != nil || direct.Broker != "":
				t.Errorf("direct: %+v, %v", direct, err)
			}
		})
	}
}

// TestBrokerRefused refuses addresses that are none, in every place.
func TestBrokerRefused(t *testing.T) {
	for _, address := range []string{"/run/socket", "unix:socket", "unix:", "unix:@abstract", "http://broker.example.com",
		"https://", "https://a/", "https://a/b", "https://u:p@a", "https://a?b", "https://a#b", "https://A", "https://a:",
		"https://a:443",
		"unix:/a\x00b", "unix:/a\nb", "unix:/" + strings.Repeat("x", maxSocket)} {
		configure(t, "")
		_, err := Resolve("broker:release", map[string]string{Broker: address}, PluginConfig)
		if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), "invalid broker") ||
			failure.From(err).Hint == "" {
			t.Errorf("%.20q: %v", address, err)
		}
	}
	configure(t, "broker: unix:/"+strings.Repeat("x", maxSocket-1)) // the longest
	if _, err := Resolve("broker:release", nil, PluginConfig); err != nil {
		t.Error(err)
	}
	configure(t, "tokens: {signing: {broker: 'unix:/a'}}")
	if _, err := Resolve("broker:release", nil, PluginConfig); !failure.Is(err, failure.Invalid) {
		t.Errorf("a broker of a token: %v", err)
	}
	configure(t, "token: 'broker:'")
	if _, err := Resolve("pkcs11:object=release", nil, PluginConfig); !failure.Is(err, failure.Invalid) {
		t.Errorf("two tokens: %v", err)
	}
}

// TestBrokerSocket names a key of the broker where no socket is to be found: that fails where the socket is needed.
func TestBrokerSocket(t *testing.T) {
	configure(t, "")
	t.Setenv("XDG_RUNTIME_DIR", "run")
	s, err := Resolve("broker:release", nil, PluginConfig)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.BrokerSocket(); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	if _, err := s.BrokerSocket(); err == nil || !strings.Contains(err.Error(), "is not set") {
		t.Error(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	if path, err := s.BrokerSocket(); err != nil || path != "/run/user/7/notation-hsm/broker.sock" {
		t.Errorf("%s, %v", path, err)
	}
}

const broker = "https://broker.example.com:8443"

// TestHTTPSBroker takes an https broker from data only if the environment or the config file names it as well.
func TestHTTPSBroker(t *testing.T) {
	for name, c := range map[string]struct {
		file, variable, given string
		origin                Origin
		want                  string // "" if it is refused
	}{
		"file":                  {"broker: " + broker, "", "", PluginConfig, broker},
		"environment":           {"", broker, "", PluginConfig, broker},
		"flag":                  {"", "", broker, Flags, broker},
		"data alone":            {"", "", broker, PluginConfig, ""},
		"data as the file":      {"broker: " + broker, "", broker, PluginConfig, broker},
		"data as environment":   {"", broker, broker, PluginConfig, broker},
		"data unlike the file":  {"broker: https://other.example.com", "", broker, PluginConfig, ""},
		"data like the weaker":  {"broker: " + broker, "https://other.example.com", broker, PluginConfig, ""},
		"data with the socket":  {"broker: unix:/a", "", broker, PluginConfig, ""},
		"a record":              {"", "", broker, Stored("ca.json"), ""},
		"the file's other port": {"broker: https://broker.example.com", "", broker, PluginConfig, ""},
	} {
		t.Run(name, func(t *testing.T) {
			configure(t, c.file)
			t.Setenv("NOTATION_HSM_BROKER", c.variable)
			s, err := Resolve("broker:release", map[string]string{Broker: c.given}, c.origin)
			if c.want == "" {
				if !failure.Is(err, failure.Denied) || !strings.Contains(failure.From(err).Hint, "NOTATION_HSM_BROKER=") {
					t.Errorf("%+v, %v", s, err)
				}
				return
			}
			if err != nil || s.Broker != c.want || s.Credentials == nil || s.Scheme() != BrokerScheme {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}

// TestBrokerCredentials takes them from the file, the environment and flags, and never from data.
func TestBrokerCredentials(t *testing.T) {
	dir := configure(t, "broker: "+broker+"\nbroker-ca: ca.pem\nbroker-token: github\napproval-wait: 2m\n")
	for _, name := range BrokerCredentials {
		_, err := Resolve("broker:release", map[string]string{name: "github"}, PluginConfig)
		if !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), "cannot take "+name+" from plugin config") {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := Resolve("broker:release", map[string]string{Repository: "registry.example.com:5000/team/app"}, PluginConfig)
	if err != nil || s.Credentials.CA != filepath.Join(dir, "ca.pem") || !s.Credentials.Token.GitHub ||
		s.ApprovalWait != 2*time.Minute || s.Repository != "registry.example.com:5000/team/app" {
		t.Errorf("%+v, %v", s, err)
	}
	for text, ok := range map[string]bool{"github": true, "gitlab:TOKEN": true, "kubernetes": true,
		"file:/run/token": true, "gitlab:": false, "gitlab:A-B": false, "file:token": false,
		"eyJ.secret": false, "env:TOKEN": false} {
		t.Setenv("NOTATION_HSM_BROKER_TOKEN", text)
		s, err := Resolve("broker:release", nil, PluginConfig)
		switch {
		case ok && (err != nil || s.Credentials.Token.String() != text):
			t.Errorf("%s: %+v, %v", text, s, err)
		case !ok && (!failure.Is(err, failure.Invalid) || strings.Contains(err.Error(), text)):
			t.Errorf("%s: %v", text, err)
		}
	}
	t.Setenv("NOTATION_HSM_BROKER_TOKEN", "")
	t.Setenv("NOTATION_HSM_BROKER_KEY", "/key.pem")
	if _, err := Resolve("broker:release", nil, PluginConfig); !failure.Is(err, failure.Invalid) {
		t.Errorf("a key without a certificate: %v", err)
	}
}

// TestRequestSettings refuses what is no time and no repository.
func TestRequestSettings(t *testing.T) {
	configure(t, "broker: "+broker)
	for _, c := range [][2]string{{ApprovalWait, "soon"}, {ApprovalWait, "-1s"}, {ApprovalWait, "25h"},
		{Repository, "app"}, {Repository, "registry.example.com/App"}, {Repository, "registry.example.com/app:v1"},
		{Repository, "registry.example.com/app@sha256:00"}, {Repository, "https://registry.example.com/app"}} {
		_, err := Resolve("broker:release", map[string]string{c[0]: c[1]}, PluginConfig)
		if !failure.Is(err, failure.Invalid) || failure.From(err).Hint == "" {
			t.Errorf("%s: %v", c, err)
		}
	}
}
