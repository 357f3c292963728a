package broker

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// counting is a store that counts how often it is read.
type counting struct {
	store.Store
	mu    sync.Mutex
	calls map[string]int
}

func (c *counting) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[what]++
}

// reset returns the counts, and begins anew.
func (c *counting) reset() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.calls
	c.calls = map[string]int{}
	return old
}

func (c *counting) Request(ctx context.Context, id string) (*store.Request, error) {
	c.count("request")
	return c.Store.Request(ctx, id)
}

func (c *counting) Requests(ctx context.Context, q store.Query) (*store.Page, error) {
	c.count("requests")
	return c.Store.Requests(ctx, q)
}

func (c *counting) Document(ctx context.Context, hash [32]byte) ([]byte, error) {
	c.count("document")
	return c.Store.Document(ctx, hash)
}

func (c *counting) Entries(ctx context.Context, first, end int64, each func(int64, []byte) error) error {
	c.count("entries")
	return c.Store.Entries(ctx, first, end, each)
}

func (c *counting) Tile(ctx context.Context, level int, index int64) ([]byte, error) {
	c.count("tile")
	return c.Store.Tile(ctx, level, index)
}

// crowd returns a broker with many people and many open requests, and its store. It asks two of the first half of the
// people, and one of the others.
func crowd(t *testing.T, people, requests int) (*fixture, *counting) {
	t.Helper()
	f := newFixture(t)
	f.people = map[string]*ecdsa.PrivateKey{}
	var names [2][]string
	for n := range people {
		name := fmt.Sprintf("person%04d", n)
		f.people[name] = generate(t)
		names[n*2/people] = append(names[n*2/people], name)
	}
	f.policy = fmt.Sprintf(`
version: 1
keys:
  release:
    key: pkcs11:token=test;object=release
    formats: [notation]
    use:
    - name: release
      approvals: [{group: managers, quorum: 2}, {group: security, quorum: 1}]
      timeout: 72h
    modify: [{name: security, approvals: [{group: security, quorum: 1}]}]
groups:
  managers: [%s]
  security: [%s]
`, strings.Join(names[0], ", "), strings.Join(names[1], ", "))
	f.unpublished = 1_000_000
	f.start()
	s := &counting{Store: f.store, calls: map[string]int{}}
	if err := f.look(t.Context(), func(d *decision) { d.b.options.Store = s }); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var group sync.WaitGroup
	for worker := range 64 {
		group.Go(func() {
			for n := worker; n < requests; n += 64 {
				if _, err := f.Sign(t.Context(), caller("ci"), "release", f.image(n)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	t.Logf("%d people, %d requests: made in %s", people, requests, time.Since(began))
	f.publishAll()
	return f, s
}

// TestScale reads the store no more often with many open requests and people than with few, and shows how long each
// call takes.
func TestScale(t *testing.T) {
	t.Parallel()
	requests, people := 10_000, 1000
	if testing.Short() {
		requests, people = 500, 100
	}
	few, many := measure(t, 10, 10), measure(t, people, requests)
	for _, name := range slices.Sorted(maps.Keys(many)) {
		if few[name] == nil {
			continue
		}
		for what, n := range many[name] {
			// A proof is as long as the tree is high.
			if most := few[name][what]; n > most && (what != "tile" || n > 6*most+6) {
				t.Errorf("%s calls %s %d times, and with few requests %d times", name, what, n, most)
			}
		}
	}
}

// measure returns how often each call reads the store.
func measure(t *testing.T, people, requests int) map[string]map[string]int {
	t.Helper()
	f, s := crowd(t, people, requests)
	defer f.stop()
	calls := map[string]map[string]int{}
	timed := func(name string, call func() error) {
		t.Helper()
		s.reset()
		began := time.Now()
		if err := call(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Logf("%d requests: %s takes %s", requests, name, time.Since(began))
		if calls[name] = s.reset(); len(calls[name]) > 0 {
			t.Log(calls[name])
		}
	}
	me := identity.Approver("person0000")
	var first, later *brokerapi.Requests
	page := func(q Query, into **brokerapi.Requests) func() error {
		q.Limit = 5
		return func() (err error) {
			*into, err = f.Requests(t.Context(), me, q)
			if err == nil && len((*into).Requests) != 5 {
				t.Errorf("%+v has %d requests", q, len((*into).Requests))
			}
			return err
		}
	}
	timed("all", page(Query{}, &first))
	timed("all, later", page(Query{Before: first.Before}, &later))
	timed("mine", page(Query{Mine: true}, &first))
	timed("mine, later", page(Query{Mine: true, Before: first.Before}, &later))
	timed("approvers", func() error { _, err := f.Approvers(t.Context(), "", 5); return err })
	timed("approvers, later", func() error { _, err := f.Approvers(t.Context(), "person0004", 5); return err })
	id := later.Requests[4].ID
	timed("request", func() error { _, err := f.Request(t.Context(), me, id); return err })
	timed("evidence", func() error { _, err := f.Evidence(t.Context(), me, id); return err })
	var envelope []byte
	s.reset()
	envelope = f.envelope("person0000", id, approval.Approve, "")
	timed("approve", func() error { _, err := f.Approve(t.Context(), me, id, envelope); return err })
	if requests < 100 {
		return calls
	}
	// What happens at once for many requests is done in parts, so that signatures go on meanwhile.
	longest := func(name string, call func() error) {
		t.Helper()
		done := make(chan error)
		go func() { done <- call() }()
		began, most := time.Now(), time.Duration(0)
		for {
			asked := time.Now()
			if err := f.look(t.Context(), func(*decision) {}); err != nil {
				t.Fatal(err)
			}
			most = max(most, time.Since(asked))
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d requests: %s takes %s, and others wait %s at most", requests, name, time.Since(began), most)
				return
			default:
				time.Sleep(time.Millisecond)
			}
		}
	}
	longest("look at times", func() error { f.expire(); return nil })
	removed := f.credentialOf("person0001")
	err := f.do(t.Context(), func(d *decision) error { // approvals of one person, who does not sign each of them here
		for id, r := range d.Requests {
			err := d.event(Event{Type: approved, Request: id, Key: r.Key, Approver: f.personID("person0001"),
				Credential: removed, Approval: hashOf([]byte(id)), Signed: hashOf([]byte(id)), Statement: r.Statement})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	longest("list for whom nothing waits", func() error {
		all, err := f.Requests(t.Context(), identity.Approver("person0001"), Query{Mine: true, Limit: 5})
		if err == nil && len(all.Requests) > 0 {
			t.Errorf("%d requests wait", len(all.Requests))
		}
		return err
	})
	remove, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeRemove, Credential: removed})
	if err != nil {
		t.Fatal(err)
	}
	last := fmt.Sprintf("person%04d", people-1)
	longest("removal", func() error {
		now, err := f.decide(last, remove.ID, approval.Approve)
		if err == nil && now.State != brokerapi.Signed {
			t.Errorf("%+v", now)
		}
		return err
	})
	f.later(73 * time.Hour)
	longest("expiry", func() error { f.expire(); return nil })
	return calls
}
