package config

import (
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestAddTo adds programs to their list and keeps every other line.
func TestAddTo(t *testing.T) {
	programs := Programs{Modules: []string{"/opt/v2/p11.so"}, Commands: []string{"agent read: pin"}}
	for name, c := range map[string]struct{ before, after string }{
		"no file": {"", "modules:\n- /opt/v2/p11.so\ncommands:\n- \"agent read: pin\"\n"},
		"no lists": {"# mine\n\ntimeout: 20s # long",
			"# mine\n\ntimeout: 20s # long\nmodules:\n- /opt/v2/p11.so\ncommands:\n- \"agent read: pin\"\n"},
		"comments": {"# none yet\n", "# none yet\nmodules:\n- /opt/v2/p11.so\ncommands:\n- \"agent read: pin\"\n"},
		"empty list": {"modules:\ncommands:\ntimeout: 1s\n",
			"modules:\n- /opt/v2/p11.so\ncommands:\n- \"agent read: pin\"\ntimeout: 1s\n"},
		"lists": {
			"modules:\n    - /a.so # ours\n    # and\n    - '/b.so'\n\ncommands:\n- x\n\ntokens:\n  signing: {timeout: 2m}\n",
			"modules:\n    - /a.so # ours\n    # and\n    - '/b.so'\n    - /opt/v2/p11.so\n\ncommands:\n- x\n- \"agent read: " +
				"pin\"\n\ntokens:\n  signing: {timeout: 2m}\n",
		},
		"brackets": {"modules: [ /ä.so, /b.so ] # ours\ncommands: ['x']\n",
			"modules: [ /opt/v2/p11.so, /ä.so, /b.so ] # ours\ncommands: [\"agent read: pin\", 'x']\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := programs.addTo(c.before, "config.yaml"); err != nil || got != c.after {
				t.Errorf("%v:\n%s\nnot\n%s", err, got, c.after)
			}
		})
	}
	for _, odd := range []string{"{timeout: 1s}\n", "modules: []\n", "timeout: 1s\n...\n", "modules:\n- |\n  /a.so\n",
		"modules: &a [x]\ncommands: *a\n"} {
		if got, err := programs.addTo(odd, "config.yaml"); err == nil {
			t.Errorf("%q became %q", odd, got)
		}
	}
}

// TestHint allows a program of any name with the line in the hint.
func TestHint(t *testing.T) {
	for _, value := range []string{"/usr/lib/x.so", "libx.so", "agent read pin", "x: y", "a #b", "- a", "!x", "'x", `"x\`,
		" x ", "1", "null", "ü", "a\nb", "\x00", "-x", "[a]", "*a", "&a", "%a", "@a", "`a", "~", "a:"} {
		f := newFile("config.yaml")
		f.commands = []string{"agent, [1]"}
		err := f.checkPINSource("exec:"+value, PluginConfig, "", nil)
		if !failure.Is(err, failure.Denied) {
			t.Fatalf("%q: %v", value, err)
		}
		_, line, _ := strings.Cut(failure.From(err).Hint, "config.yaml: ")
		if err := f.parse([]byte(line)); err != nil {
			t.Fatalf("%q: %q: %v", value, line, err)
		}
		if err := f.checkPINSource("|"+value, PluginConfig, "", nil); err != nil || len(f.commands) != 2 ||
			strings.Contains(line, "\n") {
			t.Errorf("%q is refused with the line %s: %v", value, line, err)
		}
	}
}
