// Package ownership tells who can change a file: whoever owns it or may write to it, or to any folder on the way to it.
//
// A file that decides what runs, or that holds a PIN, is only as safe as the folders above it: who can write to one of
// them can put another file in its place.
package ownership

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// maxLinks is how many symbolic links a path may lead through, as in Linux's path_resolution(7).
const maxLinks = 40

// Check verifies that only root and the users with the given ids can change what a path leads to: the file or folder
// itself, each folder above it and each symbolic link on the way are owned by one of them, and nobody else may write to
// any. A folder with the sticky bit, such as /tmp, may be writable by all, since what it holds can be replaced by its
// owner alone; it may not be what the path leads to. The path is absolute and exists.
//
// The error is of kind Denied and names what others can change and how; it is of kind Invalid when the path cannot be
// followed.
func Check(path string, owners ...int) error {
	if !filepath.IsAbs(path) {
		return failure.New(failure.Invalid, "%q is not a full path", path).WithHint("name it by its full path")
	}
	trusted := append([]int{0}, owners...)
	links := 0
	rest := parts(path)
	at := "/"
	for {
		info, err := os.Lstat(at)
		if err != nil {
			return failure.New(failure.Invalid, "cannot access %s: %w", path, err).WithHint("check the path and its permissions")
		}
		if err := check(at, info, len(rest) == 0, trusted); err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			if links++; links > maxLinks {
				return failure.New(failure.Invalid, "cannot access %s: %w", path, syscall.ELOOP).WithHint("name the file itself")
			}
			target, err := os.Readlink(at)
			if err != nil {
				return failure.New(failure.Invalid, "cannot access %s: %w", path, err).
					WithHint("check the path and its permissions")
			}
			rest = append(parts(target), rest...)
			if at = filepath.Dir(at); filepath.IsAbs(target) {
				at = "/"
			}
		}
		if len(rest) == 0 && info.Mode()&fs.ModeSymlink == 0 {
			return nil
		}
		if len(rest) > 0 {
			at, rest = filepath.Join(at, rest[0]), rest[1:] // links on the way are resolved, so .. leads to the real parent
		}
	}
}

// CheckTree verifies with Check a file or folder and all that is below it, also where a symbolic link leads to another
// folder. A file that is removed meanwhile, as by a command that replaces it, is left out.
func CheckTree(path string, owners ...int) error {
	return checkTree(path, owners, map[string]bool{})
}

// checkTree leaves out the folders that were seen, to which a link may lead again.
func checkTree(path string, owners []int, seen map[string]bool) error {
	if err := Check(path, owners...); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return failure.New(failure.Invalid, "cannot access %s: %w", path, err).WithHint("check the path and its permissions")
	}
	trusted := append([]int{0}, owners...)
	return filepath.WalkDir(target, func(below string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return failure.New(failure.Invalid, "cannot access %s: %w", below, err).
				WithHint("check the path and its permissions")
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			return checkTree(below, owners, seen)
		}
		if entry.IsDir() {
			if seen[below] {
				return fs.SkipDir
			}
			seen[below] = true
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return failure.New(failure.Invalid, "cannot access %s: %w", below, err).
				WithHint("check the path and its permissions")
		}
		return check(below, info, true, trusted)
	})
}

func check(path string, info fs.FileInfo, last bool, trusted []int) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("the system does not tell who owns a file")
	}
	if owner := int(stat.Uid); !slices.Contains(trusted, owner) {
		return failure.New(failure.Denied, "user %d owns %s and can change it", owner, path).
			WithHint(fmt.Sprintf("give it to its user: chown %s %s", names(trusted), path))
	}
	if info.Mode()&fs.ModeSymlink != 0 { // its mode means nothing
		return nil
	}
	sticky := info.IsDir() && info.Mode()&fs.ModeSticky != 0 && !last
	if mode := info.Mode().Perm(); mode&0o022 != 0 && !sticky {
		return failure.New(failure.Denied, "users other than its owner can write to %s (mode %04o)",
			path, mode).
			WithHint("run: chmod go-w " + path)
	}
	return nil
}

// names lists the users who may own a file, the most likely one first.
func names(trusted []int) string {
	return fmt.Sprint(trusted[len(trusted)-1])
}

func parts(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(part string) bool { return part == "" || part == "." })
}
