// Package containerd starts a containerd with folders of its own.
package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// Options are what differs between the containerds of tests.
type Options struct {
	Config    func(root string) string // makes a drop-in in TOML, as it would be in /etc/containerd/conf.d; nil for none
	Verifiers string                   // folder whose executables are asked before an image is pulled; "" for none
}

// Daemon is a containerd with its own folders, which unpacks with the native snapshotter and runs nothing.
// Registries on loopback addresses are spoken to over plain HTTP. Everything is in the namespace that a kubelet's
// images are in.
type Daemon struct {
	Root string // holds the content, the snapshots and the database

	Dir, socket, ctr, cri string
	service               *softhsmtest.Service
}

// containerdConfig is for a folder, as %[1]s. What is not here would be made outside of the folder, or is not used.
const containerdConfig = `version = 3
root = '%[1]s/root'
state = '%[1]s/state'
temp = '%[1]s/tmp'
imports = ['%[1]s/conf.d/*.toml']
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.snapshotter.v1.overlayfs',
  'io.containerd.snapshotter.v1.erofs', 'io.containerd.snapshotter.v1.blockfile', 'io.containerd.differ.v1.erofs']
[grpc]
address = '%[1]s/c.sock'
[plugins.'io.containerd.internal.v1.opt']
path = '%[1]s/opt'
[plugins.'io.containerd.transfer.v1.local']
config_path = '%[1]s/certs.d'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux'
snapshotter = 'native'
[plugins.'io.containerd.cri.v1.runtime'.cni]
conf_dir = '%[1]s/cni'
bin_dirs = ['%[1]s/cni']
[plugins.'io.containerd.image-verifier.v1.bindir']
bin_dir = '%[2]s'
[plugins.'io.containerd.cri.v1.images']
snapshotter = 'native'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '%[1]s/certs.d'
`

// Start starts a containerd that ends with the test. It mounts snapshots while it unpacks them, so it needs
// root.
func Start(t testing.TB, options Options) *Daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		softhsmtest.Missing(t, "root, as which containerd runs,")
	}
	program := softhsmtest.Build(t, "containerd")
	dir, err := os.MkdirTemp("/tmp", "ctd") // the paths of sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	c := &Daemon{Root: filepath.Join(dir, "root"), Dir: dir, socket: filepath.Join(dir, "c.sock"),
		ctr: softhsmtest.Build(t, "ctr"), cri: softhsmtest.Build(t, "cri")}
	t.Cleanup(func() {
		c.unmount(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	verifiers := options.Verifiers
	if verifiers == "" {
		verifiers = filepath.Join(dir, "none")
	}
	dropIn := ""
	if options.Config != nil {
		dropIn = options.Config(c.Root)
	}
	for path, text := range map[string]string{
		"config.toml":        fmt.Sprintf(containerdConfig, dir, verifiers),
		"conf.d/test.toml":   dropIn,
		"certs.d/README.txt": "No registry has settings of its own.\n",
		"tmp/README.txt":     "containerd mounts here what it unpacks.\n",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.service = softhsmtest.Start(t, program, "--config", filepath.Join(dir, "config.toml"))
	if !c.service.Ready(func() bool {
		_, _, err := softhsmtest.Try(t, "", c.cri, c.socket, "images")
		return err == nil
	}) {
		t.Fatalf("containerd did not start:\n%s", c.service.Stop())
	}
	return c
}

// unmount puts away what a containerd that was killed has left mounted.
func (c *Daemon) unmount(t testing.TB) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, c.Dir+"/") {
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
				t.Errorf("unmounting %s: %v", point, err)
			}
		}
	}
}

// Pull has containerd's transfer service pull and unpack an image, as ctr does. The error has all output.
func (c *Daemon) Pull(t testing.TB, reference string) error {
	t.Helper()
	return withOutput(softhsmtest.Try(t, "", c.ctr, "--address", c.socket, "--namespace", "k8s.io", "images", "pull",
		"--snapshotter", "native", reference))
}

// PullCRI has containerd pull and unpack an image as a kubelet does. The error has all output.
func (c *Daemon) PullCRI(t testing.TB, reference string) error {
	t.Helper()
	return withOutput(softhsmtest.Try(t, "", c.cri, c.socket, "pull", reference))
}

// withOutput adds the output of a program to its error.
func withOutput(stdout, stderr string, err error) error {
	if err != nil {
		return fmt.Errorf("%w: %s%s", err, stdout, stderr)
	}
	return nil
}

// Images returns the names of the images there are.
func (c *Daemon) Images(t testing.TB) []string { return c.list(t, "images", "list", "--quiet") }

// Content returns the digests of the blobs there are.
func (c *Daemon) Content(t testing.TB) []string { return c.list(t, "content", "list", "--quiet") }

// Snapshots returns the names of the snapshots there are, whether an image has them or not.
func (c *Daemon) Snapshots(t testing.TB) []string {
	t.Helper()
	var names []string
	for i, line := range slices.Collect(strings.Lines(
		softhsmtest.Run(t, c.ctr, "--address", c.socket, "--namespace", "k8s.io", "snapshots", "--snapshotter", "native",
			"list"))) {
		if i > 0 { // the header
			names = append(names, strings.Fields(line)[0])
		}
	}
	return names
}

// Folders returns where the files of snapshots are. containerd empties those of snapshots that are no more when it next
// collects garbage.
func (c *Daemon) Folders(t testing.TB) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(c.Root, "io.containerd.snapshotter.v1.native", "snapshots", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Log ends containerd, and returns all its output.
func (c *Daemon) Log() string { return c.service.Stop() }

func (c *Daemon) list(t testing.TB, args ...string) []string {
	t.Helper()
	return strings.Fields(softhsmtest.Run(t, c.ctr, append([]string{"--address", c.socket, "--namespace", "k8s.io"},
		args...)...))
}
