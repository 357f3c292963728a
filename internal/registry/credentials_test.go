package registry

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCredentials verifies that credentials come from the auth file alone if there is one, that those of 'notation
// login' come first if not, and that a failure to get them is an error and not an anonymous request.
func TestCredentials(t *testing.T) {
	home := t.TempDir()
	for _, name := range []string{"XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE"} {
		t.Setenv(name, filepath.Join(home, "none"))
	}
	config := filepath.Join(home, "notation")
	t.Setenv("NOTATION_CONFIG", config)
	auths := func(registry, word string) string {
		return fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, registry, word)
	}
	const alice, bob = "YWxpY2U6c2VjcmV0", "Ym9iOnNlY3JldA==" // alice:secret and bob:secret
	put(t, filepath.Join(config, "config.json"), auths("registry.example.com", alice), 0o600)
	file, damaged := filepath.Join(home, "auth.json"), filepath.Join(home, "damaged.json")
	put(t, file, auths("registry.example.com/team", bob), 0o600)
	put(t, damaged, "{", 0o600)
	other := filepath.Join(home, "other.json")
	put(t, other, fmt.Sprintf(`{"auths": {"other.example.com": {"auth": %[1]q}, "docker.io": {"auth": %[1]q}}}`, bob),
		0o600)
	for _, c := range []struct {
		auth, other, host, path string // other is the file in REGISTRY_AUTH_FILE
		user, reason            string
	}{
		{file, "", "registry.example.com", "team/app", "bob", ""},
		{file, "", "registry.example.com", "other/app", "", ""},
		{file, "", "other.example.com", "team/app", "", ""},
		{filepath.Join(home, "none", "auth.json"), file, "registry.example.com", "team/app", "", ""},
		{"", file, "registry.example.com", "team/app", "alice", ""},
		{"", other, "other.example.com", "app", "bob", ""},
		{other, "", DockerHubHost, "library/alpine", "bob", ""},
		{damaged, "", "registry.example.com", "team/app", "", "cannot get the credentials of registry.example.com"},
	} {
		if c.other != "" {
			t.Setenv("REGISTRY_AUTH_FILE", c.other)
		}
		found, err := New(Options{AuthFile: c.auth}).credential(t.Context(), c.host, c.path)
		if found.Username != c.user || (err == nil) != (c.reason == "") || err != nil &&
			!strings.Contains(err.Error(), c.reason) {
			t.Errorf("%+v: %+v, %v", c, found.Username, err)
		}
	}
}

// TestHangingHelper verifies that a credential helper that does not answer ends with the context.
func TestHangingHelper(t *testing.T) {
	folder := t.TempDir()
	started := filepath.Join(folder, "started")
	put(t, filepath.Join(folder, "docker-credential-slow"), // it ends when the folder is removed
		fmt.Sprintf("#!/bin/sh\ntouch %[1]s\nwhile [ -e %[1]s ]; do sleep 0.1; done\n", started), 0o700)
	put(t, filepath.Join(folder, "auth.json"), `{"credHelpers": {"registry.example.com": "slow"}}`, 0o600)
	t.Setenv("PATH", folder+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(started); err == nil {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	registries := New(Options{AuthFile: filepath.Join(folder, "auth.json")})
	if _, err := registries.credential(ctx, "registry.example.com", "app"); err == nil ||
		!strings.Contains(err.Error(), "cannot get the credentials of registry.example.com: context canceled") {
		t.Error(err)
	}
}

// TestPanicInHelper verifies that a panic while credentials are looked up is an error.
func TestPanicInHelper(t *testing.T) {
	var none *Registries
	if _, err := none.credential(t.Context(), "registry.example.com", "app"); err == nil ||
		!strings.Contains(err.Error(), "internal error: ") {
		t.Error(err)
	}
}
