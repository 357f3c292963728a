package scope

import (
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
)

// TestOneName verifies that a repository has one name, however its registry is spelled.
func TestOneName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{ // Name and Canonical
		"registry.example.com/team/app":       "registry.example.com/team/app registry.example.com/team/app",
		"REGISTRY.Example.com/team/app":       "registry.example.com/team/app registry.example.com/team/app",
		"registry.example.com:443/team/app":   "registry.example.com:443/team/app registry.example.com/team/app",
		"registry.example.com:00443/team/app": "registry.example.com:443/team/app registry.example.com/team/app",
		"registry.example.com:80/team/app":    "registry.example.com:80/team/app registry.example.com/team/app",
		"LOCALHOST:5000/app":                  "localhost:5000/app localhost:5000/app",
		"[::1]:5000/app":                      "[::1]:5000/app [::1]:5000/app",
		"[0:0:0:0:0:0:0:1]:5000/app":          "[::1]:5000/app [::1]:5000/app",
		"[::1]/app":                           "[::1]/app [::1]/app",
		"XN--BCHER-KVA.example.com/app":       "xn--bcher-kva.example.com/app xn--bcher-kva.example.com/app",
		"Docker.IO/library/alpine":            "docker.io/library/alpine docker.io/library/alpine",
		"index.docker.io/alpine":              "index.docker.io/alpine docker.io/library/alpine",
		"registry-1.docker.io/team/app":       "registry-1.docker.io/team/app docker.io/team/app",
		"Build-Host/app":                      "build-host/app build-host/app",
		"docker.io:5000/alpine":               "docker.io:5000/alpine docker.io:5000/alpine",
	} {
		registry, err := Name(name)
		canonical, err2 := Canonical(name)
		if err != nil || err2 != nil || registry+" "+canonical != want {
			t.Errorf("%s is %s %s, want %s: %v %v", name, registry, canonical, want, err, err2)
		}
		for _, again := range []string{registry, canonical} {
			if same, err := Canonical(again); err != nil || same != canonical {
				t.Errorf("%s is %s, and that is %s: %v", name, canonical, same, err)
			}
		}
	}
	for _, name := range []string{
		"registry.example.com./app", "bücher.example.com/app", "127.1:5000/app", "2130706433/app", "0x7f000001/app",
		"127.0.0.0x1/app", "127.0.0.01/app", "0177.0.0.1/app",
		"registry.example.com:0/app", "registry.example.com:70000/app", "registry.example.com:/app", "app", "", "/app",
		"registry.example.com/", "[fe80::1%eth0]/app", "a..b/app",
	} {
		if got, err := Canonical(name); err == nil {
			t.Errorf("%q is %q", name, got)
		}
	}
}

// BenchmarkCanonical measures the normal form of a name, which every image and every scope of a policy needs.
func BenchmarkCanonical(b *testing.B) {
	for _, name := range []string{"registry.example.com/team/app", "REGISTRY.example.com:443/team/app",
		"index.docker.io/alpine", "[0:0:0:0:0:0:0:1]:5000/app"} {
		b.Run(strings.ReplaceAll(name, "/", "_"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Canonical(name); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// cost is what normalising a name may allocate.
var cost = boundtest.Budget{Bytes: 64 << 10, BytesPerByte: 128}

// FuzzCanonical verifies that the normal form of a normal form is the same, and does not depend on the case of the
// registry.
func FuzzCanonical(f *testing.F) {
	for _, seed := range []string{"REGISTRY.example.com:443/a", "[::1]:80/a", "docker.io/a", "127.0.0.1/a", "a:b:c/d",
		"[/a", "]:1/a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		var canonical string
		var err error
		cost.Check(t, len(name), func() { canonical, err = Canonical(name) })
		if err != nil {
			return
		}
		if again, err := Canonical(canonical); err != nil || again != canonical {
			t.Errorf("%q is %q, and that is %q: %v", name, canonical, again, err)
		}
		registry, path, _ := strings.Cut(name, "/")
		if upper, err := Canonical(strings.ToUpper(registry) + "/" + path); err != nil || upper != canonical {
			t.Errorf("%q is %q, and in capitals %q: %v", name, canonical, upper, err)
		}
	})
}
