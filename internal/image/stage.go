package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// A scratch folder is readable for this user alone and is removed after the copy. The copy library writes there alone:
// its temporary files, and a copy on this machine. ocicrypt authenticates a layer at its end, so what it has decrypted
// before may be wrong, and is removed if the copy fails.
type scratch struct {
	dir  string
	keep func() bool // stops the removal when a context ends; false when it has begun
}

// newScratch makes a scratch folder in a folder. "" is the system's folder for large temporary files.
func newScratch(in string) (*scratch, error) {
	if in == "" {
		if in = os.Getenv("TMPDIR"); in == "" {
			in = "/var/tmp" // as the copy library does: /tmp may be in memory
		}
	}
	dir, err := os.MkdirTemp(in, ".hsm-image-")
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot make a temporary folder: %w", err).
			WithHint("check that " + in + " exists, and that this user can write to it")
	}
	return &scratch{dir: dir}, nil
}

// remove returns a function that removes the folder. When ctx ends first, the folder is removed at once: the process
// may end before a write that hangs.
func (s *scratch) remove(ctx context.Context) func() {
	removeAll := func() {
		for range 10 { // writes that go on may make new files
			if os.RemoveAll(s.dir) == nil {
				return
			}
		}
	}
	s.keep = context.AfterFunc(ctx, removeAll)
	return func() { s.keep(); removeAll() }
}

// use sets the copy library to write into the folder, without its cache of other copies.
func (s *scratch) use(sys *types.SystemContext) *types.SystemContext {
	sys.BigFilesTemporaryDir, sys.BlobInfoCacheDir = s.dir, s.dir
	return sys
}

// A target is the destination of a copy. For a registry, staged is the destination itself, whose tag is written last.
// On this machine, staged is in the scratch folder, and commit moves it to the destination.
type target struct {
	*scratch
	staged Reference
	commit func() error
}

// newTarget prepares a destination. It fails with Conflict for one that holds something else than an image. It writes
// nothing outside the scratch folder.
func newTarget(ref Reference) (*target, error) {
	path, name, local := ref.local()
	if !local {
		s, err := newScratch("")
		return &target{s, ref, func() error { return nil }}, err
	}
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved
	}
	path, err := filepath.Abs(path) // "." too has a parent folder then
	if err != nil {
		return nil, err
	}
	exists, err := checkTarget(ref, path)
	if err != nil {
		return nil, err
	}
	folder := filepath.Dir(path)
	if exists && ref.transport() == layout.Transport.Name() {
		folder = path // its blobs are renamed into it, which takes the same file system
	}
	s, err := newScratch(folder)
	if err != nil {
		return nil, err
	}
	t := &target{scratch: s}
	stage := filepath.Join(s.dir, "image")
	if t.staged, err = ref.at(stage); err != nil {
		_ = os.RemoveAll(s.dir)
		return nil, err
	}
	t.commit = func() (err error) {
		switch {
		case exists && ref.transport() == layout.Transport.Name():
			err = mergeLayout(stage, path, name)
		case exists && ref.transport() == directory.Transport.Name():
			err = replaceFolder(stage, path, filepath.Join(s.dir, "old"))
		default:
			_ = unix.Rmdir(path) // os.Rename does not replace an empty folder
			err = os.Rename(stage, path)
		}
		if err != nil {
			return failure.New(failure.Unavailable, "cannot write %s: %w", ref, err).
				WithHint("check the permissions of " + folder + ", and that the disk is not full")
		}
		return nil
	}
	return t, nil
}

// checkTarget fails with Conflict when a destination on this machine holds something else than an image, since the copy
// library checks the staged copy's place alone. exists is false for a path without anything, and for an empty folder.
func checkTarget(ref Reference, path string) (exists bool, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, failure.New(failure.Invalid, "cannot write %s: %w", ref, err).
			WithHint("check the path and its permissions")
	}
	refuse := func(why string) (bool, error) {
		return false, failure.New(failure.Conflict, "cannot write %s: %s", ref, why).
			WithHint("give a path that does not exist")
	}
	mark := map[string]string{directory.Transport.Name(): "version",
		layout.Transport.Name(): ocispec.ImageIndexFile}[ref.transport()]
	switch {
	case mark != "" && !info.IsDir():
		return refuse("it is not a folder")
	case mark != "":
		entries, err := os.ReadDir(path)
		if err != nil {
			return refuse(err.Error())
		}
		if _, err := os.Stat(filepath.Join(path, mark)); err != nil && len(entries) > 0 {
			return refuse("the folder holds something else than an image")
		}
		return len(entries) > 0, nil
	case !info.Mode().IsRegular():
		return refuse("it is not a file")
	case info.Size() > 0:
		return refuse("the file exists, and nothing can be added to an archive")
	}
	return true, nil
}

// replaceFolder renames path to old, and stage to path. When that fails, path is what it was before.
func replaceFolder(stage, path, old string) error {
	if err := os.Rename(path, old); err != nil {
		return err
	}
	if err := os.Rename(stage, path); err != nil {
		_ = os.Rename(old, path)
		return err
	}
	return nil
}

// mergeLayout moves the one image of the layout stage into the layout path: first its blobs, then its entry in the
// index. When that fails, it removes the blobs that it moved.
func mergeLayout(stage, path, name string) (err error) {
	var moved []string
	defer func() {
		if err != nil {
			for _, blob := range moved {
				_ = os.Remove(blob)
			}
		}
	}()
	blobs, err := filepath.Glob(filepath.Join(stage, ocispec.ImageBlobsDir, "*", "*"))
	if err != nil {
		return err
	}
	for _, blob := range blobs {
		relative, err := filepath.Rel(stage, blob)
		if err != nil {
			return err
		}
		to := filepath.Join(path, relative)
		if _, err := os.Stat(to); err == nil {
			continue // its digest is its name, so it is the same blob
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { //nolint:gosec // as the other blobs are
			return err
		}
		if err := os.Rename(blob, to); err != nil {
			return err
		}
		moved = append(moved, to)
	}
	data, err := os.ReadFile(filepath.Join(stage, ocispec.ImageIndexFile))
	if err != nil {
		return err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return err
	}
	for _, entry := range index.Manifests {
		if err := setEntry(path, name, "", entry); err != nil {
			return err
		}
	}
	return nil
}

// setEntry adds a descriptor to the index.json of a layout. It replaces the entry with the same name; an entry without
// a name replaces the one with the digest old. All else in the file stays as it is.
func setEntry(path, name string, old digest.Digest, entry ocispec.Descriptor) error {
	file := filepath.Join(path, ocispec.ImageIndexFile)
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	index := map[string]json.RawMessage{}
	var entries, kept []json.RawMessage
	if err := json.Unmarshal(data, &index); err != nil {
		return err
	}
	if raw := index["manifests"]; raw != nil {
		if err := json.Unmarshal(raw, &entries); err != nil {
			return err
		}
	}
	for _, raw := range entries {
		var e ocispec.Descriptor
		if err := json.Unmarshal(raw, &e); err != nil {
			return err
		}
		replaced := e.Annotations[ocispec.AnnotationRefName] == name
		if name == "" {
			replaced = replaced && e.Digest == entry.Digest || e.Digest == old
		}
		if !replaced {
			kept = append(kept, raw)
		}
	}
	added, err := json.Marshal(entry)
	if err != nil {
		return err
	}
	if index["manifests"], err = json.Marshal(append(kept, added)); err != nil {
		return err
	}
	if data, err = json.Marshal(index); err != nil {
		return err
	}
	return state.Write(file, append(bytes.TrimSpace(data), '\n'), 0o644)
}
