package gate

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// verifierName is what containerd calls the gate in its messages.
const verifierName = "hsm-image-verifier"

// Install writes the program that containerd starts into its folder of image verifiers and returns its path. It is a shell script of
// a few lines with all settings in it: containerd runs each file in that folder, so there may be no second one, and it hands on no
// settings. An operator can read what it does, and program is updated without touching it.
func (n Node) Install(binDir, program string) (string, error) {
	for _, path := range []*string{&binDir, &program, &n.TrustDir, &n.StateDir, &n.HostsDir, &n.AuthFile} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return "", failure.New(failure.Internal, "name it by its whole path", "can't tell where %s is: %w", *path, err)
		}
		*path = absolute
	}
	for _, path := range []string{n.HostsDir, n.AuthFile} {
		if _, err := os.Stat(path); path != "" && err != nil {
			return "", failure.New(failure.Invalid, "check the path", "can't use what was named: %w", err)
		}
	}
	for path, mode := range map[string]os.FileMode{binDir: 0o755, n.StateDir: 0o700} {
		if err := os.MkdirAll(path, mode); err != nil {
			return "", failure.New(failure.Internal, "run it as root", "can't make the folder %s: %w", path, err)
		}
	}
	check := n.Options // what can't work is told now, not at the first pull
	check.CacheDir = filepath.Join(n.StateDir, "cache")
	g, err := Open(check)
	if err != nil {
		return "", err
	}
	g.Close()
	// The temporary file is beside the folder, not in it: containerd would run it.
	path := filepath.Join(binDir, verifierName)
	if err := renameio.WriteFile(path, n.script(program), 0o755, renameio.WithTempDir(filepath.Dir(binDir)), renameio.IgnoreUmask()); err != nil {
		return "", failure.New(failure.Internal, "run it as root; the folder has to be on the file system of the one above it", "can't write %s: %w", path, err)
	}
	return path, nil
}

func (n Node) script(program string) []byte {
	arguments := []string{"--trust-dir=" + n.TrustDir, "--state-dir=" + n.StateDir, "--timeout=" + n.Timeout.String()}
	if n.HostsDir != "" {
		arguments = append(arguments, "--hosts-dir="+n.HostsDir)
	}
	if n.AuthFile != "" {
		arguments = append(arguments, "--auth-file="+n.AuthFile)
	}
	for i, a := range arguments {
		arguments[i] = quote(a)
	}
	return fmt.Appendf(nil, `#!/bin/sh
# Written by 'hsm-image install-verifier'. containerd runs this before it pulls an image, and pulls only if it ends with 0.
program=%s
[ -x "$program" ] || { echo "$program is gone: no image can be verified"; exit 1; }
exec "$program" containerd-verifier %s -- "$@"
`, quote(program), strings.Join(arguments, " "))
}

func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// Snippet is what containerd's configuration needs to ask the verifiers in a folder, for longer than this one takes.
func (n Node) Snippet(binDir string) string {
	return fmt.Sprintf(`[plugins.'io.containerd.image-verifier.v1.bindir']
  bin_dir = %q
  max_verifiers = 10
  per_verifier_timeout = %q
`, binDir, (n.Timeout + 2*time.Second).String())
}
