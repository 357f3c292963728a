// Package sandbox confines the current process: to the files that it needs (Landlock), to resource limits, and to an
// unprivileged user. hsm-image does so before it reads data from a registry or an image, so that an exploited parser
// gains little.
//
// Nothing here can be undone in the same process. Everything holds for all threads, and for the programs that the
// process starts.
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

	"github.com/notation-hsm/notation-hsm/internal/harden"
)

// Limits are resource limits; 0 leaves a limit as it is. Programs that the process starts have the same limits, each
// program its own.
type Limits struct {
	Memory uint64 // bytes of private writable memory beyond what the process has now, stacks included (RLIMIT_DATA)
	CPU    uint64 // seconds of processor time (RLIMIT_CPU)
	Output uint64 // bytes of one file (RLIMIT_FSIZE)
	Files  uint64 // open files (RLIMIT_NOFILE)
}

// maxProcessors bounds GOMAXPROCS. The Go runtime keeps stacks and caches for each processor, which on a large machine
// would take more memory than the data that is read.
const maxProcessors = 4

// Set sets the limits, soft and hard, and GOMAXPROCS to maxProcessors at most. A limit that is lower already stays.
func (l Limits) Set() error {
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), maxProcessors))
	if l.Memory > 0 {
		used, err := dataSize()
		if err != nil {
			return err
		}
		l.Memory += used
	}
	for resource, limit := range map[int]uint64{unix.RLIMIT_DATA: l.Memory, unix.RLIMIT_CPU: l.CPU,
		unix.RLIMIT_FSIZE: l.Output, unix.RLIMIT_NOFILE: l.Files} {
		var current unix.Rlimit
		if err := unix.Getrlimit(resource, &current); err != nil {
			return fmt.Errorf("cannot read resource limit %d: %w", resource, err)
		}
		if limit == 0 || limit > current.Max {
			continue
		}
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("cannot set resource limit %d to %d: %w", resource, limit, err)
		}
	}
	return nil
}

// dataSize returns the bytes of private writable memory that the process has, as RLIMIT_DATA counts them. How much the
// Go runtime takes at the start depends on the machine.
func dataSize() (uint64, error) {
	var pages [6]uint64 // the sixth is data and stack
	text, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(text), &pages[0], &pages[1], &pages[2], &pages[3], &pages[4], &pages[5])
	}
	if err != nil {
		return 0, fmt.Errorf("cannot read the memory size of the process: %w", err)
	}
	return pages[5] * uint64(os.Getpagesize()), nil //nolint:gosec // a page has a positive size
}

// Files lists what the process can use of the file system. A folder stands for everything below it; a path that does
// not exist is ignored. Files that are open already stay open.
type Files struct {
	Read    []string // can be read
	Write   []string // can be read, written, made and removed
	Run     []string // can be read and started as programs
	Connect bool     // TCP connections can be opened
}

const (
	readFile  = ll.AccessFSReadFile
	readDir   = readFile | ll.AccessFSReadDir
	writeFile = readFile | ll.AccessFSWriteFile | ll.AccessFSTruncate
	writeDir  = writeFile | readDir | ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSRemoveFile |
		ll.AccessFSRemoveDir
)

// Restrict denies the process all other files, binding TCP ports, and signals to processes outside of it, as far as the
// kernel's Landlock restricts these (LandlockVersion). It also sets no_new_privs, on kernels without Landlock too. It
// does not restrict Multipath TCP, which Landlock does not know.
func (f Files) Restrict() error {
	if err := harden.Privileges(); err != nil {
		return err
	}
	config := landlock.Config{HandledAccessFS: landlock.V11.HandledAccessFS, HandledAccessNet: ll.AccessNetBindTCP,
		Scoped: landlock.V11.Scoped}
	if !f.Connect {
		config.HandledAccessNet = landlock.V11.HandledAccessNet
	}
	rules, err := f.rules()
	if err != nil {
		return err
	}
	if err := config.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("cannot restrict the process with Landlock: %w", err)
	}
	return nil
}

// rules returns the Landlock rules that allow the files. It fails when a path that exists cannot be accessed.
func (f Files) rules() (rules []landlock.Rule, err error) {
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
				return nil, fmt.Errorf("cannot access %s: %w", path, err)
			case info.IsDir():
				rules = append(rules, landlock.PathAccess(kind.dir, path).IgnoreIfMissing())
			default:
				rules = append(rules, landlock.PathAccess(kind.file, path).IgnoreIfMissing())
			}
		}
	}
	return rules, nil
}

// LandlockVersion returns the version of Landlock that the kernel enforces, or 0 if it has none. Version 4 and newer
// restrict TCP ports, 6 and newer signals and abstract Unix sockets, 9 and newer Unix sockets in the file system.
func LandlockVersion() int {
	version, err := ll.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return version
}
