package translog

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestReader reads entries from any index on, of logs whose last bundle is partial or not.
func TestReader(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{1, 255, 256, 257, 1000} {
		l := newLog(t, size)
		for first := int64(0); first < size; first += max(1, size/7) {
			entries, err := NewReader(l.source().File, l.checkpoint()).Entries(t.Context(), first)
			if err != nil {
				t.Fatal(size, first, err)
			}
			if want := min(tileWidth-first%tileWidth, size-first); int64(len(entries)) != want {
				t.Errorf("%d of %d: %d entries, not %d", first, size, len(entries), want)
			}
			for i, entry := range entries {
				if !bytes.Equal(entry, l.entries[first+int64(i)]) {
					t.Fatalf("entry %d is another", first+int64(i))
				}
			}
		}
		for _, first := range []int64{-1, size} {
			if _, err := NewReader(l.source().File, l.checkpoint()).Entries(t.Context(), first); !failure.Is(err,
				failure.NotFound) {
				t.Errorf("%d of %d: %v", first, size, err)
			}
		}
	}
}

// TestReaderVerifies refuses entries and tiles that the checkpoint does not cover, without the rest of the log.
func TestReaderVerifies(t *testing.T) {
	t.Parallel()
	l := newLog(t, 600)
	for _, path := range []string{"tile/entries/000", "tile/0/000", "tile/0/002.p/88", "tile/1/000.p/2"} {
		files := func(ctx context.Context, name string) ([]byte, error) {
			data, err := l.source().File(ctx, name)
			if name == path {
				data = bytes.Clone(data)
				data[len(data)-3] ^= 1
			}
			return data, err
		}
		if _, err := NewReader(files, l.checkpoint()).Entries(t.Context(), 0); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestReaderContinues tells a rewritten log from one whose files are damaged.
func TestReaderContinues(t *testing.T) {
	t.Parallel()
	l := newLog(t, 300)
	older := l.checkpoint()
	fork := older
	fork.Root[0] ^= 1
	check := func(files Files, in, older Checkpoint, kind failure.Kind, text string) {
		t.Helper()
		err := NewReader(files, in).Continues(t.Context(), older)
		if text == "" && err != nil || text != "" && (!failure.Is(err, kind) || !strings.Contains(err.Error(), text)) {
			t.Errorf("want %s %q, got %v", kind, text, err)
		}
	}
	l.grow(t, 900)
	now := l.checkpoint()
	source := l.source()
	source.Checkpoint = func(context.Context) ([]byte, error) { return now.Sign(l.key) }
	check(source.File, now, older, 0, "")
	check(source.File, now, now, 0, "")
	check(source.File, now, Checkpoint{Root: emptyRoot}, 0, "")
	check(source.File, now, fork, failure.Conflict, "does not continue")
	check(source.File, older, now, failure.Conflict, "does not continue")
	forked := now
	forked.Root[1] ^= 1
	check(source.File, now, forked, failure.Conflict, "does not continue")
	damaged := func(ctx context.Context, name string) ([]byte, error) {
		data, err := source.File(ctx, name)
		if strings.HasPrefix(name, "tile/1/") {
			data = make([]byte, len(data))
		}
		return data, err
	}
	check(damaged, now, older, failure.Invalid, "do not fit")
	cut := func(ctx context.Context, name string) ([]byte, error) {
		data, err := source.File(ctx, name)
		if strings.HasPrefix(name, "tile/1/") {
			data = data[:32]
		}
		return data, err
	}
	check(cut, now, older, failure.Invalid, "32 bytes instead of 96")
	away := func(context.Context, string) ([]byte, error) {
		return nil, failure.New(failure.Unavailable, "no answer")
	}
	check(away, now, older, failure.Unavailable, "no answer")
}
