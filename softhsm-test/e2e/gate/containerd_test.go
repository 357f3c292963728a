package gate

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/containerd"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestContainerd shows that a plain image is pulled and unpacked both ways, and that a verifier is asked.
func TestContainerd(t *testing.T) {
	softhsmtest.Parallel(t)
	registry := oci.StartRegistry(t)
	for name, pull := range map[string]func(*containerd.Daemon, string) error{
		"transfer": func(c *containerd.Daemon, reference string) error { return c.Pull(t, reference) },
		"CRI":      func(c *containerd.Daemon, reference string) error { return c.PullCRI(t, reference) },
	} {
		t.Run(name, func(t *testing.T) {
			reference := registry + "/app:" + name
			if _, err := oci.PushImage(context.Background(), reference, "hello "+name); err != nil {
				t.Fatal(err)
			}
			verifiers := t.TempDir()
			deny := filepath.Join(verifiers, "deny")
			if err := os.WriteFile(deny, []byte("#!/bin/sh\necho not today\nexit 1\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			c := containerd.Start(t, containerd.Options{Verifiers: verifiers})
			if err := pull(c, reference); err == nil || len(c.Images(t)) != 0 || len(c.Snapshots(t)) != 0 {
				t.Fatalf("pulled against the verifier's word: %v, images %q, snapshots %q", err, c.Images(t), c.Snapshots(t))
			}
			if err := os.Remove(deny); err != nil {
				t.Fatal(err)
			}
			if err := pull(c, reference); err != nil {
				t.Fatalf("%v\n%s", err, c.Log())
			}
			snapshots := c.Folders(t)
			if len(snapshots) != 1 || len(c.Snapshots(t)) != 1 || len(c.Images(t)) == 0 || len(c.Content(t)) != 3 {
				t.Fatalf("images %q, content %q, snapshots %q", c.Images(t), c.Content(t), snapshots)
			}
			if text, err := os.ReadFile(filepath.Join(snapshots[0], "hello.txt")); err != nil || string(text) != "hello "+
				name {
				t.Errorf("unpacked %q, %v", text, err)
			}
		})
	}
}
