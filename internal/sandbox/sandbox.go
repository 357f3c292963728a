// Package sandbox confines the process for good: to the files that it needs, to an unprivileged user, and to so much
// memory, processor time and output. What a registry or an image says is read only after that, so that a fault in
// reading it reaches no further.
package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Limits end a process that uses more; 0 is no limit. They hold for the programs that it starts as well, for each by
// itself.
type Limits struct {
	Memory uint64 // bytes of writable private memory beyond what it has already (RLIMIT_DATA), stacks of threads included
	CPU    uint64 // seconds of processor time (RLIMIT_CPU)
	Output uint64 // bytes, the size that it can make a file (RLIMIT_FSIZE)
	Files  uint64 // open at the same time (RLIMIT_NOFILE)
}

// processors are enough for what is confined. The memory that a program of Go takes grows with the processors that it
// may use, on each of which it keeps threads with stacks and caches of its own: on a large machine that would be more
// than what it reads.
const processors = 4

// Set sets the limits, and has Go use a few processors at most. They can't be raised again without privileges.
func (l Limits) Set() error {
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), processors))
	if l.Memory > 0 {
		now, err := data()
		if err != nil {
			return err
		}
		l.Memory += now
	}
	for resource, limit := range map[int]uint64{unix.RLIMIT_DATA: l.Memory, unix.RLIMIT_CPU: l.CPU,
		unix.RLIMIT_FSIZE: l.Output, unix.RLIMIT_NOFILE: l.Files} {
		var now unix.Rlimit
		if err := unix.Getrlimit(resource, &now); err != nil {
			return fmt.Errorf("cannot read resource limit %d: %w", resource, err)
		}
		if limit == 0 || limit > now.Max {
			continue // what whoever started it set is lower
		}
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("cannot set resource limit %d to %d: %w", resource, limit, err)
		}
	}
	return nil
}

// data returns how many bytes of writable private memory the process has, as RLIMIT_DATA counts them. How many the Go
// runtime takes at the start depends on the machine.
func data() (uint64, error) {
	var pages [6]uint64 // the sixth is data and stack
	text, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(text), &pages[0], &pages[1], &pages[2], &pages[3], &pages[4], &pages[5])
	}
	if err != nil {
		return 0, fmt.Errorf("cannot read how much memory the process has: %w", err)
	}
	return pages[5] * uint64(os.Getpagesize()), nil //nolint:gosec // a page has a positive size
}

// NoNewPrivileges has no program that the process starts gain privileges from its file: neither set-user-id nor file
// capabilities count.
func NoNewPrivileges() error {
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("cannot set no_new_privs: %w", errno)
	}
	return nil
}

// Files are all that the process can use of the file system. Paths that do not exist are left out. What is open already
// stays open.
type Files struct {
	Read    []string // files and folders, with all below them
	Write   []string // the same, to be written as well
	Run     []string // the same, whose programs can be started
	Connect bool     // whether it can reach other machines
}

const (
	readFile  = ll.AccessFSReadFile
	readDir   = readFile | ll.AccessFSReadDir
	writeFile = readFile | ll.AccessFSWriteFile | ll.AccessFSTruncate
	writeDir  = writeFile | readDir | ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir
)

// Restrict takes everything but these files from the process, with all its threads and the programs that it starts, as
// far as the kernel has Landlock; see ABI. No TCP port can be bound, and no process outside signalled. Landlock does
// not know Multipath TCP. It sets no_new_privs.
func (f Files) Restrict() error {
	if err := NoNewPrivileges(); err != nil {
		return err
	}
	config := landlock.Config{HandledAccessFS: landlock.V11.HandledAccessFS, HandledAccessNet: ll.AccessNetBindTCP, Scoped: landlock.V11.Scoped}
	if !f.Connect {
		config.HandledAccessNet = landlock.V11.HandledAccessNet
	}
	var rules []landlock.Rule
	for _, kind := range []struct {
		paths     []string
		file, dir landlock.AccessFSSet
	}{
		{f.Read, readFile, readDir},
		{f.Write, writeFile, writeDir},
		{f.Run, readFile | ll.AccessFSExecute, readDir | ll.AccessFSExecute},
	} {
		for _, path := range kind.paths {
			info, err := os.Stat(path)
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				return fmt.Errorf("cannot access %s: %w", path, err)
			case info.IsDir():
				rules = append(rules, landlock.PathAccess(kind.dir, path).IgnoreIfMissing())
			default:
				rules = append(rules, landlock.PathAccess(kind.file, path).IgnoreIfMissing())
			}
		}
	}
	if err := config.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("cannot restrict the process with Landlock: %w", err)
	}
	return nil
}

// ABI returns the version of Landlock that the kernel enforces, or 0 if it has none: 4 and newer restrict ports, 6 and
// newer signals and abstract sockets, 9 and newer sockets in the file system.
func ABI() int {
	version, err := ll.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return version
}
