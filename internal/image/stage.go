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

// A scratch folder is for this user alone and gone afterwards. All that the copy library writes on this machine goes
// there: its temporary files, and a copy that is not known to be good yet. ocicrypt authenticates a layer at its end,
// so up to then what was decrypted may be anything, and if the copy fails none of it may stay.
type scratch struct {
	dir  string
	keep func() bool // ends what remove has begun; false when it is too late for that
}

// newScratch makes a scratch folder in a folder; "" is the system's place for large temporary files.
func newScratch(in string) (*scratch, error) {
	if in == "" {
		if in = os.Getenv("TMPDIR"); in == "" {
			in = "/var/tmp" // as the copy library does: /tmp may be in memory
		}
	}
	dir, err := os.MkdirTemp(in, ".hsm-image-")
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't make a temporary folder: %w", err).
			WithHint("the folder has to be there, and to be writable")
	}
	return &scratch{dir: dir}, nil
}

// remove returns a function that removes the folder. When ctx ends first the folder goes at once, for the process may
// not live until a write that hangs comes back.
func (s *scratch) remove(ctx context.Context) func() {
	gone := func() {
		for range 10 { // while something is still written there, new files may appear
			if os.RemoveAll(s.dir) == nil {
				return
			}
		}
	}
	s.keep = context.AfterFunc(ctx, gone)
	return func() { s.keep(); gone() }
}

// use has the copy library write into the folder. What it remembers of other copies is not used.
func (s *scratch) use(sys *types.SystemContext) *types.SystemContext {
	sys.BigFilesTemporaryDir, sys.BlobInfoCacheDir = s.dir, s.dir
	return sys
}

// A target is where a copy goes: for a registry the place itself, whose tag is written last; on this machine a place in
// the scratch folder, from which commit moves it.
type target struct {
	*scratch
	staged Reference
	commit func() error
}

// newTarget prepares a destination. It writes nothing outside the scratch folder.
func newTarget(ref Reference) (*target, error) {
	path, name, local := ref.local()
	if !local {
		s, err := newScratch("")
		return &target{s, ref, func() error { return nil }}, err
	}
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved
	}
	path, err := filepath.Abs(path) // of the folder "." as well there is one beside which to work
	if err != nil {
		return nil, err
	}
	there, err := check(ref, path)
	if err != nil {
		return nil, err
	}
	folder := filepath.Dir(path)
	if there && ref.transport() == layout.Transport.Name() {
		folder = path // blobs are moved into it one by one, so they have to be on its file system
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
		case there && ref.transport() == layout.Transport.Name():
			err = merge(stage, path, name)
		case there && ref.transport() == directory.Transport.Name():
			err = exchange(stage, path, filepath.Join(s.dir, "old"))
		default:
			_ = unix.Rmdir(path) // an empty folder, which os.Rename does not replace
			err = os.Rename(stage, path)
		}
		if err != nil {
			return failure.New(failure.Internal, "can't write %s: %w", ref, err).
				WithHint("check the permissions of " + folder + " and that the disk is not full")
		}
		return nil
	}
	return t, nil
}

// check refuses to write over what is no image; the copy library would as well, but it only sees the scratch folder.
func check(ref Reference, path string) (there bool, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, failure.New(failure.Invalid, "can't write %s: %w", ref, err).
			WithHint("check the path and its permissions")
	}
	refuse := func(why string) (bool, error) {
		return false, failure.New(failure.Invalid, "can't write %s: %s", ref, why).WithHint("give a path where nothing is")
	}
	mark := map[string]string{directory.Transport.Name(): "version",
		layout.Transport.Name(): ocispec.ImageIndexFile}[ref.transport()]
	switch {
	case mark != "" && !info.IsDir():
		return refuse("it is no folder")
	case mark != "":
		entries, err := os.ReadDir(path)
		if err != nil {
			return refuse(err.Error())
		}
		if _, err := os.Stat(filepath.Join(path, mark)); err != nil && len(entries) > 0 {
			return refuse("the folder holds something else than an image")
		}
		return len(entries) > 0, nil // an empty folder is replaced as if it were not there
	case !info.Mode().IsRegular():
		return refuse("it is no file")
	case info.Size() > 0:
		return refuse("the file is there already, and an archive can't be added to")
	}
	return true, nil
}

// exchange puts stage in the place of path.
func exchange(stage, path, old string) error {
	if err := os.Rename(path, old); err != nil {
		return err
	}
	if err := os.Rename(stage, path); err != nil {
		_ = os.Rename(old, path)
		return err
	}
	return nil
}

// merge moves the one image of the layout stage into another layout, which gets its entry last. On failure it takes its
// blobs away again.
func merge(stage, path, name string) (err error) {
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
			continue // content by its digest
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

// setEntry puts a descriptor into the index.json of a layout, in the place of that with the same name; an entry without
// a name takes the place of that with the digest old. All else in the file stays as it is.
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
