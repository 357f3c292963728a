package translog

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// testLog is a log in memory.
type testLog struct {
	key      crypto.Signer
	verifier *Verifier
	entries  [][]byte
	tree     *Tree
	tiles    memory
	signed   []byte
}

// newLog returns a log with a number of entries, and a checkpoint.
func newLog(t testing.TB, size int64) *testLog {
	t.Helper()
	l := &testLog{tree: &Tree{}, tiles: memory{}}
	l.key, l.verifier = newKey(t, elliptic.P256())
	l.grow(t, size)
	l.sign(t)
	return l
}

// grow appends entries until the log has size.
func (l *testLog) grow(t testing.TB, size int64) {
	t.Helper()
	var batch [][]byte
	for i := l.tree.Size(); i < size; i++ {
		entry, err := Canonical(map[string]any{
			"type":    []string{"intent", "signed"}[i%2],
			"time":    time.Unix(1_800_000_000+i, 0).UTC().Format(time.RFC3339),
			"request": i / 2,
		})
		if err != nil {
			t.Fatal(err)
		}
		batch = append(batch, entry)
	}
	l.append(batch...)
}

func (l *testLog) append(entries ...[]byte) {
	l.entries = append(l.entries, entries...)
	var changed []Tile
	l.tree, changed = l.tree.Append(entries)
	l.tiles.put(changed)
}

func (l *testLog) sign(t testing.TB) {
	t.Helper()
	var err error
	if l.signed, err = l.checkpoint().Sign(l.key); err != nil {
		t.Fatal(err)
	}
}

func (l *testLog) checkpoint() Checkpoint { return Checkpoint{origin, l.tree.Size(), l.tree.Root()} }

func (l *testLog) source() Source {
	return Source{
		Tile: l.tiles.tile,
		Entries: func(_ context.Context, first, end int64, each func(int64, []byte) error) error {
			for i := first; i < min(end, int64(len(l.entries))); i++ {
				if err := each(i, l.entries[i]); err != nil {
					return err
				}
			}
			return nil
		},
		Checkpoint: func(context.Context) ([]byte, error) { return l.signed, nil },
	}
}

// serve serves the log below /log/ and returns its URL.
func (l *testLog) serve(t testing.TB) string {
	t.Helper()
	fail := func(w http.ResponseWriter, _ *http.Request, err error) {
		status := http.StatusInternalServerError
		if failure.Is(err, failure.NotFound) {
			status = http.StatusNotFound
		}
		http.Error(w, err.Error(), status)
	}
	server := httptest.NewServer(http.StripPrefix("/log/", Handler(l.source().File, fail)))
	t.Cleanup(server.Close)
	return server.URL + "/log"
}

func get200(t testing.TB, url string) []byte {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %v", url, response.Status, err)
	}
	return data
}

// tileReader is a client of golang.org/x/mod/sumdb/tlog over HTTP.
type tileReader struct {
	t   testing.TB
	url string
}

func (r tileReader) Height() int                     { return 8 }
func (r tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

func (r tileReader) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range tiles {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data = append(data, get200(r.t, r.url+"/"+path))
	}
	return data, nil
}

// TestHandlerWithClient lets the client of golang.org/x/mod verify proofs with what the handler serves.
func TestHandlerWithClient(t *testing.T) {
	t.Parallel()
	l := newLog(t, 70_000)
	url := l.serve(t)
	l.append([]byte("not published"))
	c, err := Open(get200(t, url+"/checkpoint"), []*Verifier{l.verifier})
	if err != nil || c.Size != 70_000 {
		t.Fatalf("checkpoint %v: %v", c, err)
	}
	reader := tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, tileReader{t, url})
	for _, index := range []int64{0, 255, 256, 65_535, 65_536, 69_999} {
		proof, err := tlog.ProveRecord(c.Size, index, reader)
		if err == nil {
			err = tlog.CheckRecord(proof, c.Size, c.Root, index, tlog.RecordHash(l.entries[index]))
		}
		if err != nil {
			t.Errorf("entry %d: %v", index, err)
		}
	}
	report, err := VerifyURL(t.Context(), url, nil, []*Verifier{l.verifier}, Options{})
	if err != nil || report.Size != 70_000 || report.Types["signed"] != 35_000 || report.Duplicates+report.Backwards != 0 {
		t.Errorf("%+v: %v", report, err)
	}
}

// TestHandler verifies paths, methods, media types and caching headers.
func TestHandler(t *testing.T) {
	t.Parallel()
	l := newLog(t, 600)
	url := l.serve(t)
	l.grow(t, 70_000) // without a checkpoint
	for path, want := range map[string]string{
		"checkpoint":              "text/plain; charset=utf-8 no-cache",
		"tile/0/001":              "application/octet-stream public, max-age=31536000, immutable",
		"tile/0/002.p/88":         "application/octet-stream public, max-age=31536000, immutable",
		"tile/0/000.p/1":          "application/octet-stream public, max-age=31536000, immutable",
		"tile/1/000.p/2":          "application/octet-stream public, max-age=31536000, immutable",
		"tile/entries/001":        "application/octet-stream public, max-age=31536000, immutable",
		"tile/entries/002.p/88":   "application/octet-stream public, max-age=31536000, immutable",
		"tile/0/002.p/89":         "404",
		"tile/0/002":              "404",
		"tile/0/003":              "404",
		"tile/1/000.p/3":          "404",
		"tile/2/000.p/1":          "404",
		"tile/7/000":              "404",
		"tile/entries/002.p/89":   "404",
		"tile/entries/002":        "404",
		"tile/entries/x001/000":   "404",
		"tile/0/0":                "404",
		"tile/00/000":             "404",
		"tile/0/000.p/0":          "404",
		"tile/0/000.p/256":        "404",
		"tile/8/0/000":            "404",
		"tile/data/000":           "404",
		"tile/-1/000":             "404",
		"tile/0/x000/000":         "404",
		"tile/0/000/":             "404",
		"":                        "404",
		"tile":                    "404",
		"checkpoint/":             "404",
		"tile/0/..%2f0%2f000":     "404",
		"tile/0/999/999/999/999/": "404",
	} {
		response, err := http.Head(url + "/" + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		got := response.Header.Get("Content-Type") + " " + response.Header.Get("Cache-Control")
		if response.StatusCode == http.StatusNotFound {
			got = "404"
		}
		if got != want {
			t.Errorf("%s: %d %s, want %s", path, response.StatusCode, got, want)
		}
	}
	response, err := http.Post(url+"/checkpoint", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", response.Status)
	}
	l.signed = nil
	if _, err := l.source().File(t.Context(), CheckpointPath); !failure.Is(err, failure.NotFound) {
		t.Errorf("a log without a checkpoint: %v", err)
	}
}

// export writes the log into a folder.
func (l *testLog) export(t testing.TB, dir string) *Report {
	t.Helper()
	report, err := Export(t.Context(), l.source().File, dir, []*Verifier{l.verifier})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// TestExport exports a growing log into one folder, which verifies each time, and continues each older checkpoint.
func TestExport(t *testing.T) {
	t.Parallel()
	l := newLog(t, 0)
	dir := filepath.Join(t.TempDir(), "log")
	verifiers := []*Verifier{l.verifier}
	var older []Checkpoint
	for _, size := range []int64{0, 1, 1, 200, 256, 257, 600, 1024, 3000} {
		before := l.tree.Size()
		l.grow(t, size)
		l.sign(t)
		added := l.export(t, dir)
		if n := added.Types["signed"] + added.Types["intent"]; n != size-before || added.Size != size {
			t.Errorf("from %d to %d: exported %d entries: %+v", before, size, n, added)
		}
		older = append(older, l.checkpoint())
		for _, since := range older {
			if _, err := VerifyDir(t.Context(), dir, verifiers, Options{Since: &since}); err != nil {
				t.Fatalf("%d entries, since %d: %v", size, since.Size, err)
			}
		}
	}
	for _, since := range older {
		since.Root[0] ^= 1
		if _, err := VerifyDir(t.Context(), dir, verifiers, Options{Since: &since}); !failure.Is(err, failure.Conflict) {
			t.Errorf("another log of %d entries: %v", since.Size, err)
		}
	}
	longer := Checkpoint{origin, 3001, l.tree.Root()}
	if _, err := VerifyDir(t.Context(), dir, verifiers, Options{Since: &longer}); !failure.Is(err, failure.Conflict) {
		t.Errorf("a log that shrank: %v", err)
	}
	served := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer served.Close()
	if report, err := VerifyURL(t.Context(), served.URL, nil, verifiers, Options{}); err != nil || report.Size != 3000 {
		t.Errorf("the folder on a web server: %v", err)
	}
	another := newLog(t, 3100)
	another.key, another.verifier = l.key, l.verifier
	another.entries[3][10]++
	another.tree, another.tiles = &Tree{}, memory{}
	entries := another.entries
	another.entries = nil
	another.append(entries...)
	another.sign(t)
	if _, err := Export(t.Context(), another.source().File, dir, verifiers); !failure.Is(err, failure.Conflict) {
		t.Errorf("export of a log that was rewritten: %v", err)
	}
}

// TestEveryByte changes each byte of each file of a small log, removes each file, and appends to each.
func TestEveryByte(t *testing.T) {
	t.Parallel()
	l := newLog(t, 100)
	dir := t.TempDir()
	l.export(t, dir)
	for _, size := range []int64{260, 270} { // the second one replaces the files of the first, and leaves those of 260
		l.grow(t, size)
		l.sign(t)
		l.export(t, dir)
	}
	verifiers := []*Verifier{l.verifier}
	verify := func() error {
		_, err := VerifyDir(t.Context(), dir, verifiers, Options{})
		return err
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	var names []string
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			names = append(names, name)
		}
		return err
	})
	if err != nil || len(names) != 8 {
		t.Fatalf("%d files %v: %v", len(names), names, err)
	}
	for _, name := range names {
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		put := func(data []byte) {
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for i := range good {
			if i > 150 && i < len(good)-50 && i%67 != 0 {
				continue
			}
			changed := bytes.Clone(good)
			changed[i] ^= 1 << (i % 8)
			put(changed)
			if verify() == nil {
				t.Errorf("%s: byte %d of %d changed from %q to %q", name, i, len(good), good[i], changed[i])
			}
		}
		twice := append(bytes.Clone(good), good...)
		for _, changed := range [][]byte{nil, good[:len(good)-1], append(bytes.Clone(good), '\n'), twice} {
			put(changed)
			if verify() == nil {
				t.Errorf("%s: %d bytes instead of %d", name, len(changed), len(good))
			}
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if err := verify(); err == nil && filepath.Base(name) != "4" { // that of a former size may be deleted
			t.Errorf("%s is missing", name)
		}
		put(good)
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyNames verifies that an error names the first entry or tile that is wrong.
func TestVerifyNames(t *testing.T) {
	t.Parallel()
	l := newLog(t, 600)
	changeRequest := func(b []byte) []byte { return bytes.Replace(b, []byte(`:130,`), []byte(`:131,`), 1) }
	for name, c := range map[string]struct {
		path   string
		change func([]byte) []byte
		want   string
	}{
		"an entry":     {"tile/entries/001", changeRequest, "entry 260 "},
		"a hash":       {"tile/0/002.p/88", func(b []byte) []byte { b[32*7] ^= 1; return b }, "entry 519 "},
		"a node":       {"tile/1/000.p/2", func(b []byte) []byte { b[32] ^= 1; return b }, "tile/1/000.p/2"},
		"a short tile": {"tile/0/000", func(b []byte) []byte { return b[:100] }, "tile/0/000"},
		"lengths":      {"tile/entries/000", func(b []byte) []byte { b[0] = 99; return b }, "tile/entries/000"},
	} {
		dir := t.TempDir()
		l.export(t, dir)
		file := filepath.Join(dir, c.path)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, c.change(data), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = VerifyDir(t.Context(), dir, []*Verifier{l.verifier}, Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestVerifyEntries verifies what the report says of entries, that invalid ones are refused although their hashes fit,
// and that the error of a caller ends the verification.
func TestVerifyEntries(t *testing.T) {
	t.Parallel()
	l := newLog(t, 10)
	l.append(l.entries[9], l.entries[0])
	l.sign(t)
	report, err := Verify(t.Context(), l.source().File, []*Verifier{l.verifier}, Options{})
	if err != nil || report.Duplicates != 2 || report.Backwards != 1 || report.Types["intent"] != 6 {
		t.Errorf("%+v: %v", report, err)
	}
	stop := errors.New("stop")
	stopAt := func(index int64, event Event, _ []byte) error {
		if index == 3 && event.Type == "signed" {
			return stop
		}
		return nil
	}
	_, err = Verify(t.Context(), l.source().File, []*Verifier{l.verifier}, Options{Each: stopAt})
	if !errors.Is(err, stop) || !strings.Contains(err.Error(), "entry 3") {
		t.Errorf("a caller's error: %v", err)
	}
	l.append([]byte(`{"type":"signed","time":"2027-01-01T00:00:00Z"}`))
	l.sign(t)
	if _, err := Verify(t.Context(), l.source().File, []*Verifier{l.verifier}, Options{}); err == nil ||
		!strings.Contains(err.Error(), "entry 12 is not valid: it is not in canonical form") {
		t.Errorf("an entry that is not canonical: %v", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	many := newLog(t, 5000)
	_, err = Verify(canceled, many.source().File, []*Verifier{many.verifier}, Options{})
	if !failure.Is(err, failure.Timeout) {
		t.Errorf("a verification that was cancelled: %v", err)
	}
}

// TestManyEntries verifies that the duplicates of many entries are counted within their limit.
func TestManyEntries(t *testing.T) {
	t.Parallel()
	l := newLog(t, 3000)
	l.append(l.entries[0], l.entries[2500])
	l.sign(t)
	report, err := Verify(t.Context(), l.source().File, []*Verifier{l.verifier}, Options{})
	if err != nil || report.Duplicates != 1 {
		t.Errorf("%+v: %v", report, err)
	}
}

// TestURL verifies what a client refuses of a server, and that it tries again.
func TestURL(t *testing.T) {
	t.Parallel()
	l := newLog(t, 10)
	failures := 1
	mux := http.NewServeMux()
	mux.Handle("/elsewhere/", http.RedirectHandler("http://localhost:1/checkpoint", http.StatusFound))
	mux.HandleFunc("/large/", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, maxCheckpoint+1))
	})
	mux.HandleFunc("/forbidden/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	mux.HandleFunc("/retried/", func(w http.ResponseWriter, r *http.Request) {
		if failures--; failures >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		handler := Handler(l.source().File, func(http.ResponseWriter, *http.Request, error) {})
		http.StripPrefix("/retried/", handler).ServeHTTP(w, r)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	for path, want := range map[string]string{"elsewhere": "redirects to http://localhost:1",
		"large": "more than 65536 bytes", "forbidden": "403", "nothing": "404", "retried": ""} {
		_, err := VerifyURL(t.Context(), server.URL+"/"+path, nil, []*Verifier{l.verifier}, Options{})
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	for _, url := range []string{"", "file:///etc", "https://", "https://user@example.com/", "https://example.com/?a=b",
		"ftp://a/b"} {
		if _, err := URL(url, nil); !failure.Is(err, failure.Invalid) {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// TestDir verifies that a folder's links that lead out of it, and named pipes, are not read.
func TestDir(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "checkpoint")); err != nil {
		t.Fatal(err)
	}
	if data, err := Dir(dir)(t.Context(), CheckpointPath); err == nil {
		t.Errorf("read %q", data)
	}
	if _, err := Dir(dir)(t.Context(), "tile/0/000"); !failure.Is(err, failure.NotFound) {
		t.Errorf("a missing file: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "tile", "0", "000"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Dir(dir)(t.Context(), "tile/0/000"); !failure.Is(err, failure.Invalid) {
		t.Errorf("a folder: %v", err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "tile", "0", "001"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Dir(dir)(t.Context(), "tile/0/001"); !failure.Is(err, failure.Invalid) {
		t.Errorf("a named pipe: %v", err)
	}
}
