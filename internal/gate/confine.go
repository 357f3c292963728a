package gate

import (
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"
)

// Resource limits of a verifier. The kernel kills one that exceeds memory or processor time, and the image is not
// pulled.
const (
	memoryLimit = 512 << 20 // bytes of data, beyond what the process has at its start
	cpuMargin   = 2         // seconds of processor time in addition to the timeout
	outputLimit = 128 << 20 // bytes of a file; the decision log and cached revocation lists are smaller
	filesLimit  = 256       // open files
)

// systemFiles are read by Go's library to resolve names and to verify certificates of registries, and by the library
// that looks up credentials.
var systemFiles = []string{
	"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services",
	"/etc/localtime", "/usr/share/zoneinfo",
	"/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/certs", "/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust", "/etc/ca-certificates",
	"/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/pki", "/var/lib/ca-certificates",
	"/etc/containers", "/usr/share/containers",
}

// systemPrograms are the folders of the programs and libraries that a credential helper or a plugin may use.
var systemPrograms = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt"}

// DefaultUser is the user that the verifier runs as, if the system has this user.
const DefaultUser = "hsm-image"

// user returns the user that the verifier runs as. It fails when there is no such user, and when the process cannot
// become that user.
func (n Node) user() (sandbox.User, error) {
	if n.User == "" {
		return sandbox.User{ID: os.Geteuid(), Group: os.Getegid()}, nil
	}
	user, err := sandbox.LookUp(n.User)
	if err != nil {
		return user, failure.New(failure.NotFound, "cannot find the verifier's user: %w", err).
			WithHint("run: useradd --system --shell /usr/sbin/nologin " + n.User)
	}
	if euid := os.Geteuid(); euid != 0 && euid != user.ID {
		return user, failure.New(failure.Denied, "user %d cannot become user %s", euid, n.User).WithHint("run it as root")
	}
	return user, nil
}

// Confine prepares the process of a verifier before it reads a request: it checks the owners of the files that decide
// (CheckFiles), and then permanently gives up all access that a decision does not need. If it returns a fault, every
// image has to be refused with it (Refuse). If it returns err, the process is not confined and has to end.
func (n Node) Confine(program string) (fault, err error) {
	user, err := n.user()
	if err != nil {
		return nil, err
	}
	fault = n.CheckFiles(program, user.ID)
	return fault, n.restrict(user)
}

// restrict confines the process: to the user, to resource limits and, if the kernel has Landlock, to the files of the
// node's settings and of the system. It can start programs only if the auth file names credential helpers, or if
// verification plugins are listed.
func (n Node) restrict(user sandbox.User) error {
	files := sandbox.Files{Read: append(n.readPaths(), systemFiles...), Write: []string{n.StateDir, os.DevNull},
		Connect: true}
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if value := os.Getenv(name); value != "" {
			files.Read = append(files.Read, filepath.SplitList(value)...)
		}
	}
	if programs := n.programPaths(); len(programs) > 0 {
		files.Run = append(programs, systemPrograms...)
		files.Read = append(files.Read, "/etc")
	}
	// Libraries must not look into home directories, nor resolve names with the plugins of the C library, which may need
	// other files.
	for _, name := range []string{"XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "DOCKER_CONFIG",
		"REGISTRY_AUTH_FILE"} {
		if err := os.Unsetenv(name); err != nil {
			return err
		}
	}
	if err := os.Setenv("HOME", noFolder); err != nil {
		return err
	}
	net.DefaultResolver.PreferGo = true
	if sandbox.LandlockVersion() == 0 {
		slog.Warn("the kernel has no Landlock: the verifier can read what its user can")
	}
	seconds := uint64(max(n.Timeout, 0) / time.Second) //nolint:gosec // not negative
	limits := sandbox.Limits{Memory: memoryLimit, CPU: seconds + cpuMargin, Output: outputLimit, Files: filesLimit}
	for _, step := range []func() error{limits.Set, files.Restrict, user.Become} {
		if err := step(); err != nil {
			return failure.New(failure.Unsupported, "cannot confine the verifier: %w", err).
				WithHint("run the verifier on the node itself, as containerd does")
		}
	}
	return nil
}

// readPaths lists the files and folders of the node's settings, and the files that hosts.toml files name.
func (n Node) readPaths() []string {
	paths := append([]string{n.TrustDir}, hostFiles(n.HostsDir)...)
	for _, path := range []string{n.HostsDir, n.AuthFile} {
		if path != "" {
			paths = append(paths, path)
		}
	}
	return paths
}

// CheckAccess verifies that a confined process can read the policy, the trust stores, registry hosts and credentials,
// and can write the log.
func (n Node) CheckAccess() error {
	for _, path := range n.readPaths() {
		if err := filepath.WalkDir(path, checkReadable); err != nil {
			return failure.New(fileKind(err), "the verifier cannot read what it needs: %w", err).
				WithHint("let a group of the verifier's user read it: chgrp GROUP PATH; chmod g+r PATH")
		}
	}
	n.CacheDir = filepath.Join(n.StateDir, "cache")
	g, err := Open(n.Options)
	if err != nil {
		return err
	}
	g.Close()
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return failure.New(fileKind(err), "the verifier cannot write its log: %w", err).
			WithHint("let the verifier's user enter the folders above the log: chmod a+x FOLDER")
	}
	return log.Close()
}

// checkReadable reads a file of a tree (filepath.WalkDir), and fails if it cannot be read.
func checkReadable(path string, entry fs.DirEntry, err error) error {
	if err != nil || entry.IsDir() {
		return err
	}
	file, err := os.Open(path) //nolint:gosec // nobody else can change these folders: CheckFiles has verified that
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.IsDir() { // a link to a folder
		return err
	}
	_, err = io.Copy(io.Discard, file)
	return err
}
