// Package tags tests, end to end, TUF metadata in a real registry.
package tags

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

const repository = "team/app"

// openStore returns the store of a repository in a registry, as one round of a publisher has it.
func openStore(t testing.TB, address string) *tufstore.Store {
	t.Helper()
	registries := registry.New(registry.Options{PlainHTTP: true, Limits: tufstore.Round})
	t.Cleanup(registries.Close)
	return tufstore.New(registries.Repository(address + "/" + repository))
}

// proxy stands before a registry and may answer in its place.
type proxy struct {
	address  string
	mutex    sync.Mutex
	requests []string // METHOD PATH
}

// newProxy starts a proxy. answer may change a request, or answer it and return true.
func newProxy(t testing.TB, to string, answer func(w http.ResponseWriter, r *http.Request) bool) *proxy {
	t.Helper()
	p, next := &proxy{}, httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mutex.Lock()
		p.requests = append(p.requests, r.Method+" "+r.URL.Path)
		p.mutex.Unlock()
		if answer == nil || !answer(w, r) {
			next.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	p.address = strings.TrimPrefix(server.URL, "http://")
	return p
}

// take returns the requests since the last call that begin with a method.
func (p *proxy) take(method string) (found []string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for _, r := range p.requests {
		if strings.HasPrefix(r, method) {
			found = append(found, r)
		}
	}
	p.requests = nil
	return found
}

// refuse answers as registries do.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// set is the metadata of a test: each file has its name and a word as its content.
func set(word string, names ...string) map[string][]byte {
	all := map[string][]byte{}
	for _, name := range names {
		all[name] = fmt.Appendf(nil, `{"%s":%q}`, name, word)
	}
	return all
}

// publish publishes files beside all that was published before under other names.
func publish(t testing.TB, store *tufstore.Store, files map[string][]byte) *tufstore.Published {
	t.Helper()
	if err := tryPublish(t.Context(), store, files); err != nil {
		t.Fatal(err)
	}
	published, err := store.Published(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return published
}

func tryPublish(ctx context.Context, store *tufstore.Store, files map[string][]byte) error {
	previous, err := store.Published(ctx)
	if err != nil && !failure.Is(err, failure.NotFound) {
		return err
	}
	var keep []string
	if previous != nil {
		keep = slices.DeleteFunc(previous.Names(), func(name string) bool { return files[name] != nil })
	}
	return store.Publish(ctx, previous, files, keep)
}

// expect verifies that just these files are published.
func expect(t testing.TB, published *tufstore.Published, files map[string][]byte) {
	t.Helper()
	if names := slices.Sorted(maps.Keys(files)); !slices.Equal(published.Names(), names) {
		t.Errorf("the files %v are published, not %v", published.Names(), names)
	}
	for name, want := range files {
		if got, err := published.Read(t.Context(), name, 1<<20); err != nil || string(got) != string(want) {
			t.Errorf("%s is %s, not %s: %v", name, got, want, err)
		}
	}
}

// expectHint verifies that an error has a kind, and a hint with words.
func expectHint(t testing.TB, err error, kind failure.Kind, words string) {
	t.Helper()
	var failed *failure.Error
	if !errors.As(err, &failed) || failed.Kind != kind || !strings.Contains(failed.Hint, words) {
		t.Errorf("%v, which is not %s with the hint %q", err, kind, words)
	}
}

// merge returns the files of several sets, the last of each name.
func merge(sets ...map[string][]byte) map[string][]byte {
	all := map[string][]byte{}
	for _, s := range sets {
		maps.Copy(all, s)
	}
	return all
}

// TestPublish verifies that what is published is read again, that a second publication uploads what is new alone, and
// that reading unchanged metadata takes one request.
func TestPublish(t *testing.T) {
	p := newProxy(t, oci.StartRegistry(t), nil)
	store := openStore(t, p.address)
	if _, err := store.Published(t.Context()); !failure.Is(err, failure.NotFound) {
		t.Errorf("before the first publication: %v", err)
	}
	if proposals, err := store.Proposals(t.Context()); err != nil || len(proposals) > 0 {
		t.Errorf("before the first publication: %d proposals, %v", len(proposals), err)
	}
	first := set("first", "timestamp.json", "1.snapshot.json", "1.targets.json", "1.root.json", "1.tags.json")
	before := publish(t, store, first)
	expect(t, before, first)
	p.take("")
	second := set("second", "timestamp.json", "2.snapshot.json", "2.tags.json")
	keep := []string{"1.targets.json", "1.root.json"}
	if err := store.Publish(t.Context(), before, second, keep); err != nil {
		t.Fatal(err)
	}
	if uploads := p.take("POST"); len(uploads) != len(second) {
		t.Errorf("%d uploads for %d new files: %v", len(uploads), len(second), uploads)
	}
	after, err := store.Published(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	expect(t, after, merge(second, set("first", keep...)))
	expect(t, before, first) // who has begun to read goes on
	p.take("")
	again, err := store.Published(t.Context())
	if err != nil || again.Digest != after.Digest {
		t.Fatalf("%+v: %v", again, err)
	}
	if _, err := again.Read(t.Context(), "timestamp.json", 1<<10); err != nil {
		t.Error(err)
	}
	if requests := p.take(""); len(requests) != 1 {
		t.Errorf("unchanged metadata take more than one request: %v", requests)
	}
	if err := store.Publish(t.Context(), after, second, []string{"9.root.json"}); !failure.Is(err, failure.Invalid) {
		t.Errorf("a file is kept that was never published: %v", err)
	}
}

// TestInterruptedPublication verifies that a publication that ends after any of its requests leaves the old state,
// until the last one makes it the new state.
func TestInterruptedPublication(t *testing.T) {
	address := oci.StartRegistry(t)
	old := set("old", "timestamp.json", "1.root.json", "1.snapshot.json")
	publish(t, openStore(t, address), old)
	for left := int64(1); ; left++ {
		fresh := set(fmt.Sprint("new", left), "timestamp.json", "1.root.json", "1.snapshot.json")
		var budget atomic.Int64
		budget.Store(left)
		p := newProxy(t, address, func(w http.ResponseWriter, _ *http.Request) bool {
			if budget.Add(-1) < 0 {
				w.WriteHeader(http.StatusBadGateway)
				return true
			}
			return false
		})
		err := tryPublish(t.Context(), openStore(t, p.address), fresh)
		published, readErr := openStore(t, address).Published(t.Context())
		if readErr != nil {
			t.Fatal(readErr)
		}
		if err == nil {
			expect(t, published, fresh)
			if left < 5 {
				t.Errorf("it took %d requests", left)
			}
			return
		}
		if !failure.Is(err, failure.Unavailable) {
			t.Errorf("after %d requests: %v", left, err)
		}
		expect(t, published, old)
	}
}

// TestConcurrentProposals verifies that twenty signers at once lose nothing, while a publisher publishes what it finds.
func TestConcurrentProposals(t *testing.T) {
	address := oci.StartRegistry(t)
	state := set("0", "timestamp.json", "1.root.json")
	publish(t, openStore(t, address), state)
	const signers = 20
	var group sync.WaitGroup
	var done atomic.Int32
	for i := range signers {
		files := set("signed", fmt.Sprintf("1.signer%d.json", i))
		maps.Copy(state, files)
		group.Go(func() {
			defer done.Add(1)
			for range 2 { // the second is the same proposal
				if _, err := openStore(t, address).Propose(t.Context(), files); err != nil {
					t.Error(err)
				}
			}
		})
	}
	rounds := 0
	for last := false; !last; rounds++ {
		last = done.Load() == signers // all that is proposed is found in the round that begins now
		publishProposals(t, openStore(t, address), fmt.Sprint(rounds))
	}
	group.Wait()
	published, err := openStore(t, address).Published(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(state, set(fmt.Sprint(rounds-1), "timestamp.json"))
	expect(t, published, state)
	if left, err := openStore(t, address).Proposals(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("%d proposals are left: %v", len(left), err)
	}
}

// publishProposals is a round of a publisher: it publishes all proposals and withdraws them.
func publishProposals(t testing.TB, store *tufstore.Store, word string) {
	t.Helper()
	proposals, err := store.Proposals(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files := set(word, "timestamp.json")
	for _, p := range proposals {
		if p.Refused != nil {
			t.Errorf("%s: %v", p.Tag, p.Refused)
		}
		maps.Copy(files, p.Files)
	}
	publish(t, store, files)
	for _, p := range proposals {
		if err := store.Withdraw(t.Context(), p); err != nil {
			t.Error(err)
		}
		if err := store.Withdraw(t.Context(), p); err != nil { // it is gone
			t.Error(err)
		}
	}
}

// collected is a registry whose garbage can be collected while it is stopped.
type collected struct {
	program, conf, data string
	front               *proxy       // has the same address while the registry runs again
	address             atomic.Value // of the registry
}

func newCollected(t testing.TB) *collected {
	t.Helper()
	c := &collected{program: softhsmtest.Build(t, "registry"), conf: filepath.Join(t.TempDir(), "registry.yml"),
		data: t.TempDir()}
	c.front = newProxy(t, "", func(w http.ResponseWriter, r *http.Request) bool {
		httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: c.address.Load().(string)}).ServeHTTP(w, r)
		return true
	})
	return c
}

// run calls job while the registry runs.
func (c *collected) run(t testing.TB, job func(*tufstore.Store)) {
	t.Helper()
	for range 5 { // someone else may take the free address
		address := softhsmtest.FreeAddresses(t, 1)[0]
		c.address.Store(address)
		softhsmtest.Write(t, c.conf, fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
			"storage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %s}\n", c.data, address))
		service := softhsmtest.Start(t, c.program, "serve", c.conf)
		if !service.Ready(func() bool {
			response, err := http.Get("http://" + address + "/v2/")
			if err == nil {
				response.Body.Close()
			}
			return err == nil
		}) {
			t.Log(service.Stop())
			continue
		}
		job(openStore(t, c.front.address))
		service.Stop()
		return
	}
	t.Fatal("the registry did not start")
}

// collect collects the garbage, and returns what was told of it.
func (c *collected) collect(t testing.TB) string {
	t.Helper()
	return softhsmtest.Run(t, c.program, "garbage-collect", "--delete-untagged=true", c.conf)
}

// TestGarbageCollection verifies that garbage collection deletes old files, and neither what is published nor what is
// proposed.
func TestGarbageCollection(t *testing.T) {
	c := newCollected(t)
	old := set("old", "timestamp.json", "1.snapshot.json", "1.root.json")
	fresh := set("new", "timestamp.json", "2.snapshot.json", "2.root.json")
	accepted, pending := set("accepted", "1.alice.json"), set("pending", "2.alice.json", "1.bob.json")
	var before *tufstore.Published
	c.run(t, func(store *tufstore.Store) {
		before = publish(t, store, old)
		for _, files := range []map[string][]byte{accepted, pending} {
			p, err := store.Propose(t.Context(), files)
			if err != nil {
				t.Fatal(err)
			}
			if _, both := files["1.alice.json"]; both {
				if err := store.Publish(t.Context(), before, merge(fresh, accepted), []string{"1.root.json"}); err != nil {
					t.Fatal(err)
				}
				if err := store.Withdraw(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	report := c.collect(t)
	c.run(t, func(store *tufstore.Store) {
		published, err := store.Published(t.Context())
		if err != nil {
			t.Fatalf("%v\n%s", err, report)
		}
		expect(t, published, merge(fresh, accepted, set("old", "1.root.json")))
		proposals, err := store.Proposals(t.Context())
		if err != nil || len(proposals) != 1 || proposals[0].Refused != nil ||
			!maps.EqualFunc(proposals[0].Files, pending, func(a, b []byte) bool { return string(a) == string(b) }) {
			t.Errorf("%d proposals: %v\n%s", len(proposals), err, report)
		}
		// What nobody needs any more is gone. It is not taken for what was never published, and is not published again.
		_, err = before.Read(t.Context(), "1.snapshot.json", 1<<20)
		expectHint(t, err, failure.Unavailable, "has lost a blob")
		err = store.Publish(t.Context(), before, fresh, []string{"1.snapshot.json"})
		expectHint(t, err, failure.Unavailable, "has lost a blob")
		publishProposals(t, store, "newer")
	})
	c.collect(t)
	c.run(t, func(store *tufstore.Store) {
		published, err := store.Published(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		expect(t, published, merge(fresh, accepted, set("old", "1.root.json"), pending, set("newer", "timestamp.json")))
	})
}
