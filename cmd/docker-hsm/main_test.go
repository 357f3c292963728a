package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/dockercli"
)

// execute runs the plugin as docker does, and returns what it prints.
func execute(t *testing.T, args ...string) (stdout string, err error) {
	t.Helper()
	c := command(dockercli.Docker{})
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&bytes.Buffer{})
	c.SetArgs(args)
	err = c.ExecuteContext(t.Context())
	return out.String(), err
}

// TestMetadata describes the plugin in the fields that docker reads. Without one of the first two, docker ignores the
// plugin.
func TestMetadata(t *testing.T) {
	t.Parallel()
	out, err := execute(t, "docker-cli-plugin-metadata")
	var got struct{ SchemaVersion, Vendor, Version, ShortDescription string }
	if err != nil || json.Unmarshal([]byte(out), &got) != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got.SchemaVersion != "0.1.0" || got.Vendor == "" || got.Version != version || got.ShortDescription == "" {
		t.Errorf("%s", out)
	}
}

// TestExitCodes has codes of their own for a container that is not run, which scripts tell from the container's.
func TestExitCodes(t *testing.T) {
	trust := t.TempDir()
	for line, want := range map[string]int{
		"hsm run":                       125,
		"hsm run --help":                0,
		"hsm run --new example.com/app": 125,
		"hsm --trust-dir " + trust + " run example.com/a":  125,
		"hsm --trust-dir " + trust + " pull example.com/":  1,
		"hsm --trust-dir " + trust + " pull example.com/a": 4,
		"hsm --timeout 0s pull example.com/app":            2,
		"hsm pull":                                         2,
		"hsm pull --help":                                  0,
		"hsm inspect":                                      2,
		"hsm inspect oci:dir:v1":                           1,
		"hsm push":                                         2,
		"--help hsm run example.com/app":                   0,
		"--new hsm run example.com/app":                    1,
	} {
		if got := run(strings.Fields(line)); got != want {
			t.Errorf("%s: %d, want %d", line, got, want)
		}
	}
}
