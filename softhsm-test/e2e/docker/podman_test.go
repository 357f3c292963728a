package docker

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// A podman has a storage of its own, in which it unpacks without an overlay.
type podman struct {
	options []string
}

func newPodman(t *testing.T) *podman {
	t.Helper()
	softhsmtest.NeedRoot(t) // since rootless podman needs ranges of user ids
	program := softhsmtest.Program(t, "podman")
	dir, err := os.MkdirTemp("/tmp", "pod") // the paths of sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	p := &podman{options: []string{program, "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"),
		"--tmpdir", filepath.Join(dir, "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend",
		"none"}}
	t.Cleanup(func() {
		p.try(t, "rm", "--all", "--force")
		os.RemoveAll(dir)
	})
	return p
}

// try runs podman, and returns what it prints and its exit code.
func (p *podman) try(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	args = slices.Concat(p.options[1:], args)
	stdout, stderr, err := softhsmtest.Try(t, "", p.options[0], args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return stdout, stderr, exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return stdout, stderr, 0
}

// TestPodmanPull has podman pull what hsm-image resolve prints, as a person does in a shell. For an image that is
// refused, podman is not run.
func TestPodmanPull(t *testing.T) {
	softhsmtest.Parallel(t)
	u, p := newUser(t), newPodman(t)
	pull := func(image string) error {
		script := `IMAGE="$("$1" resolve "$2")" && shift 2 && exec "$@" "$IMAGE"`
		_, stderr, err := softhsmtest.Try(t, "", "/bin/sh", slices.Concat([]string{"-c", script, "sh", u.image, image},
			p.options, []string{"pull", "--quiet", "--tls-verify=false"})...)
		if err != nil {
			err = errors.New(stderr)
		}
		return err
	}
	if err := pull(u.repository + ":unsigned"); err == nil || !strings.Contains(err.Error(), "no valid trust data") {
		t.Errorf("without a signature: %v", err)
	}
	if stdout, _, code := p.try(t, "images", "--quiet"); stdout != "" || code != 0 {
		t.Errorf("there is %s", stdout)
	}
	if err := pull(u.repository + ":signed"); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := p.try(t, "image", "inspect", "--format", "{{.Digest}}", u.repository+"@"+u.signed)
	if code != 0 || strings.TrimSpace(stdout) != u.signed {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}
}
