package monitor

import (
	"context"
	"crypto"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

const origin = "broker.example.com/log"

// ledger is a log in memory.
type ledger struct {
	origin   string
	key      crypto.Signer
	verifier *translog.Verifier
	entries  [][]byte
	tree     *translog.Tree
	tiles    map[string][]byte
	signed   []byte
	at       time.Time // of the next entry
	salt     int       // of the names of requests, other for each branch
}

func newLedger(t testing.TB) *ledger {
	t.Helper()
	l := &ledger{origin: origin, key: newKey(t), tiles: map[string][]byte{}, at: noon}
	l.verifier = l.verifies(t, origin)
	var err error
	if l.tree, err = translog.NewTree(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	return l
}

// noon is a Friday.
var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func (l *ledger) verifies(t testing.TB, origin string) *translog.Verifier {
	t.Helper()
	v, err := translog.NewVerifier(origin, l.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// add appends events, a second apart unless they have a time, and signs the log.
func (l *ledger) add(t testing.TB, events ...entry.Event) {
	t.Helper()
	for _, e := range events {
		if e.Time == "" {
			e.Time = l.at.Format(entry.TimeLayout)
			l.at = l.at.Add(time.Second)
		}
		data, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		l.append(data)
	}
	l.sign(t)
}

func (l *ledger) append(data []byte) {
	l.entries = append(l.entries, data)
	tree, changed := l.tree.Append([][]byte{data})
	l.tree = tree
	for _, tile := range changed {
		l.tiles[fmt.Sprint(tile.Level, "/", tile.Index)] = tile.Hashes
	}
}

func (l *ledger) sign(t testing.TB) {
	t.Helper()
	var err error
	if l.signed, err = l.checkpoint().Sign(l.key); err != nil {
		t.Fatal(err)
	}
}

func (l *ledger) checkpoint() translog.Checkpoint {
	return translog.Checkpoint{Origin: l.origin, Size: l.tree.Size(), Root: l.tree.Root()}
}

// branch returns a log with the first entries of this one, signed with the same key.
func (l *ledger) branch(t testing.TB, size int) *ledger {
	t.Helper()
	b := newLedger(t)
	b.origin, b.key, b.verifier, b.at, b.salt = l.origin, l.key, l.verifier, l.at, l.salt+1_000_000
	for _, data := range l.entries[:size] {
		b.append(data)
	}
	b.sign(t)
	return b
}

func (l *ledger) files(ctx context.Context, path string) ([]byte, error) {
	return translog.Source{
		Tile: func(_ context.Context, level int, index int64) ([]byte, error) {
			data, exists := l.tiles[fmt.Sprint(level, "/", index)]
			if !exists {
				return nil, failure.New(failure.NotFound, "no tile %d/%d", level, index)
			}
			return data, nil
		},
		Entries: func(_ context.Context, first, end int64, each func(int64, []byte) error) error {
			for i := first; i < min(end, int64(len(l.entries))); i++ {
				if err := each(i, l.entries[i]); err != nil {
					return err
				}
			}
			return nil
		},
		Checkpoint: func(context.Context) ([]byte, error) { return l.signed, nil },
	}.File(ctx, path)
}

// site serves a log, which can be replaced.
type site struct {
	url string

	mu    sync.Mutex
	files translog.Files
	paths []string // that were fetched
}

func serve(t testing.TB, l *ledger) *site {
	t.Helper()
	s := &site{files: l.files}
	server := httptest.NewServer(http.StripPrefix("/log/", translog.Handler(s.file,
		func(w http.ResponseWriter, _ *http.Request, err error) {
			status := http.StatusForbidden // which is not tried again
			if failure.Is(err, failure.NotFound) {
				status = http.StatusNotFound
			}
			http.Error(w, err.Error(), status)
		})))
	t.Cleanup(server.Close)
	s.url = server.URL + "/log"
	return s
}

func (s *site) file(ctx context.Context, path string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paths = append(s.paths, path)
	return s.files(ctx, path)
}

// show replaces the log that is served.
func (s *site) show(files translog.Files) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files, s.paths = files, nil
}

func (s *site) open(t testing.TB) translog.Files {
	t.Helper()
	files, err := translog.URL(s.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// watcher is a monitor of a site, which can be started again.
type watcher struct {
	*Monitor

	t       testing.TB
	options Options
	clock   time.Time
}

// watch returns a monitor of a site. It expects the policy of the tests and the key release.
func watch(t testing.TB, l *ledger, s *site, config string) *watcher {
	t.Helper()
	c, err := ParseConfig("monitor.yaml", []byte("version: 1\nstate: "+t.TempDir()+"\n"+config))
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, clock: noon.Add(time.Hour),
		options: Options{Config: c, Files: s.open(t), Verifiers: []*translog.Verifier{l.verifier}}}
	w.restart()
	t.Cleanup(func() { w.Close() })
	return w
}

func (w *watcher) restart() {
	w.t.Helper()
	if w.Monitor != nil {
		w.Close()
	}
	m, err := Open(w.t.Context(), w.options)
	if err != nil {
		w.t.Fatal(err)
	}
	m.now = func() time.Time { return w.clock }
	m.wait = func(_ context.Context, d time.Duration) { w.clock = w.clock.Add(max(d, 0)) }
	if m.kept.Checkpoint == nil {
		m.kept.Since = w.clock
	}
	w.Monitor = m
}

// looks looks at the log once, and returns the alerts that this has added to the outbox.
func (w *watcher) looks() []*Alert {
	w.t.Helper()
	before := len(w.kept.Outbox)
	if err := w.look(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return w.kept.Outbox[before:]
}

// sees looks at the log, and expects alerts of these classes.
func (w *watcher) sees(want ...string) []*Alert {
	w.t.Helper()
	alerts := w.looks()
	if got := classesOf(alerts); !slices.Equal(got, want) {
		w.t.Fatalf("want alerts %v, got %s (last error: %v)", want, textOf(alerts), w.lastErr)
	}
	return alerts
}

func classesOf(alerts []*Alert) (all []string) {
	for _, a := range alerts {
		all = append(all, a.Class)
	}
	return all
}

func textOf(alerts []*Alert) string {
	var b strings.Builder
	for _, a := range alerts {
		fmt.Fprintf(&b, "\n%s: %s", a.Class, a.What)
	}
	return b.String()
}

// hook is a receiver of webhooks.
type hook struct {
	url string

	mu     sync.Mutex
	status int
	ids    []string
	bodies []string
}

func newHook(t testing.TB) *hook {
	t.Helper()
	h := &hook{status: http.StatusOK}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		if h.status == http.StatusOK {
			h.ids, h.bodies = append(h.ids, r.Header.Get("webhook-id")), append(h.bodies, string(body))
		}
		w.WriteHeader(h.status)
	}))
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

func (h *hook) set(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

func (h *hook) got() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ids)
}
