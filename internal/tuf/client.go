package tuf

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/scope"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Client resolves the tags of one repository.
type Client struct {
	Root []byte // root.json that is pinned
	Dir  string // folder that remembers the newest metadata that were seen; of this repository alone
	// Stale is how long remembered metadata count after the last update when the files cannot be read; 0 is not at all.
	Stale time.Duration
	// Expired accepts expired metadata, for those who renew it. Nobody may run an image by it.
	Expired bool
	// Now is the time that metadata must not have expired at; the zero time is the current one.
	Now time.Time
}

// Folder returns the folder of a client's memory of one repository, HOST/PATH, in a folder for all of them.
func Folder(parent, repository string) string {
	if name, err := scope.Canonical(repository); err == nil {
		repository = name
	}
	sum := sha256.Sum256([]byte(repository))
	return filepath.Join(parent, hex.EncodeToString(sum[:16]))
}

// Names of what a client remembers beside the metadata.
const (
	pinFile       = "pin"       // SHA-256 of the pinned root that root.json was reached from, in hex
	refreshedFile = "refreshed" // time of the last update, RFC 3339
)

// Update reads the newest metadata (TUF sections 5.3 to 5.6) and remembers them. It fails with Denied when they are
// expired, older than remembered, mixed, or not signed as they must be, and with the kind of the failure of files when
// they cannot be read and remembered ones do not count. files is nil when the registry cannot be reached.
func (c Client) Update(ctx context.Context, files Files) (*View, error) {
	unlock, err := state.Lock(ctx, c.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if files == nil {
		return c.stale(ctx, failure.New(failure.Unavailable, "cannot read the tag metadata: the registry cannot be reached"))
	}
	v, err := c.open(ctx, files)
	if err != nil {
		return nil, err
	}
	before := v.remembered()
	switch err := v.updater.Refresh(); {
	case err == nil:
	case v.fetch.failed != nil: // nothing is known of newer metadata
		return c.stale(ctx, v.fetch.failed)
	default:
		return nil, cmp.Or(c.damaged(), explain(err))
	}
	v.trusted = v.updater.GetTrustedMetadataSet()
	if err := v.check(); err != nil {
		return nil, err
	}
	return v, c.remember(before != v.remembered())
}

// damaged returns an error if a remembered file is not JSON, as after a fault of the disk. It counts nevertheless:
// without it, an older version would not be noticed.
func (c Client) damaged() error {
	for _, role := range []string{Root, Timestamp, Snapshot, Targets} {
		path := filepath.Join(c.Dir, role+".json")
		data, err := bound.ReadFile(path, maxTargets)
		if err == nil && !json.Valid(data) {
			return failure.New(failure.Invalid, "cannot read what is remembered of tags: %s is not JSON", path).
				WithHint("restore it from a backup; or remove the folder " + c.Dir + ", after which this machine takes " +
					"what the registry has now for the newest, as a new machine does")
		}
	}
	return nil
}

// open returns a view without metadata but the root: the newest remembered one that was reached from the pinned root,
// or the pinned one.
func (c Client) open(ctx context.Context, files Files) (*View, error) {
	if err := checkJSON("root.json", c.Root, maxRoot); err != nil {
		return nil, err
	}
	pin, err := bound.ReadFile(filepath.Join(c.Dir, pinFile), 100)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.New(failure.FileKind(err), "cannot read what is remembered of tags: %w", err).
			WithHint("check the permissions of " + c.Dir)
	}
	root, err := bound.ReadFile(filepath.Join(c.Dir, Root+".json"), maxRoot)
	switch {
	case string(pin) == c.pin() && err == nil && checkJSON("root.json", root, maxRoot) == nil:
		return c.newView(ctx, files, root)
	case string(pin) != c.pin() && !bytes.Equal(root, c.Root) && files != nil:
		if err := c.forget(); err != nil {
			return nil, err
		}
	}
	return c.newView(ctx, files, c.Root)
}

// forget removes what is remembered of another pinned root. A repository whose root was lost begins anew with version 1
// of all metadata, and often with the same keys for snapshot and timestamp.
func (c Client) forget() error {
	names, err := filepath.Glob(filepath.Join(c.Dir, "*.json"))
	for _, name := range append(names, filepath.Join(c.Dir, refreshedFile)) {
		if err == nil {
			err = os.Remove(name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return failure.New(failure.FileKind(err), "cannot remove what is remembered of another root: %w", err).
			WithHint("check the permissions of " + c.Dir)
	}
	return nil
}

func (c Client) newView(ctx context.Context, files Files, root []byte) (*View, error) {
	v := &View{files: files, dir: c.Dir, fetch: &fetcher{ctx: ctx, files: files}}
	settings, err := config.New("http://registry.invalid/", root) // no URL is opened: fetch takes the name alone
	if err != nil {
		return nil, err
	}
	settings.Fetcher, settings.LocalMetadataDir, settings.LocalTargetsDir = v.fetch, c.Dir, c.Dir
	settings.RootMaxLength, settings.TimestampMaxLength = maxRoot, maxTimestamp
	settings.SnapshotMaxLength, settings.TargetsMaxLength = maxSnapshot, maxTargets
	settings.MaxDelegations = 2*maxDelegations + 2
	settings.UnsafeLocalMode = files == nil
	if v.updater, err = updater.New(settings); err != nil {
		return nil, explain(err)
	}
	now := c.Now
	if now.IsZero() {
		now = time.Now()
	}
	if c.Expired {
		now = time.Unix(0, 0)
	}
	v.updater.UnsafeSetRefTime(now.UTC())
	return v, nil
}

// pin returns what pinFile holds for the pinned root.
func (c Client) pin() string {
	sum := sha256.Sum256(c.Root)
	return hex.EncodeToString(sum[:])
}

// remember notes the time of an update. Changed metadata, which go-tuf has written, are flushed to the disk: a power
// failure must not bring older ones back.
func (c Client) remember(changed bool) error {
	if changed {
		for _, role := range []string{Root, Snapshot, Targets, Timestamp} {
			if err := flush(filepath.Join(c.Dir, role+".json")); err != nil {
				return err
			}
		}
	}
	if data, err := bound.ReadFile(filepath.Join(c.Dir, pinFile), 100); err != nil || string(data) != c.pin() {
		if err := state.Write(filepath.Join(c.Dir, pinFile), []byte(c.pin()), 0o600); err != nil {
			return err
		}
	}
	if c.Expired || c.Stale == 0 {
		return nil
	}
	return state.Write(filepath.Join(c.Dir, refreshedFile), []byte(time.Now().UTC().Format(time.RFC3339)), 0o600)
}

func flush(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = file.Sync()
		_ = file.Close()
	}
	if err != nil {
		return failure.New(failure.FileKind(err), "cannot write %s to the disk: %w", path, err).
			WithHint("check that the disk is not full")
	}
	return nil
}

// stale returns the remembered metadata if the last update was less than Stale ago, and else the failure of the update.
// They are verified as of that update, since they may have expired after it.
func (c Client) stale(ctx context.Context, failed error) (*View, error) {
	if c.Stale == 0 {
		return nil, failed
	}
	data, err := bound.ReadFile(filepath.Join(c.Dir, refreshedFile), 100)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failed
	}
	refreshed, parseErr := time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
	if err != nil || parseErr != nil {
		return nil, failed
	}
	now := c.Now
	if now.IsZero() {
		now = time.Now()
	}
	if age := now.Sub(refreshed); age < 0 || age > c.Stale {
		return nil, failure.New(failure.From(failed).Kind, "%w; the last update was %s, more than %s ago", failed,
			refreshed.Format(time.RFC3339), c.Stale).WithHint("wait until the registry answers again")
	}
	c.Now = refreshed
	v, err := c.open(ctx, nil)
	if err != nil {
		return nil, err
	}
	if err := v.updater.Refresh(); err != nil {
		return nil, failed
	}
	v.stale, v.trusted = true, v.updater.GetTrustedMetadataSet()
	return v, v.check()
}

// fetcher reads files for go-tuf, which has no context for it.
type fetcher struct {
	ctx    context.Context
	files  Files
	failed error // why a file could not be read, except that there is none
}

// DownloadFile returns the file that a URL ends with.
func (f *fetcher) DownloadFile(url string, length int64, _ time.Duration) ([]byte, error) {
	name := url[strings.LastIndexByte(url, '/')+1:]
	if f.files == nil {
		f.failed = failure.New(failure.Unavailable, "cannot read the tag metadata %s: the registry cannot be reached", name)
		return nil, f.failed
	}
	data, err := f.files.Read(f.ctx, name, length)
	switch {
	case err == nil:
	case failure.From(err).Kind == failure.NotFound:
		return nil, &metadata.ErrDownloadHTTP{StatusCode: http.StatusNotFound, URL: name}
	case failure.From(err).Kind == failure.Invalid: // the registry sent something else
		return nil, explain(fmt.Errorf("%w: %v", errChanged, err)) //nolint:errorlint // the kind is the client's own
	default:
		f.failed = err
		return nil, err
	}
	if int64(len(data)) > length {
		return nil, &metadata.ErrDownloadLengthMismatch{Msg: name + " is longer than signed"}
	}
	if name != Timestamp+".json" {
		return data, checkJSON(name, data, length)
	}
	m, err := parse[metadata.TimestampType](name, data, length)
	if err == nil && m.Signed.Meta[Snapshot+".json"] == nil { // which go-tuf takes for granted
		err = unreadable(name, errors.New("it names no snapshot"))
	}
	return data, err
}
