package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// root returns a command line with a command "key show KEY" that fails with err.
func root(err error) *cobra.Command {
	show := &cobra.Command{Use: "show KEY", Args: Exactly(1), RunE: func(*cobra.Command, []string) error { return err }}
	many := &cobra.Command{Use: "many", Args: AtMost(1), RunE: func(*cobra.Command, []string) error { return err }}
	AddSettings(show, TokenSettings...)
	return Root(&cobra.Command{Use: "hsm"}, Group("key", "Keys", show), many)
}

// run runs a command line and returns its exit code and what it wrote to standard error.
func run(t *testing.T, c *cobra.Command, args ...string) (int, string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	standard := os.Stderr
	os.Stderr = w
	c.SetArgs(args)
	c.SetOut(io.Discard)
	code := Run(context.Background(), c)
	os.Stderr = standard
	w.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return code, string(text)
}

// TestExitCodes gives each kind of failure its exit code. Scripts rely on them.
func TestExitCodes(t *testing.T) {
	for kind, want := range map[failure.Kind]int{
		failure.Internal: 1, failure.Invalid: 1, failure.Conflict: 1, failure.Throttled: 1, failure.Unsupported: 1,
		failure.Denied: 3, failure.NotFound: 4, failure.Unavailable: 5, failure.Timeout: 5,
	} {
		err := failure.New(kind, "cannot do it").WithHint("do it otherwise")
		for _, err := range []error{err, fmt.Errorf("wrapped: %w", err)} {
			if code, _ := run(t, root(err), "key", "show", "x"); code != want {
				t.Errorf("kind %d: exit code %d, want %d", kind, code, want)
			}
		}
		// A wrong call is one, whatever the kind of its cause.
		if code, _ := run(t, root(Usage(root(nil), err)), "key", "show", "x"); code != 2 {
			t.Errorf("a wrong call with kind %d: exit code %d", kind, code)
		}
	}
	if code, text := run(t, root(errors.New("plain")), "key", "show", "x"); code != 1 || text != "error: plain\n" {
		t.Errorf("%d, %q", code, text)
	}
	if code, text := run(t, root(nil), "key", "show", "x"); code != 0 || text != "" {
		t.Errorf("%d, %q", code, text)
	}
}

// TestWrongCalls ends with exit code 2 and a hint.
func TestWrongCalls(t *testing.T) {
	for call, want := range map[string]string{
		"kay":                   `error: unknown command "kay"` + "\nhint: see 'hsm --help'\n",
		"key shaw":              `error: unknown command "shaw"` + "\nhint: see 'hsm key --help'\n",
		"key show":              "error: accepts 1 arg(s), received 0\nhint: see 'hsm key show --help'\n",
		"key show x y":          "error: accepts 1 arg(s), received 2\nhint: see 'hsm key show --help'\n",
		"many x y":              "error: accepts at most 1 arg(s), received 2\nhint: see 'hsm many --help'\n",
		"key show --colour x":   "error: unknown flag: --colour\nhint: see 'hsm key show --help'\n",
		"key show --token":      "error: flag needs an argument: --token\nhint: see 'hsm key show --help'\n",
		"key show x --required": "",
	} {
		c := root(nil)
		if want == "" {
			show, _, err := c.Find([]string{"key", "show"})
			if err != nil {
				t.Fatal(err)
			}
			show.Flags().Bool("required", false, "")
			show.RunE = func(c *cobra.Command, _ []string) error { return Required(c, "to", "a.json") }
			want = "error: --to is required\nhint: as in: --to a.json\n"
		}
		if code, text := run(t, c, strings.Fields(call)...); code != 2 || text != want {
			t.Errorf("%s: %d, %q, want %q", call, code, text, want)
		}
	}
	for _, call := range []string{"", "key", "--help", "key show --help"} {
		if code, text := run(t, root(nil), strings.Fields(call)...); code != 0 || text != "" {
			t.Errorf("%q: %d, %q", call, code, text)
		}
	}
}

// TestUsage keeps the hint of the mistake, and the failure itself for callers that ask for its kind.
func TestUsage(t *testing.T) {
	t.Parallel()
	err := Usage(root(nil), failure.New(failure.Invalid, "--a excludes --b").WithHint("give one of them"))
	if f := failure.From(err); f.Hint != "give one of them" || f.Error() != "--a excludes --b" ||
		f.Kind != failure.Invalid {
		t.Errorf("%+v", f)
	}
	if err.Error() != "--a excludes --b" {
		t.Error(err)
	}
}

// TestSettings returns the settings that were given, and no others.
func TestSettings(t *testing.T) {
	t.Parallel()
	c := &cobra.Command{Use: "show", RunE: func(*cobra.Command, []string) error { return nil }}
	given := AddSettings(c, TokenSettings...)
	c.SetArgs([]string{"--token", "signing", "--pin-source=", "--allow-final-pin-try"})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	got := given()
	if len(got) != 3 || got[config.Token] != "signing" || got[config.AllowFinalPINTry] != "true" {
		t.Errorf("%q", got)
	}
	if value, there := got[config.PINSource]; !there || value != "" {
		t.Error("an empty setting is not the same as none")
	}
	for _, name := range config.Names {
		if name != config.AllowFinalPINTry && settingHelp[name] == "" {
			t.Errorf("the setting %s has no help", name)
		}
	}
}
