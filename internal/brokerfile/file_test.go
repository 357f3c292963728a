package brokerfile

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// valid is a config without a mistake, and with the fewest settings.
const valid = `version: 1
public-url: https://broker.example.com:8443
rp-id: example.com
listen:
  https:
    address: 0.0.0.0:8443
    certificate: /etc/hsm-broker/tls.pem
    key: /etc/hsm-broker/tls.key
    client-ca: /etc/hsm-broker/ca.pem
  unix: {path: /run/hsm-broker/broker.sock}
store: sqlite:/var/lib/hsm-broker/broker.db
policy: /etc/hsm-broker/policy.yaml
modules:
- token: pkcs11:token=prod
  module-path: /usr/lib/libp11.so
  pin-source: file:/etc/hsm-broker/pin
keys:
  release: {certificate-chain: /etc/hsm-broker/release.pem}
log:
  key: pkcs11:token=prod;object=log
  origin: broker.example.com/log
  checkpoint-file: /mnt/other/checkpoint
callers:
  mtls: {}
administrators:
- {unix: root}
registries:
- {host: registry.example.com}
`

// replaced returns the valid config with replacements: old, new, old, new.
func replaced(t *testing.T, pairs ...string) string {
	t.Helper()
	text := valid
	for i := 0; i < len(pairs); i += 2 {
		if strings.Count(text, pairs[i]) != 1 {
			t.Fatalf("%q is not once in the config", pairs[i])
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

// parse parses a config that is valid.
func parse(t *testing.T, text string) *File {
	t.Helper()
	f, mistakes := Parse([]byte(text))
	if len(mistakes) > 0 {
		t.Fatal(mistakes)
	}
	return f
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	f := parse(t, valid)
	if f.Log.MaxUnpublished != (Unpublished{5 * time.Minute, 10_000}) ||
		f.StorePath() != "/var/lib/hsm-broker/broker.db" || f.Listen.Metrics != "" {
		t.Errorf("%+v", f)
	}
	f = parse(t, replaced(t, "  origin:", "  max-unpublished: {time: 1m, entries: 100}\n  origin:"))
	if f.Log.MaxUnpublished != (Unpublished{time.Minute, 100}) {
		t.Errorf("%+v", f.Log)
	}
}

// TestMistakes finds each mistake at its line.
func TestMistakes(t *testing.T) {
	t.Parallel()
	const https = `  https:
    address: 0.0.0.0:8443
    certificate: /etc/hsm-broker/tls.pem
    key: /etc/hsm-broker/tls.key
    client-ca: /etc/hsm-broker/ca.pem
`
	for _, c := range []struct{ old, new, want string }{
		{"version: 1", "version: 2", "line 1: version: is 2 (write version: 1)"},
		{"version: 1", "version: one", "line 1: "},
		{"https://broker", "http://broker", `line 2: public-url: "http://broker.example.com:8443" is not an https URL`},
		{":8443\nrp-id", ":8443/api\nrp-id", `line 2: public-url: "https://broker.example.com:8443/api" is not`},
		{"rp-id: example.com", "rp-id: example.org", `line 3: rp-id: "example.org" is no domain of broker.example.com`},
		{"rp-id: example.com", "rp-id: ample.com", `line 3: rp-id: "ample.com" is no domain of`},
		{"rp-id: example.com\n", "", `line 1: rp-id: "" is no domain of`},
		{https + "  unix: {path: /run/hsm-broker/broker.sock}\n", "  metrics: 127.0.0.1:9464\n",
			"line 5: listen: the broker listens nowhere"},
		{"0.0.0.0:8443", "0.0.0.0", `line 6: listen.https.address: "0.0.0.0" is not ADDRESS:PORT`},
		{"0.0.0.0:8443", "0.0.0.0:https", `line 6: listen.https.address: "0.0.0.0:https" is not ADDRESS:PORT`},
		{"0.0.0.0:8443", "0.0.0.0:65536", `line 6: listen.https.address: "0.0.0.0:65536" is not ADDRESS:PORT`},
		{"0.0.0.0:8443", "0.0.0.0:0", `line 6: listen.https.address: "0.0.0.0:0" is not ADDRESS:PORT`},
		{"/etc/hsm-broker/tls.pem", "tls.pem", `line 7: listen.https.certificate: "tls.pem" is not an absolute path`},
		{"/etc/hsm-broker/tls.key", "tls.key", `line 8: listen.https.key: "tls.key" is not an absolute path`},
		{"/etc/hsm-broker/ca.pem", "ca.pem", `line 9: listen.https.client-ca: "ca.pem" is not an absolute path`},
		{"    client-ca: /etc/hsm-broker/ca.pem\n", "", "line 23: callers.mtls: no CA issues their certificates"},
		{"/run/hsm-broker/broker.sock", "broker.sock", `line 10: listen.unix.path: "broker.sock" is not an absolute path`},
		{"  unix: {", "  metrics: localhost\n  unix: {", `line 10: listen.metrics: "localhost" is not ADDRESS:PORT`},
		{"sqlite:/var", "sqlite:var", `line 11: store: "sqlite:var/lib/hsm-broker/broker.db" is not a store`},
		{"sqlite:/var", "/var", `line 11: store: "/var/lib/hsm-broker/broker.db" is not a store`},
		{"/etc/hsm-broker/policy.yaml", "policy.yaml", `line 12: policy: "policy.yaml" is not an absolute path`},
		{"- token: pkcs11:token=prod\n  module-path: /usr/lib/libp11.so\n  pin-source: file:/etc/hsm-broker/pin\n", "  []\n",
			"line 14: modules: there is none"},
		{"- token: pkcs11:token=prod", "- token: prod", "line 14: modules[0].token: it is not the URI of a token"},
		{"- token: pkcs11:token=prod\n", "- token: pkcs11:token=prod;object=release\n",
			"line 14: modules[0].token: it is not the URI of a token"},
		{"- token: pkcs11:token=prod\n", "- token: broker:release\n",
			"line 14: modules[0].token: it is not the URI of a token"},
		{"- token: pkcs11:token=prod\n", "- token: pkcs11:token=prod?pin-value=hunter2\n",
			"line 14: modules[0].token: it has a query"},
		{"- token: pkcs11:token=prod\n  m", "- {token: pkcs11:token=prod}\n- token: pkcs11:token=prod\n  m",
			`line 15: modules[1].token: "pkcs11:token=prod" is modules[0], too (list each token once)`},
		{"  pin-source", "  nethsm-typo: a\n  pin-source",
			"line 16: modules[0].nethsm-typo: unknown setting (known are: token,"},
		{"  pin-source", "  nethsm-insecur: true\n  pin-source",
			"line 16: modules[0].nethsm-insecur: unknown setting (did you mean nethsm-insecure?"},
		{"  pin-source: file:/etc/hsm-broker/pin", "  pin: hunter2", "line 16: modules[0].pin: unknown setting"},
		{"file:/etc/hsm-broker/pin", "hunter2", "line 16: modules[0].pin-source: it names no source"},
		{"  pin-source", "  nethsm-insecure: maybe\n  pin-source", `line 16: modules[0].nethsm-insecure: "maybe" is neither`},
		{"  pin-source", "  timeout: soon\n  pin-source", `line 16: modules[0].timeout: "soon" is not a time above 0`},
		{"  pin-source", "  timeout: 0s\n  pin-source", `line 16: modules[0].timeout: "0s" is not a time above 0`},
		{"  pin-source", "  timeout: -1s\n  pin-source", `line 16: modules[0].timeout: "-1s" is not a time above 0`},
		{"  pin-source", "  slot-id: first\n  pin-source", `line 16: modules[0].slot-id: "first" is not a number`},
		{"/usr/lib/libp11.so", "lib/p11.so", `line 15: modules[0].module-path: "lib/p11.so" is not an absolute path`},
		{"/etc/hsm-broker/release.pem", "a.pem", `line 18: keys.release.certificate-chain: "a.pem" is not an absolute path`},
		{"token=prod;object=log", "token=prod", "line 20: log.key: it is not the URI of a key"},
		{"token=prod;object=log", "token=prod;object=log?pin-value=hunter2", "line 20: log.key: it is not the URI of a key"},
		{"token=prod;object=log", "token=test;object=log", "line 20: log.key: no module has its token"},
		{"pkcs11:token=prod;object=log", "", "line 20: log.key: it is not the URI of a key"},
		{"pkcs11:token=prod;object=log", "[]", "line 20: log.key: it is not the URI of a key"},
		{"pkcs11:token=prod;object=log", "[" + strings.Repeat("pkcs11:object=log,", 17) + "]",
			"line 20: log.key: it has 17 " +
				"URIs, more than 16"},
		{"pkcs11:token=prod;object=log", "['pkcs11:token=prod;object=log', nethsm:log]",
			"line 20: log.key[1]: no module has " +
				"its token"},
		{"pkcs11:token=prod;object=log", "['pkcs11:token=prod;object=log', 'pkcs11:object=log;token=prod']",
			"line 20: log.key[1]: pkcs11:token=prod;object=log is there twice"},
		{"origin: broker", "origin: https://broker", `line 21: log.origin: "https://broker.example.com/log" is not a name`},
		{"/mnt/other/checkpoint", "checkpoint", `line 22: log.checkpoint-file: "checkpoint" is not an absolute path`},
		{"  origin:", "  max-unpublished: {time: 1ms}\n  origin:", "line 21: log.max-unpublished.time: is 1ms"},
		{"  origin:", "  max-unpublished: {entries: 1}\n  origin:", "line 21: log.max-unpublished.entries: is 1"},
		{"  mtls: {}", "  limits: {}", "line 24: callers: nobody may call the broker (list oidc, mtls or unix)"},
		{"  mtls: {}", "  mtls: {}\n  limits: {requests: many}", `line 25: "many" is not a rate`},
		{"  mtls: {}", "  mtls: {}\n  limits: {size: 1GB}", `line 25: "1GB" is not a size`},
		{"  mtls: {}", "  mtls: {}\n  limits: {open: -1}", "line 25: callers.limits.open: is -1"},
		{"  mtls: {}", "  oidc:\n  - issuer: http://issuer.example.com\n    type: github\n    audience: a",
			`line 25: callers.oidc[0].issuer: "http://issuer.example.com" is not an https URL`},
		{"{unix: root}", "{unix: root, mtls: CN=ci}", "line 26: administrators[0]: has not exactly one of unix and mtls"},
		{"{host: registry.example.com}", "{host: https://registry.example.com}", "line 28: registry 1 ("},
		{"{host: registry.example.com}", "{host: registry.example.com, ca: /missing/ca.pem}", "line 28: registry 1 ("},
		{"public-url:", "public-ulr:", `line 2: unknown name "public-ulr" (did you mean public-url? (known are: version,`},
		{"certificate-chain:", "certficate-chain:",
			`line 18: unknown name "certficate-chain" (did you mean certificate-chain?`},
		{"{host: registry", "{hsot: registry", `line 28: unknown name "hsot" (did you mean host?`},
		{"store: sqlite", "version: 1\nstore: sqlite", "line 11: "},
		{"version: 1", "<<: {version: 1}", `line 1: unknown name "<<"`},
		{"rp-id: example.com", "rp-id: &a example.com\nstore: *a", "line 4: YAML alias (write the value out"},
		{"version: 1", "version: [", "it is not YAML"},
		{valid, "", "it is empty (make one with 'hsm-broker init')"},
		{valid, "[]", "line 1: "},
		{valid, strings.Repeat("#", MaxFile+1), "more than 262144"},
		{valid, valid + "---\nversion: 1\n", "expected single document"},
	} {
		_, mistakes := Parse([]byte(replaced(t, c.old, c.new)))
		if !slices.ContainsFunc(mistakes, func(m Mistake) bool { return strings.HasPrefix(m.String(), c.want) }) &&
			!strings.Contains(mistakes.Error(), c.want) || len(mistakes) == 0 {
			t.Errorf("%.60q: the mistakes do not have %q:\n%v", c.new, c.want, mistakes)
		}
		if strings.Contains(mistakes.Error(), "hunter2") {
			t.Errorf("%.60q: a mistake shows the PIN:\n%v", c.new, mistakes)
		}
	}
}

// TestAllMistakes returns all mistakes at once, in the order of lines.
func TestAllMistakes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := replaced(t, "version: 1", "version: 3", "0.0.0.0:8443", "8443",
		"store:", "stroe:", "  pin-source:", "  pni-source:",
		"mtls: {}", "mtls: {}\n  limits: {size: big}", "host: reg", "plain-http: maybe, host: reg")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Read(path)
	if !failure.Is(err, failure.Invalid) {
		t.Fatal(err)
	}
	for _, want := range []string{"\nline 1: version: ", `line 1: store: "" is not`,
		"\nline 6: listen.https.address: ", "\nline 11: unknown name \"stroe\"",
		"\nline 16: modules[0].pni-source", "\nline 25: ", "\nline 29: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
	_, mistakes := Parse([]byte(text))
	if !slices.IsSortedFunc(mistakes, func(a, b Mistake) int { return a.Line - b.Line }) {
		t.Error(mistakes)
	}
	if _, err := Read(filepath.Join(filepath.Dir(path), "other")); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
}

// TestLine finds the line of a path, or of what it would be in.
func TestLine(t *testing.T) {
	t.Parallel()
	f := parse(t, valid)
	for path, want := range map[string]int{
		"version": 1, "listen.https": 6, "listen.https.key": 8, "listen.https.absent": 6, "modules[0]": 14,
		"modules[0].pin-source": 16, "modules[0].absent": 14, "modules[1]": 14, "modules[99999999999999999999]": 14,
		"keys.release.certificate-chain": 18, "keys.a.b": 18, "absent.absent": 1, "": 1, ".": 1, "a..b": 1, "[0]": 1,
		"modules[x]": 1, "modules[0][0]": 14, "version[0]": 1, "version.version": 1,
	} {
		if got := f.line(path); got != want {
			t.Errorf("%q is in line %d, not %d", path, got, want)
		}
	}
}

// TestModuleOf finds the module of a key by the token's attributes.
func TestModuleOf(t *testing.T) {
	t.Parallel()
	f := parse(t, replaced(t, "- token: pkcs11:token=prod\n",
		"- {token: pkcs11:token=prod;serial=1, timeout: 1s}\n- {token: 'nethsm:', timeout: 3s}\n"+
			"- token: pkcs11:token=prod\n  timeout: 2s\n"))
	for key, timeout := range map[string]string{
		"pkcs11:token=prod;object=a": "2s", "pkcs11:token=prod;serial=1;object=a": "1s",
		"pkcs11:token=prod;serial=2;object=a": "2s",
		"nethsm:a":                            "3s", "pkcs11:token=other;object=a": "", "pkcs11:object=a": "",
		"broker:a": "", "pkcs11:serial=1;object=a": "",
	} {
		u, err := config.ParseURI(key)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.ModuleOf(u)
		if m[config.Timeout] != timeout || (err != nil) != (timeout == "") ||
			err != nil && !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v, %v", key, m, err)
		}
	}
}

// TestDecisive changes with what decides who may do what, and with nothing else.
func TestDecisive(t *testing.T) {
	t.Parallel()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(ca, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	decisive := func(pairs ...string) []byte {
		t.Helper()
		f := parse(t, strings.Replace(replaced(t, pairs...), "/etc/hsm-broker/ca.pem", ca, 1))
		data, err := f.Decisive()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	write("first")
	first := decisive()
	for range 20 { // maps have no order
		if !bytes.Equal(decisive(), first) {
			t.Fatal("it differs for the same file")
		}
	}
	if bytes.Contains(first, []byte("/etc/hsm-broker/pin")) {
		t.Error("it has the source of the PIN")
	}
	for _, change := range [][]string{
		{"  pin-source: file:/etc/hsm-broker/pin", "  pin-source: env:PIN\n  timeout: 1m"},
		{"0.0.0.0:8443", "127.0.0.1:8444"}, {"/run/hsm-broker/broker.sock", "/run/other.sock"}, {"tls.pem", "new.pem"},
		{"sqlite:/var", "sqlite:/mnt"}, {"/mnt/other/checkpoint", "/mnt/checkpoint"}, {"release.pem", "new.pem"},
		{"  unix: {", "  metrics: 127.0.0.1:9464\n  unix: {"}, {"version: 1", "version: 1 # comment"},
		{"  origin:", "  max-unpublished: {time: 1m}\n  origin:"},
		{"pkcs11:token=prod;object=log", "['pkcs11:token=prod;object=log']"},
	} {
		if !bytes.Equal(decisive(change...), first) {
			t.Errorf("it changes with %q", change)
		}
	}
	for _, change := range [][]string{
		{"  mtls: {}", "  mtls: {allow: [CN=ci]}"}, {"  mtls: {}", "  mtls: {}\n  unix: {users: [root]}"},
		{"  mtls: {}", "  mtls: {}\n  limits: {open: 7}"}, {"{unix: root}", "{unix: '1'}"},
		{"- {unix: root}", "- {unix: root}\n- {mtls: CN=a}"},
		{"{host: registry.example.com}", "{host: registry.example.com, hosts: [token.example.com]}"},
		{"/usr/lib/libp11.so", "/usr/lib/other.so"}, {"  pin-source", "  slot-id: 1\n  pin-source"},
		{"rp-id: example.com", "rp-id: broker.example.com"}, {"object=log", "object=log2"},
		{"com:8443", "com"}, {"com/log", "com/log2"},
		{"pkcs11:token=prod;object=log", "['pkcs11:token=prod;object=log', 'pkcs11:token=prod;object=log2']"},
		{"- token: pkcs11:token=prod", "- {token: pkcs11:token=test}\n- token: pkcs11:token=prod"},
	} {
		if bytes.Equal(decisive(change...), first) {
			t.Errorf("it does not change with %q", change)
		}
	}
	write("second")
	if bytes.Equal(decisive(), first) {
		t.Error("it does not change with the content of client-ca")
	}
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	f := parse(t, strings.Replace(valid, "/etc/hsm-broker/ca.pem", ca, 1))
	if _, err := f.Decisive(); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
}

// TestDecisiveForm keeps the form of what decides: a change of it has every administrator apply a config anew.
func TestDecisiveForm(t *testing.T) {
	t.Parallel()
	data, err := parse(t, replaced(t, "    client-ca: /etc/hsm-broker/ca.pem\n", "", "mtls: {}",
		"unix: {users: [root]}")).Decisive()
	const want = `{"administrators":[{"MTLS":"","Unix":"root"}],"callers":{"Limits":{"Open":0,` +
		`"Requests":{"Count":0,"Per":0},"Size":0},"MTLS":null,"OIDC":null,"Unix":{"Groups":null,"Users":["root"]}},` +
		`"files":{},"log":{"key":"pkcs11:token=prod;object=log","origin":"broker.example.com/log"},"modules":[` +
		`{"module-path":"/usr/lib/libp11.so","token":"pkcs11:token=prod"}],"public-url":"https://broker.example.com:8443",` +
		`"registries":[{"CA":"","Credentials":"","Host":"registry.example.com","Hosts":null,"Loopback":false,` +
		`"PlainHTTP":false}],"rp-id":"example.com"}`
	if err != nil || string(data) != want {
		t.Errorf("%s, %v", data, err)
	}
}

// FuzzParse parses everything without a panic, and finds the same twice.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{valid, "", "a", "[]", "version: [1", "version: 1\n---\nversion: 1", "a: &a [*a]", "{}",
		"modules: [{token: 1}]", "listen: {https: {address: ':'}}", "registries: [{host: a}, {host: a}]",
		"callers: {oidc: [{issuer: a, audience: [a]}], limits: {requests: 1 per day, size: 1KiB}}", "keys: {a.b[0]: {x: y}}",
		"public-url: https://[::1]:1", "log: {max-unpublished: {time: 9999999h, entries: 1e9}}", "!!binary dmVyc2lvbg==: 1",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, mistakes := Parse(data)
		if file == nil && len(mistakes) == 0 {
			t.Error("neither a file nor a mistake")
		}
		lines := bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")) + 2
		for _, m := range mistakes {
			if m.What == "" || m.Line < 0 || m.Line > lines {
				t.Errorf("%+v", m)
			}
		}
		if _, again := Parse(data); !slices.Equal(mistakes, again) {
			t.Errorf("%v\n%v", mistakes, again)
		}
	})
}
