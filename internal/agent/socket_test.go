package agent

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// shortDir returns a folder of this user alone, with a path that is short enough for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// listen listens to a path.
func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	s, err := Reserve(path)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// TestFolder creates a folder of this user alone, and takes no other.
func TestFolder(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	listen(t, filepath.Join(dir, "new", "socket"))
	if info, err := os.Stat(filepath.Join(dir, "new")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder is %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Join(dir, "new", "socket")); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	for name, c := range map[string]struct {
		make func(string) error
		want failure.Kind
	}{
		"link":     {func(path string) error { return os.Symlink(filepath.Join(dir, "new"), path) }, failure.Denied},
		"dangling": {func(path string) error { return os.Symlink(filepath.Join(dir, "none"), path) }, failure.Denied},
		"file":     {func(path string) error { return os.WriteFile(path, nil, 0o600) }, failure.Denied},
		"group":    {func(path string) error { return folder(path, 0o770) }, failure.Denied},
		"sticky":   {func(path string) error { return folder(path, 0o777|os.ModeSticky) }, failure.Denied},
		"readable": {func(path string) error { return folder(path, 0o750) }, failure.Denied},
		"others'": {func(path string) error {
			if err := folder(path, 0o700); err != nil || os.Geteuid() != 0 {
				return err
			}
			return os.Chown(path, 65534, 65534)
		}, failure.Denied},
		"a/b": {func(string) error { return nil }, failure.NotFound},
	} {
		path := filepath.Join(dir, name)
		if err := c.make(path); err != nil {
			t.Fatal(err)
		}
		_, err := Reserve(filepath.Join(path, "socket"))
		if name == "others'" && os.Geteuid() != 0 {
			continue // it is this user's
		}
		hint := failure.From(err).Hint
		if !failure.Is(err, c.want) || hint == "" {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(hint, "chmod") || strings.Contains(hint, "chown") { // others may need the folder, such as /tmp
			t.Errorf("%s: %s", name, hint)
		}
		if left, _ := filepath.Glob(filepath.Join(path, "*")); name != "link" && len(left) > 0 {
			t.Errorf("%s: it has %v", name, left)
		}
	}
	shared := filepath.Join(dir, "shared")
	if err := folder(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Reserve(filepath.Join(shared, "new", "socket")); !failure.Is(err, failure.Denied) {
		t.Errorf("below a folder that others can change: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(shared, "new")); !os.IsNotExist(err) {
		t.Errorf("a folder that is not used stays: %v", err)
	}
}

func folder(path string, mode os.FileMode) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// TestPath replaces the socket of an agent that has ended, and nothing else.
func TestPath(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path("stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	listen(t, path("stale"))
	if conn, err := net.Dial("unix", path("stale")); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	listen(t, path("agent"))
	if other, err := net.Listen("unix", path("other")); err != nil {
		t.Fatal(err)
	} else {
		defer other.Close()
	}
	for name, made := range map[string]func(string) error{
		"file":  func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) },
		"dir":   func(p string) error { return os.Mkdir(p, 0o700) },
		"pipe":  func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"link":  func(p string) error { return os.Symlink(path("stale"), p) },
		"loose": func(p string) error { return os.Symlink(path("nowhere"), p) },
		"agent": func(string) error { return nil },
		"other": func(string) error { return nil },
	} {
		if err := made(path(name)); err != nil {
			t.Fatal(err)
		}
		before, err := os.Lstat(path(name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Reserve(path(name)); !failure.Is(err, failure.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
		if now, err := os.Lstat(path(name)); err != nil || !os.SameFile(before, now) {
			t.Errorf("%s was replaced: %v", name, err)
		}
	}
	if err := os.Symlink(path("target"), path("linked.lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := Reserve(path("linked")); err == nil {
		t.Error("a lock that is a link")
	}
	if _, err := os.Lstat(path("target")); err == nil {
		t.Error("the lock has created the target of a link")
	}
}

// TestLongPath takes as many bytes as the address of a socket has.
func TestLongPath(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	name := func(length int) string { return filepath.Join(dir, strings.Repeat("x", length-len(dir)-1)) }
	listen(t, name(107))
	if _, err := Reserve(name(108)); !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), "108 bytes") {
		t.Error(err)
	}
}

// TestRemoval removes the socket at the end, unless another has taken its place.
func TestRemoval(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "socket")
	for range 2 {
		listener := listen(t, path)
		listener.Close()
		listener.Close()
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket is still there")
		}
	}
	listener := listen(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	listener.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("a file that is not the agent's socket was removed: %v", err)
	}
}

// TestTwoAgents lets one of many listen.
func TestTwoAgents(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "new", "socket")
	const many = 20
	errs, kept := make(chan error, many), make(chan any, 2*many)
	for range many {
		go func() {
			s, err := Reserve(path)
			if err == nil {
				var l net.Listener
				l, err = s.Listen()
				kept <- l
			}
			kept <- s // or the garbage collector gives its lock to the next one
			errs <- err
		}()
	}
	won := 0
	for range many {
		if err := <-errs; err == nil {
			won++
		} else if !failure.Is(err, failure.Conflict) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d agents listen", won)
	}
	runtime.KeepAlive(kept)
}
