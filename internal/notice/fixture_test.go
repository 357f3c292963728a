package notice

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
)

// start is when tests begin.
var start = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

const publicURL = "https://broker.example.com"

// clock is the clock of a test. Waiting lets it advance.
type clock struct {
	sync.Mutex
	at    time.Time
	waits []time.Duration
}

func (c *clock) now() time.Time {
	c.Lock()
	defer c.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.Lock()
	defer c.Unlock()
	c.at = c.at.Add(d)
	c.waits = append(c.waits, d)
}

// fixture is notices with a store and a clock of their own.
type fixture struct {
	*Notices
	*testing.T
	store *sqlite.Store
	clock *clock
}

// open returns the store of a new database, in memory if the system has a file system for that.
func open(t *testing.T) *sqlite.Store {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "notices")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "broker.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// newFixture returns notices that are delivered only when the test says so.
func newFixture(t *testing.T, c Config) *fixture {
	t.Helper()
	s := open(t)
	f := &fixture{T: t, store: s, clock: &clock{at: start}}
	f.Notices = f.another(c, s)
	return f
}

// another returns other notices on a store, with the same clock.
func (f *fixture) another(c Config, s store.Store) *Notices {
	f.Helper()
	n, err := New(Options{Config: c, PublicURL: publicURL, Version: "1.2.3", Store: s})
	if err != nil {
		f.Fatal(err)
	}
	n.now = f.clock.now
	n.wait = func(_ context.Context, d time.Duration) { f.clock.advance(d) }
	return n
}

// queue commits the rows of events.
func (f *fixture) queue(events ...broker.Notice) {
	f.Helper()
	size, err := f.store.Size(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	b := &store.Batch{First: size}
	for _, e := range events {
		b.Notices = append(b.Notices, f.Rows(e)...)
	}
	if err := f.store.Commit(f.Context(), b); err != nil {
		f.Fatal(err)
	}
}

// waiting returns the rows that wait, due or not.
func (f *fixture) waiting() []store.Notice {
	f.Helper()
	rows, err := f.store.Notices(f.Context(), "", start.AddDate(1, 0, 0), store.MaxLimit)
	if err != nil {
		f.Fatal(err)
	}
	return rows
}

// event returns an event of a request.
func event(id, kind string) broker.Notice {
	until := start.Add(72 * time.Hour)
	return broker.Notice{ID: id + "/" + kind, Type: kind, Time: start, Requester: "carol",
		People: []string{"bob", "alice"},
		Request: brokerapi.Request{ID: id, State: brokerapi.Pending, Key: "release", Rule: "release",
			Artifact: &brokerapi.Target{Format: payload.Notation, MediaType: "application/vnd.oci.image.manifest.v1+json",
				Digest: "sha256:aa", Size: 1234},
			Repository: "registry.example.com/app", Requester: brokerapi.Requester{Issuer: "mtls", Subject: "CN=ci"},
			Why: "the release of today", Created: start, NotAfter: &until,
			Needs: []brokerapi.Need{{Action: "use", Key: "release", Alternatives: []brokerapi.Alternative{
				{Rule: "release", Groups: []brokerapi.GroupNeed{
					{Group: "release-managers", Members: []string{"alice", "bob"}, Quorum: 2, Lacking: 2},
					{Group: "security", Quorum: 1, Lacking: 1}}},
				{Rule: "over", Reason: "its time is over"}}}},
		}}
}

// writeFile writes a file that its owner alone can read, and returns its path.
func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// webhookKey is the secret of webhooks.
var webhookKey = []byte("0123456789abcdef0123456789abcdef")

func writeKey(t *testing.T) string {
	return writeFile(t, "whsec_"+base64.StdEncoding.EncodeToString(webhookKey)+"\n")
}

// writeCA writes the certificate of a server.
func writeCA(t *testing.T, server *httptest.Server) string {
	return writeFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
}

// serve serves a webhook over TLS until the test ends, and returns its channel.
func serve(t *testing.T, name string, handler http.HandlerFunc) Channel {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	return Channel{Name: name, Webhook: server.URL + "/hook?token=secret-of-the-path", Secret: writeKey(t),
		CA: writeCA(t, server)}
}

// ids returns the IDs of rows.
func ids(rows []store.Notice) (all []string) {
	for _, r := range rows {
		all = append(all, r.ID)
	}
	return all
}

// numbered returns a number of events.
func numbered(n int) (all []broker.Notice) {
	for i := range n {
		all = append(all, event(fmt.Sprintf("r%05d", i), broker.NoticePending))
	}
	return all
}
