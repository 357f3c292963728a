package config

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// ways are the ways to give a setting: beside a key, in the key's URI, and in the URI of a token.
var ways = map[string]func(name, value string, origin Origin) (*Settings, error){
	"setting": func(name, value string, origin Origin) (*Settings, error) {
		return Resolve("pkcs11:token=signing;object=release", map[string]string{name: value}, origin)
	},
	"stored setting": func(name, value string, origin Origin) (*Settings, error) {
		return ResolveStored("pkcs11:token=signing;object=release", map[string]string{name: value}, origin,
			map[string]string{"timeout": "1s"})
	},
	"key URI": func(name, value string, origin Origin) (*Settings, error) {
		return Resolve("pkcs11:token=signing;object=release?"+name+"="+escaped(value), nil, origin)
	},
	"stored key URI": func(name, value string, origin Origin) (*Settings, error) {
		return ResolveStored("pkcs11:token=signing;object=release?"+name+"="+escaped(value), nil, origin, nil)
	},
	"token URI": func(name, value string, origin Origin) (*Settings, error) {
		return Resolve("pkcs11:object=release",
			map[string]string{"token": "pkcs11:token=signing?" + name + "=" + escaped(value)}, origin)
	},
}

func escaped(text string) string {
	return strings.NewReplacer("%", "%25", " ", "%20", "|", "%7C", "&", "%26", "?", "%3F").Replace(text)
}

// TestData names each program in each place and way, with each kind of list. Data may name listed programs only.
func TestData(t *testing.T) {
	const listing = "modules:\n- /opt/hsm/p11.so\n- libp11.so\ncommands:\n- agent read pin\n"
	type setting struct{ name, value string }
	programs := map[setting]string{ // and the line that allows them
		{ModulePath, "/opt/hsm/p11.so"}:         "modules: [/opt/hsm/p11.so]",
		{ModulePath, "libp11.so"}:               "modules: [libp11.so]",
		{PINSource, "exec:agent read pin"}:      "commands: [agent read pin]",
		{PINSource, "|agent read pin"}:          "commands: [agent read pin]",
		{ModulePath, "/opt/hsm/p11.so.1"}:       "",
		{ModulePath, "/opt/hsm/../hsm/p11.so"}:  "",
		{ModulePath, "/opt//hsm/p11.so"}:        "",
		{ModulePath, "/tmp/libp11.so"}:          "",
		{PINSource, "exec:agent read  pin"}:     "",
		{PINSource, "exec:agent read pin -x"}:   "",
		{PINSource, "exec: agent read pin"}:     "",
		{PINSource, "exec:/tmp/agent read pin"}: "",
	}
	harmless := []setting{{PINSource, "env:A"}, {PINSource, "file:/run/pin"}, {PINSource, "file:///run/pin"},
		{PINSource, "/run/pin"}, {PINSource, "prompt"}, {PINSource, "none"}}
	got := func(s *Settings, name string) string {
		return map[string]string{ModulePath: s.ModulePath, PINSource: s.PINSource}[name]
	}
	for way, resolve := range ways {
		for _, origin := range []Origin{Flags, PluginConfig, Stored("/ca/ca.json"), {}} {
			data := origin != Flags
			t.Run(way+"/"+origin.name, func(t *testing.T) {
				path := configured(t, listing)
				for p, line := range programs {
					if p.value == "libp11.so" && strings.Contains(way, "URI") {
						continue // RFC 7512 has absolute paths only
					}
					t.Run(p.value, func(t *testing.T) {
						write := func(text string) {
							if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
								t.Fatal(err)
							}
						}
						write(listing)
						s, err := resolve(p.name, p.value, origin)
						allowed := !data || line != ""
						if allowed && (err != nil || got(s, p.name) != p.value) || !allowed && !failure.Is(err, failure.Denied) {
							t.Errorf("with a list: %+v, %v", s, err)
						}
						write("")
						s, err = resolve(p.name, p.value, origin)
						if !data && (err != nil || got(s, p.name) != p.value) || data && !failure.Is(err, failure.Denied) {
							t.Errorf("without a list: %+v, %v", s, err)
						}
						if data && line != "" && !strings.HasSuffix(failure.From(err).Hint, " "+path+": "+line) {
							t.Errorf("the hint is %q", failure.From(err).Hint)
						}
						if err != nil && !strings.Contains(err.Error(), origin.name) && way != "key URI" && way != "stored key URI" {
							t.Errorf("the error does not name the place: %v", err)
						}
						write("modules:\n- agent\ncommands:\n- /opt/hsm/p11.so\n- libp11.so\n")
						if _, err := resolve(p.name, p.value, origin); data != failure.Is(err, failure.Denied) {
							t.Errorf("in the other list: %v", err)
						}
					})
				}
				for _, h := range harmless {
					if s, err := resolve(h.name, h.value, origin); err != nil || got(s, h.name) != h.value {
						t.Errorf("%s: %+v, %v", h.value, s, err)
					}
				}
				for _, odd := range []string{"exec", "exec:", "| ", "EXEC:agent", " exec:agent", "sh:agent", "4321"} {
					if _, err := resolve(PINSource, odd, origin); data && !failure.Is(err, failure.Invalid) || err != nil &&
						strings.Contains(err.Error(), "4321") {
						t.Errorf("pin-source %q: %v", odd, err)
					}
				}
				if _, err := resolve(ModulePath, "./p11.so", origin); data && !failure.Is(err, failure.Invalid) {
					t.Errorf("a library in the current folder: %v", err)
				}
			})
		}
	}
}

// TestTrustedPlaces lets the environment and the config file name any program, also for a key that data names. Data may
// repeat these programs, and name no others.
func TestTrustedPlaces(t *testing.T) {
	const module, source = "/opt/hsm/p11.so", "exec:agent read pin"
	for name, place := range map[string]func(t *testing.T) (key string){
		"environment": func(t *testing.T) string {
			configured(t, "")
			t.Setenv("NOTATION_HSM_MODULE_PATH", module)
			t.Setenv("NOTATION_HSM_PIN_SOURCE", source)
			return "pkcs11:token=signing;object=release"
		},
		"top": func(t *testing.T) string {
			configured(t, "module-path: "+module+"\npin-source: "+source+"\n")
			return "pkcs11:token=signing;object=release"
		},
		"token": func(t *testing.T) string {
			configured(t, "tokens:\n  signing:\n    module-path: "+module+"\n    pin-source: "+source+"\n")
			return "pkcs11:token=signing;object=release"
		},
		"key": func(t *testing.T) string {
			configured(t, "keys:\n  release:\n    uri: pkcs11:token=signing;object=release\n    module-path: "+module+
				"\n    pin-source: "+source+"\n")
			return "release"
		},
		"URI of a key": func(t *testing.T) string {
			configured(t, "keys:\n  release:\n    uri: pkcs11:token=signing;object=release?module-path="+module+"&pin-source="+
				escaped(source)+"\n")
			return "release"
		},
	} {
		t.Run(name, func(t *testing.T) {
			key := place(t)
			for _, same := range []map[string]string{nil, {ModulePath: module}, {ModulePath: module, PINSource: source}} {
				s, err := Resolve(key, same, PluginConfig)
				if err != nil || s.ModulePath != module || s.PINSource != source {
					t.Errorf("%v: %+v, %v", same, s, err)
				}
			}
			for _, other := range []map[string]string{{ModulePath: "/opt/other.so"}, {PINSource: "exec:other"}} {
				if _, err := Resolve(key, other, PluginConfig); !failure.Is(err, failure.Denied) {
					t.Errorf("%v: %v", other, err)
				}
				if s, err := ResolveStored(key, other, PluginConfig,
					map[string]string{ModulePath: module, PINSource: source}); err != nil || s.ModulePath != module {
					t.Errorf("%v, with flags that are stronger: %+v, %v", other, s, err)
				}
			}
		})
	}
	// A program that the config file sets for one token or key is refused for another.
	configured(t, "tokens:\n  signing:\n    pin-source: "+source+
		"\nkeys:\n  release:\n    uri: pkcs11:object=release\n    module-path: "+module+"\n")
	for _, other := range []map[string]string{{PINSource: source, "token": "other"}, {ModulePath: module}} {
		if _, err := Resolve("pkcs11:object=a", other, PluginConfig); !failure.Is(err, failure.Denied) {
			t.Errorf("%v: %v", other, err)
		}
	}
}

// TestOnlyTheFile refuses settings in data that only the config file has: the environment of the module, the NetHSM,
// the lists of programs.
func TestOnlyTheFile(t *testing.T) {
	configured(t, "nethsm:\n  instances: https://nethsm.example.com\n  user: operator\n")
	for _, name := range []string{"env", InitArgs, "modules", "commands", "nethsm", "instances", "nethsm-instances",
		"user", "ca-file", "insecure", "administrator-pin-source", "uri"} {
		if _, err := Resolve("pkcs11:object=a", map[string]string{name: "x"}, PluginConfig); !failure.Is(err,
			failure.Invalid) {
			t.Errorf("%s in plugin config: %v", name, err)
		}
		if _, err := Resolve("pkcs11:object=a?"+name+"=x", nil, PluginConfig); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s in a URI: %v", name, err)
		}
	}
	if _, err := Resolve("nethsm:release", map[string]string{PINSource: "exec:agent"}, PluginConfig); !failure.Is(err,
		failure.Denied) {
		t.Errorf("a command for the passphrase of a NetHSM: %v", err)
	}
	for _, given := range []map[string]string{{ModulePath: "/opt/hsm/p11.so"},
		{"token": "pkcs11:token=a?module-path=/opt/hsm/p11.so"}} {
		if s, err := ResolveStored("nethsm:release", given, PluginConfig, nil); err == nil &&
			s.ModulePath != "https://nethsm.example.com" {
			t.Errorf("%v: %+v", given, s)
		}
	}
}

// TestUnlisted finds the programs that the config file has to list, also those of the current environment.
func TestUnlisted(t *testing.T) {
	configured(t, "modules: [/opt/listed.so]\npin-source: exec:agent\n")
	t.Setenv("NOTATION_HSM_MODULE_PATH", "/opt/hsm/p11.so") // a later process may not have it
	for _, c := range []struct {
		reference string
		stored    map[string]string
		want      string
	}{
		{"pkcs11:object=a", nil, "{[] []}"},
		{"pkcs11:object=a", map[string]string{ModulePath: "/opt/listed.so", PINSource: "exec:agent"}, "{[] []}"},
		{"pkcs11:object=a", map[string]string{ModulePath: "/opt/hsm/p11.so", PINSource: "exec:other"},
			"{[/opt/hsm/p11.so] [other]}"},
		{"pkcs11:object=a?module-path=/opt/hsm/p11.so&pin-source=%7Cother", nil, "{[/opt/hsm/p11.so] [other]}"},
		{"pkcs11:object=a?module-path=/opt/hsm/p11.so", map[string]string{ModulePath: "/opt/listed.so"}, "{[] []}"},
	} {
		if got, err := Unlisted(c.reference, c.stored, PluginConfig); err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s %v: %v, %v, not %s", c.reference, c.stored, got, err, c.want)
		}
	}
	if _, err := Unlisted("pkcs11:object=a?module-path=./p11.so", nil, PluginConfig); !failure.Is(err, failure.Invalid) {
		t.Errorf("a library in the current folder: %v", err)
	}
}

// TestLists refuses entries whose meaning depends on the working directory, and other malformed lists.
func TestLists(t *testing.T) {
	for _, text := range []string{"modules: /a.so", "modules: {a: b}", "modules: [[a]]", "modules: [./a.so]",
		"modules: [lib/a.so]", "modules: ['']", "commands: [' ']", "commands: ['exec:a']", "commands: ['|a']",
		"tokens:\n  a:\n    modules: [/a.so]"} {
		path := configured(t, text)
		if _, err := Resolve("pkcs11:object=a", nil, PluginConfig); !failure.Is(err, failure.Invalid) ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"modules:", "modules: []", "commands: [a]"} {
		configured(t, text)
		if _, err := Resolve("pkcs11:object=a", nil, PluginConfig); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestInitArgs takes what a module gets in C_Initialize from the token's entry in the config file.
func TestInitArgs(t *testing.T) {
	configured(t, "tokens:\n  a: {init-args: \"configdir='sql:/x'\"}\n  b: {}\n")
	for token, want := range map[string]string{"a": "configdir='sql:/x'", "b": ""} {
		s, err := Resolve("pkcs11:token="+token, nil, PluginConfig)
		if err != nil || s.InitArgs != want {
			t.Errorf("token %s: %+v, %v", token, s, err)
		}
	}
}
