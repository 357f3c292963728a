package pin

import (
	"slices"
	"testing"
)

// TestEnviron leaves out the variable of the source alone.
func TestEnviron(t *testing.T) {
	t.Setenv("THE_PIN", "4321")
	t.Setenv("THE_PIN_2", "1")
	for source, has := range map[string]bool{"env:THE_PIN": false, "env:THE": true, "file:/THE_PIN": true, "": true} {
		environ := Environ(source)
		if slices.Contains(environ, "THE_PIN=4321") != has || !slices.Contains(environ, "THE_PIN_2=1") {
			t.Errorf("%q: %q", source, environ)
		}
	}
}
