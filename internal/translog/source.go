package translog

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Source is where a log is stored.
type Source struct {
	Tile Tiles
	// Entries calls each with the entries from first to end, without end, in order. It ends with the error of each.
	Entries func(ctx context.Context, first, end int64, each func(index int64, entry []byte) error) error
	// Checkpoint returns the newest signed checkpoint, nil if there is none.
	Checkpoint func(ctx context.Context) ([]byte, error)
}

// File returns a file of the log; it is a Files. Only what the newest checkpoint covers exists.
func (s Source) File(ctx context.Context, path string) ([]byte, error) {
	signed, err := s.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	if len(signed) == 0 {
		return nil, failure.New(failure.NotFound, "the log has no checkpoint yet").WithHint("try again in a second")
	}
	if path == CheckpointPath {
		return signed, nil
	}
	tile, err := parsePath(path)
	if err != nil {
		return nil, err
	}
	text, _, _ := strings.Cut(string(signed), "\n\n")
	c, err := parseText(text + "\n") // its signature was verified when it was stored
	if err != nil {
		return nil, failure.New(failure.Internal, "cannot read the log's checkpoint: %w", err)
	}
	if tile.W > widthAt(c.Size, tile.L, tile.N) {
		return nil, failure.New(failure.NotFound, "the log of %d entries has no file %s", c.Size, path).
			WithHint("fetch the checkpoint first: it says which tiles exist")
	}
	if tile.L != entriesLevel {
		return readTile(ctx, s.Tile, tile.L, tile.N, tile.W)
	}
	return s.bundle(ctx, tile)
}

// bundle returns a bundle of entries.
func (s Source) bundle(ctx context.Context, tile tlog.Tile) ([]byte, error) {
	var bundle []byte
	first := tile.N * tileWidth
	next := first
	err := s.Entries(ctx, first, first+int64(tile.W), func(index int64, entry []byte) (err error) {
		if index != next {
			return failure.New(failure.Internal, "the log has no entry %d", next)
		}
		next++
		bundle, err = appendBundle(bundle, entry)
		return err
	})
	if err == nil && next != first+int64(tile.W) {
		err = failure.New(failure.Internal, "the log has no entry %d", next)
	}
	if err != nil {
		return nil, err
	}
	return bundle, nil
}

// Handler serves the files of a log, as C2SP tlog-tiles says, at paths without a slash before them. It asks for no
// credentials. fail answers a request with a failure.
func Handler(files Files, fail func(http.ResponseWriter, *http.Request, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
			return
		}
		path := strings.TrimPrefix(r.URL.Path, "/")
		data, err := files(r.Context(), path)
		if err != nil {
			w.Header().Set("Cache-Control", "no-store") // the tile may exist in a second
			fail(w, r, err)
			return
		}
		header := w.Header()
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Content-Type", "application/octet-stream")
		header.Set("Cache-Control", "public, max-age=31536000, immutable")
		if path == CheckpointPath {
			header.Set("Content-Type", "text/plain; charset=utf-8")
			header.Set("Cache-Control", "no-cache")
		}
		header.Set("Content-Length", strconv.Itoa(len(data)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(data)
		}
	})
}
