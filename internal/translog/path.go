package translog

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// CheckpointPath is the path of the newest checkpoint, below the URL or folder of a log.
const CheckpointPath = "checkpoint"

// entriesLevel is the level of bundles of entries, in Tile of golang.org/x/mod/sumdb/tlog.
const entriesLevel = -1

// tilePath returns the path of a tile that has width hashes.
func tilePath(level int, index int64, width int) string {
	path := tlog.Tile{H: tileHeight, L: level, N: index, W: width}.Path() // tile/8/LEVEL/..., which names the height
	path = strings.TrimPrefix(path, "tile/8/")
	return "tile/" + strings.Replace(path, "data/", "entries/", 1)
}

// bundlePath returns the path of a bundle of width entries.
func bundlePath(index int64, width int) string { return tilePath(entriesLevel, index, width) }

// parsePath returns the tile that a path names; its level is entriesLevel for a bundle of entries. It fails with
// NotFound for any path but the one that tilePath returns for the tile.
func parsePath(path string) (tlog.Tile, error) {
	unknown := failure.New(failure.NotFound, "a log has no file %.100q", path).
		WithHint("use checkpoint, tile/LEVEL/INDEX or tile/entries/INDEX, as C2SP tlog-tiles has them")
	const longest = len("tile/entries/x000/x000/x000/x000/x000/x000/000.p/255")
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || len(path) > longest {
		return tlog.Tile{}, unknown
	}
	rest, entries := strings.CutPrefix(rest, "entries/")
	if entries {
		rest = "data/" + rest
	}
	tile, err := tlog.ParseTilePath("tile/8/" + rest)
	if err != nil || tile.N < 0 || tile.L >= maxLevels || tilePath(tile.L, tile.N, tile.W) != path {
		return tlog.Tile{}, unknown
	}
	return tile, nil
}

// widthAt returns how many hashes or entries a tile has in a log of size entries, up to 256; 0 if it has none.
func widthAt(size int64, level int, index int64) int {
	hashes := size >> (tileHeight * max(level, 0))
	if index > hashes/tileWidth {
		return 0
	}
	return int(min(hashes-index*tileWidth, tileWidth))
}

// parseSize parses a number of entries: decimal digits, without leading zeros.
func parseSize(text string) (int64, error) {
	size, err := strconv.ParseInt(text, 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != text {
		return 0, fmt.Errorf("%.30q is not a number of entries", text)
	}
	return size, nil
}
