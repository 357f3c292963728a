package softhsmtest

import (
	"os"
	"strings"
	"testing"
)

// TestEnvironment sets one variable in tests side by side: each has its own, for its programs and in InProcess, and the
// process has none.
func TestEnvironment(t *testing.T) {
	const name = "SOFTHSM_TEST_VARIABLE"
	for _, value := range []string{"one", "two"} {
		t.Run(value, func(t *testing.T) {
			Parallel(t)
			Setenv(t, name, value)
			t.Run("part", func(t *testing.T) {
				if got := Getenv(t, name); got != value {
					t.Errorf("a part of the test has %q", got)
				}
				Setenv(t, name, "part of "+value)
				if got := strings.TrimSpace(Run(t, "printenv", name)); got != "part of "+value {
					t.Errorf("a program of the part has %q", got)
				}
			})
			if got := strings.TrimSpace(Run(t, "printenv", name)); got != value {
				t.Errorf("a program has %q", got)
			}
			InProcess(t, func() {
				if got := os.Getenv(name); got != value {
					t.Errorf("a module would have %q", got)
				}
			})
		})
	}
	t.Run("alone", func(t *testing.T) {
		Setenv(t, name, "alone")
		if got := os.Getenv(name); got != "alone" || Getenv(t, name) != got {
			t.Errorf("the process has %q", got)
		}
	})
	if got, set := os.LookupEnv(name); set {
		t.Errorf("the process has %q", got)
	}
}
