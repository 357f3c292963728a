package translog

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Options are what Verify checks besides.
type Options struct {
	// Since is an older checkpoint of the log, verified before. The log must continue it.
	Since *Checkpoint
	// Each is called with each entry, in order. Its error ends the verification.
	Each func(index int64, event Event, entry []byte) error
}

// Report tells what a verified log has.
type Report struct {
	Origin     string           `json:"origin"`
	Size       int64            `json:"size"`
	Root       Hash             `json:"root"`                 // base64
	Since      *int64           `json:"since,omitempty"`      // number of entries of the older checkpoint
	Types      map[string]int64 `json:"types"`                // entries by type
	Other      int64            `json:"other,omitempty"`      // entries of types beyond the first hundred
	First      time.Time        `json:"first,omitzero"`       // time of the first entry
	Last       time.Time        `json:"last,omitzero"`        // time of the last entry
	Backwards  int64            `json:"backwards,omitempty"`  // entries whose time is before that of the entry before
	Duplicates int64            `json:"duplicates,omitempty"` // entries equal to one of the 1024 before
}

const (
	inFlight    = 8 // bundles that are read at a time
	maxTypes    = 100
	recentCount = 1024
)

// VerifyDir verifies the log in a folder, as Verify does, and that partial tiles of former sizes are the beginning of
// tiles of the log.
func VerifyDir(ctx context.Context, dir string, verifiers []*Verifier, opts Options) (*Report, error) {
	report, err := Verify(ctx, Dir(dir), verifiers, opts)
	if err == nil {
		err = verifyPartials(ctx, dir, report.Size)
	}
	if err != nil {
		return nil, err
	}
	return report, nil
}

// VerifyURL verifies the log at a URL, as Verify does. roots verify the server; nil are those of the system.
func VerifyURL(ctx context.Context, url string, roots *x509.CertPool, verifiers []*Verifier, opts Options) (*Report,
	error,
) {
	files, err := URL(url, roots)
	if err != nil {
		return nil, err
	}
	return Verify(ctx, files, verifiers, opts)
}

// Verify verifies a log: its checkpoint's signature with one of the verifiers, that each entry is as Check wants it,
// and that each tile and the root are those of the entries. It needs no more memory for more entries. The error names
// the first file or entry that is wrong.
func Verify(ctx context.Context, files Files, verifiers []*Verifier, opts Options) (*Report, error) {
	signed, err := files(ctx, CheckpointPath)
	if err != nil {
		return nil, err
	}
	c, err := Open(signed, verifiers)
	if err != nil {
		return nil, err
	}
	v := &verification{Options: opts, files: files, to: c, tree: &Tree{},
		report: Report{Origin: c.Origin, Size: c.Size, Root: c.Root, Types: map[string]int64{}}}
	if err := v.run(ctx); err != nil {
		return nil, err
	}
	return &v.report, nil
}

// verification is one run of Verify.
type verification struct {
	Options

	files  Files
	to     Checkpoint
	tree   *Tree                                // of the entries that were verified
	keep   func(path string, data []byte) error // stores a file that was verified; may be nil
	report Report
	recent map[Hash]bool
	order  [recentCount]Hash // of recent, as a ring
	next   int               // in order: the oldest
}

func wrong(format string, args ...any) *failure.Error {
	return failure.New(failure.Conflict, format, args...).
		WithHint("the log or this copy of it was changed: keep it, and compare it with other copies")
}

// run verifies the entries that the tree does not have yet, and then the root.
func (v *verification) run(ctx context.Context) error {
	if v.Since != nil {
		if v.Since.Origin != v.to.Origin {
			return failure.New(failure.Invalid, "the checkpoints are of two logs, %q and %q", v.Since.Origin, v.to.Origin)
		}
		if v.Since.Size > v.to.Size {
			return wrong("the log has %d entries, fewer than the %d of the older checkpoint", v.to.Size, v.Since.Size)
		}
		v.report.Since = &v.Since.Size
	}
	if err := v.compareSince(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends what reads ahead
	for next := range v.readAhead(ctx, v.tree.Size()/tileWidth) {
		bundle := <-next
		if bundle.err != nil {
			return bundle.err
		}
		if err := v.addBundle(ctx, bundle); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return failure.New(failure.Timeout, "cannot verify the log: %w", context.Cause(ctx))
	}
	for level, edge := range v.tree.edges {
		if len(edge) > 0 && level > 0 { // level 0 was compared with its bundle
			index := v.to.Size >> (tileHeight * (level + 1))
			if err := v.compareTile(ctx, Tile{level, index, edge}); err != nil {
				return err
			}
		}
	}
	if root := v.tree.Root(); root != v.to.Root {
		return wrong("the root of the %d entries is %v, and the checkpoint says %v", v.to.Size, root, v.to.Root)
	}
	return nil
}

// readBundle is a bundle of entries with its tile of hashes.
type readBundle struct {
	index   int64
	width   int
	entries [][]byte
	data    []byte // of the bundle
	hashes  []byte
	err     error
}

// readAhead reads bundles from the index first on, several at a time, and sends them in order.
func (v *verification) readAhead(ctx context.Context, first int64) <-chan chan readBundle {
	ahead := make(chan chan readBundle, inFlight)
	go func() {
		defer close(ahead)
		for index := first; index*tileWidth < v.to.Size; index++ {
			next := make(chan readBundle, 1)
			select {
			case ahead <- next:
			case <-ctx.Done():
				return
			}
			go func() { next <- v.readBundle(ctx, index) }()
		}
	}()
	return ahead
}

func (v *verification) readBundle(ctx context.Context, index int64) readBundle {
	b := readBundle{index: index, width: widthAt(v.to.Size, 0, index)}
	b.hashes, b.err = v.read(ctx, 0, index, b.width)
	if b.err == nil {
		b.data, b.err = v.read(ctx, entriesLevel, index, b.width)
	}
	if b.err != nil {
		return b
	}
	var err error
	if b.entries, err = splitBundle(b.data, b.width); err != nil {
		b.err = wrong("%s is damaged: %w", bundlePath(index, b.width), err)
	}
	return b
}

// read returns the first width hashes of a tile, or the bundle of the first width entries. A partial file that does not
// exist may have been replaced by the whole one.
func (v *verification) read(ctx context.Context, level int, index int64, width int) ([]byte, error) {
	path := tilePath(level, index, width)
	data, err := v.files(ctx, path)
	if failure.Is(err, failure.NotFound) && width < tileWidth {
		var whole []byte
		if whole, err = v.files(ctx, tilePath(level, index, tileWidth)); err == nil {
			data, err = prefix(level, whole, width)
		} else {
			err = fmt.Errorf("%s does not exist, and neither does the whole one: %w", path, err)
		}
	}
	if err != nil {
		return nil, err
	}
	if level != entriesLevel && len(data) != width*tlog.HashSize {
		return nil, wrong("%s has %d bytes instead of %d", path, len(data), width*tlog.HashSize)
	}
	return data, nil
}

// prefix returns the part of a tile or a bundle that has width hashes or entries.
func prefix(level int, data []byte, width int) ([]byte, error) {
	if level != entriesLevel {
		return data[:min(len(data), width*tlog.HashSize)], nil
	}
	rest := data
	for range width {
		if len(rest) < 2 || len(rest) < 2+int(rest[0])<<8+int(rest[1]) {
			return nil, wrong("a bundle has fewer than %d entries", width)
		}
		rest = rest[2+int(rest[0])<<8+int(rest[1]):]
	}
	return data[:len(data)-len(rest)], nil
}

// addBundle verifies a bundle and its tile, and appends what the tree does not have of it.
func (v *verification) addBundle(ctx context.Context, b readBundle) error {
	first := b.index * tileWidth
	for i, entry := range b.entries {
		index := first + int64(i)
		hash := tlog.RecordHash(entry)
		if listed := b.hashes[i*tlog.HashSize : (i+1)*tlog.HashSize]; !bytes.Equal(hash[:], listed) {
			return wrong("entry %d does not have the hash that %s lists", index, tilePath(0, b.index, b.width))
		}
		if index < v.tree.Size() {
			continue
		}
		event, err := check(entry)
		if err != nil {
			return wrong("entry %d is not valid: %w", index, err)
		}
		v.count(event, hash)
		if v.Each != nil {
			if err := v.Each(index, event, entry); err != nil {
				return fmt.Errorf("entry %d: %w", index, err)
			}
		}
	}
	if err := v.store(bundlePath(b.index, b.width), b.data); err != nil {
		return err
	}
	if err := v.store(tilePath(0, b.index, b.width), b.hashes); err != nil {
		return err
	}
	left := b.entries[v.tree.Size()-first:]
	if v.Since != nil && v.Since.Size > v.tree.Size() && v.Since.Size < first+int64(b.width) {
		part := v.Since.Size - v.tree.Size()
		v.tree, _ = v.tree.Append(left[:part])
		left = left[part:]
		if err := v.compareSince(); err != nil {
			return err
		}
	}
	next, changed := v.tree.Append(left)
	v.tree = next
	for _, tile := range changed {
		if tile.Level > 0 && len(tile.Hashes) == tileWidth*tlog.HashSize {
			if err := v.compareTile(ctx, tile); err != nil {
				return err
			}
		}
	}
	return v.compareSince()
}

// compareSince compares the root with that of the older checkpoint, once the tree has its size.
func (v *verification) compareSince() error {
	if v.Since == nil || v.tree.Size() != v.Since.Size || v.tree.Root() == v.Since.Root {
		return nil
	}
	return wrong("the first %d entries are not those of the older checkpoint: their root is %v instead of %v",
		v.Since.Size, v.tree.Root(), v.Since.Root)
}

// compareTile compares a tile with that of the entries.
func (v *verification) compareTile(ctx context.Context, tile Tile) error {
	width := len(tile.Hashes) / tlog.HashSize
	data, err := v.read(ctx, tile.Level, tile.Index, width)
	if err != nil {
		return err
	}
	path := tilePath(tile.Level, tile.Index, width)
	if !bytes.Equal(data, tile.Hashes) {
		return wrong("%s is not the tile of the entries", path)
	}
	return v.store(path, data)
}

func (v *verification) store(path string, data []byte) error {
	if v.keep == nil {
		return nil
	}
	return v.keep(path, data)
}

// count counts an entry in the report.
func (v *verification) count(event Event, hash Hash) {
	r := &v.report
	if _, known := r.Types[event.Type]; known || len(r.Types) < maxTypes {
		r.Types[event.Type]++
	} else {
		r.Other++
	}
	if r.First.IsZero() {
		r.First = event.Time
	}
	if event.Time.Before(r.Last) {
		r.Backwards++
	}
	r.Last = event.Time
	if v.recent == nil {
		v.recent = map[Hash]bool{}
	}
	if v.recent[hash] {
		r.Duplicates++
		return
	}
	oldest := &v.order[len(v.recent)%recentCount]
	if len(v.recent) == recentCount {
		oldest = &v.order[v.next]
		delete(v.recent, *oldest)
		v.next = (v.next + 1) % recentCount
	}
	*oldest = hash
	v.recent[hash] = true
}

// verifyPartials verifies the partial tiles and bundles in a folder that are not those of the log's size: of former
// checkpoints. What is beyond the checkpoint is ignored.
func verifyPartials(ctx context.Context, dir string, size int64) error {
	v := &verification{files: Dir(dir)}
	err := filepath.WalkDir(filepath.Join(dir, "tile"), func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		path := filepath.ToSlash(relative)
		tile, _ := parsePath(path)
		if tile.W == 0 || tile.W >= widthAt(size, tile.L, tile.N) {
			return nil // not a file of a log, verified, or beyond its end
		}
		part, err := v.files(ctx, path)
		if err != nil {
			return err
		}
		whole, err := v.read(ctx, tile.L, tile.N, widthAt(size, tile.L, tile.N))
		if err == nil {
			whole, err = prefix(tile.L, whole, tile.W)
		}
		if err == nil && !bytes.Equal(part, whole) {
			err = wrong("%s is not the beginning of its tile", path)
		}
		return err
	})
	if os.IsNotExist(err) && size == 0 {
		return nil
	}
	return err
}
