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

// Limits of one decision on a node, beyond which the verifier is killed and the image not pulled.
const (
	memoryLimit = 512 << 20 // bytes of data, beyond what is taken before anything is read
	cpuMargin   = 2         // seconds of processor time beside the timeout
	outputLimit = 128 << 20 // bytes; the decision log is put away long before, and a cached revocation list is smaller
	filesLimit  = 256
)

// systemFiles are read by Go's library when it looks up names and verifies a registry's certificate, and by the library
// that looks up credentials.
var systemFiles = []string{
	"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services",
	"/etc/localtime", "/usr/share/zoneinfo",
	"/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/certs", "/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust", "/etc/ca-certificates",
	"/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/pki", "/var/lib/ca-certificates",
	"/etc/containers", "/usr/share/containers",
}

// systemPrograms hold what a program of the system needs to start and what it may start in turn.
var systemPrograms = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt"}

// DefaultUser is whom the verifier runs as if the system has such a user.
const DefaultUser = "hsm-image"

// user returns whom the verifier runs as: the user who was named, or else whoever starts it.
func (n Node) user() (sandbox.User, error) {
	if n.User == "" {
		return sandbox.User{ID: os.Geteuid(), Group: os.Getegid()}, nil
	}
	user, err := sandbox.LookUp(n.User)
	if err != nil {
		return user, failure.New(failure.Invalid, "cannot find the verifier's user: %w", err).
			WithHint("make it: useradd --system --shell /usr/sbin/nologin " + n.User)
	}
	if euid := os.Geteuid(); euid != 0 && euid != user.ID {
		return user, failure.New(failure.Denied, "user %d cannot become user %s", euid, n.User).WithHint("run it as root")
	}
	return user, nil
}

// Enter readies the process of an installed verifier, before it reads anything else: it looks whether others can change
// what decides, and confines the process. Of the two errors, fault is why no image may pass, and is to be written down
// with Refuse; err is that the process could not be confined, and nothing may be done in it.
func (n Node) Enter(program string) (fault, err error) {
	user, err := n.user()
	if err != nil {
		return nil, err
	}
	fault = n.CheckFiles(program, user.ID)
	return fault, n.confine(user)
}

// confine takes from the process all that a decision does not need, for good: it goes on as a user, with resource
// limits and, if the kernel has Landlock, with the files that the node's settings name and those of the system that
// they need. It starts no program unless the auth file names credential helpers, or the operator lists verification
// plugins. CheckFiles comes first.
func (n Node) confine(user sandbox.User) error {
	files := sandbox.Files{Read: append(n.reads(), systemFiles...), Write: []string{n.StateDir, os.DevNull}, Connect: true}
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if value := os.Getenv(name); value != "" {
			files.Read = append(files.Read, filepath.SplitList(value)...)
		}
	}
	if programs := n.programs(); len(programs) > 0 {
		files.Run = append(programs, systemPrograms...)
		files.Read = append(files.Read, "/etc")
	}
	// Nobody's home is looked into, and names are looked up without the system's plugins, which may want any file.
	for _, name := range []string{"XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "DOCKER_CONFIG",
		"REGISTRY_AUTH_FILE"} {
		if err := os.Unsetenv(name); err != nil {
			return err
		}
	}
	if err := os.Setenv("HOME", nowhere); err != nil {
		return err
	}
	net.DefaultResolver.PreferGo = true
	if sandbox.LandlockVersion() == 0 {
		slog.Warn("the kernel has no Landlock: the verifier can read what its user can")
	}

	limits := sandbox.Limits{Memory: memoryLimit, CPU: uint64(max(n.Timeout, 0)/time.Second) + cpuMargin, Output: outputLimit, Files: filesLimit} //nolint:gosec // not negative
	for _, step := range []func() error{limits.Set, files.Restrict, user.Become} {
		if err := step(); err != nil {
			return failure.New(failure.Internal, "cannot confine the verifier: %w", err).
				WithHint("run the verifier on the node itself, as containerd does")
		}
	}
	return nil
}

// reads lists the files and folders that the node's settings name, and those that they name in turn.
func (n Node) reads() []string {
	paths := append([]string{n.TrustDir}, hostFiles(n.HostsDir)...)
	for _, path := range []string{n.HostsDir, n.AuthFile} {
		if path != "" {
			paths = append(paths, path)
		}
	}
	return paths
}

// Check verifies that a confined process can use all that it has to: read the policy, the trust store, registry hosts
// and credentials, and write the log.
func (n Node) Check() error {
	for _, path := range n.reads() {
		if err := filepath.WalkDir(path, readable); err != nil {
			return failure.New(failure.Denied, "the verifier cannot read what it needs: %w", err).
				WithHint("let the verifier's user or one of its groups read it, and the folders above it: chgrp GROUP " +
					"PATH; chmod g+r PATH")
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
		return failure.New(failure.Denied, "the verifier cannot write its log: %w", err).
			WithHint("let the verifier's user pass the folders above it")
	}
	return log.Close()
}

func readable(path string, entry fs.DirEntry, err error) error {
	if err != nil || entry.IsDir() {
		return err
	}
	file, err := os.Open(path) //nolint:gosec // nobody else can change these folders, as CheckFiles has seen
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.IsDir() { // where a link leads to
		return err
	}
	_, err = io.Copy(io.Discard, file)
	return err
}
