// Package ownership checks who can change a file: the owners of the file and of every folder and symbolic link on the
// path to it, and everyone with write permission to one of these.
//
// A file that names programs, decides who is trusted or holds a PIN is only as safe as the folders above it: whoever
// can write to one of them can replace the file.
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

// maxLinks is the number of symbolic links that a path may contain, as in Linux's path_resolution(7).
const maxLinks = 40

// Check verifies that only root and the users with the ids in owners can change the file or folder at path: these users
// own it, each folder above it and each symbolic link on the path, and nobody else has write permission. A folder on
// the path may be writable by everyone if it has the sticky bit, as /tmp has, since only the owner of a file in such a
// folder can replace it; the last element of the path may not. path has to be absolute.
//
// An error of kind Denied names the file or folder that others can change. If path cannot be resolved, the error is of
// kind NotFound, Denied or Invalid, and wraps the cause.
func Check(path string, owners ...int) error {
	if !filepath.IsAbs(path) {
		return failure.New(failure.Invalid, "%q is not a full path", path).WithHint("name it by its full path")
	}
	trusted := append([]int{0}, owners...)
	links := 0
	rest := elements(path)
	at := "/"
	for {
		info, err := os.Lstat(at)
		if err != nil {
			return inaccessible(path, err)
		}
		if err := check(at, info, len(rest) == 0, trusted); err != nil {
			return err
		}
		isLink := info.Mode()&fs.ModeSymlink != 0
		if isLink {
			if links++; links > maxLinks {
				return inaccessible(path, syscall.ELOOP)
			}
			target, err := os.Readlink(at)
			if err != nil {
				return inaccessible(path, err)
			}
			rest = append(elements(target), rest...)
			if at = filepath.Dir(at); filepath.IsAbs(target) {
				at = "/"
			}
		}
		if len(rest) == 0 && !isLink {
			return nil
		}
		if len(rest) > 0 {
			at, rest = filepath.Join(at, rest[0]), rest[1:] // at contains no links, so .. is the real parent
		}
	}
}

// inaccessible returns the failure of a path that cannot be resolved.
func inaccessible(path string, cause error) error {
	kind := failure.Invalid
	switch {
	case errors.Is(cause, fs.ErrNotExist):
		kind = failure.NotFound
	case errors.Is(cause, fs.ErrPermission):
		kind = failure.Denied
	}
	return failure.New(kind, "cannot access %s: %w", path, cause).WithHint("check the path and its permissions")
}

// CheckTree checks a file or folder and everything below it as Check does, including the folders to which symbolic
// links lead. It ignores files that are removed meanwhile, such as temporary files of a command that replaces one.
func CheckTree(path string, owners ...int) error {
	return checkTree(path, owners, map[string]bool{})
}

// checkTree is CheckTree without the folders in seen, to which a link may lead again.
func checkTree(path string, owners []int, seen map[string]bool) error {
	if err := Check(path, owners...); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return inaccessible(path, err)
	}
	trusted := append([]int{0}, owners...)
	return filepath.WalkDir(target, func(below string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return inaccessible(below, err)
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
			return inaccessible(below, err)
		}
		return check(below, info, true, trusted)
	})
}

// check verifies the owner and the mode of one file, folder or link; last says that it is the last element of a path.
func check(path string, info fs.FileInfo, last bool, trusted []int) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return failure.New(failure.Unsupported, "cannot read the owner of %s", path)
	}
	if owner := int(stat.Uid); !slices.Contains(trusted, owner) {
		return failure.New(failure.Denied, "user %d owns %s and can change it", owner, path).
			WithHint(fmt.Sprintf("run: chown %d %s", trusted[len(trusted)-1], path))
	}
	if info.Mode()&fs.ModeSymlink != 0 { // the mode of a link has no effect
		return nil
	}
	sticky := info.IsDir() && info.Mode()&fs.ModeSticky != 0 && !last
	if mode := info.Mode().Perm(); mode&0o022 != 0 && !sticky {
		return failure.New(failure.Denied, "users other than its owner can write to %s (mode %04o)", path, mode).
			WithHint("run: chmod go-w " + path)
	}
	return nil
}

// elements splits a path into its elements.
func elements(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(part string) bool { return part == "" || part == "." })
}
