// Package storetest has the contract of stores as tests, which each engine passes.
package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Run tests an engine. open opens the same store each time; it is closed before it is opened again.
func Run(t *testing.T, open func(*testing.T) store.Store) {
	t.Helper()
	c := &contract{T: t, open: open, Store: open(t)}
	for name, test := range map[string]func(*contract){
		"batches": batches, "requests": requests, "snapshots": snapshots, "documents": documents, "erased": erased,
		"readers": readers,
		"notices": notices, "retain": retain,
	} {
		c.Close()
		c.Store = open(t)
		if !t.Run(name, func(t *testing.T) {
			c.T = t
			test(c)
		}) {
			return // the others find what it has left
		}
	}
	c.Close()
}

// contract is a store under test.
type contract struct {
	*testing.T
	store.Store
	open func(*testing.T) store.Store
}

// must ends the test on a failure.
func (c *contract) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// fails ends the test unless an error is of a kind.
func (c *contract) fails(err error, kind failure.Kind) {
	c.Helper()
	if !failure.Is(err, kind) {
		c.Fatalf("want %s, got %v", kind, err)
	}
}

// size returns the number of entries.
func (c *contract) size() int64 {
	c.Helper()
	n, err := c.Size(c.Context())
	c.must(err)
	return n
}

// entries returns the entries from first to end.
func (c *contract) entries(first, end int64) (all [][]byte) {
	c.Helper()
	c.must(c.Entries(c.Context(), first, end, func(index int64, entry []byte) error {
		if index != first+int64(len(all)) {
			return fmt.Errorf("entry %d follows %d entries from %d", index, len(all), first)
		}
		all = append(all, bytes.Clone(entry))
		return nil
	}))
	return all
}

// reopen closes the store and opens it again.
func (c *contract) reopen() {
	c.Helper()
	c.must(c.Close())
	c.Store = c.open(c.T)
}

// batches tests that a batch is durable, all of it or nothing.
func batches(c *contract) {
	first := c.size()
	b := &store.Batch{First: first, Entries: [][]byte{[]byte("a"), []byte("b")}, Checkpoint: []byte("checkpoint"),
		Tiles: []store.Tile{{Level: 3, Index: 7, Hashes: make([]byte, 32)}}, Meta: map[string][]byte{"feed": {1}}}
	c.must(c.Commit(c.Context(), b))
	c.fails(c.Commit(c.Context(), &store.Batch{First: first, Entries: [][]byte{[]byte("x")},
		Tiles: []store.Tile{{Level: 3, Index: 7, Hashes: make([]byte, 64)}}, Checkpoint: []byte("x")}), failure.Conflict)
	c.fails(c.Commit(c.Context(), &store.Batch{First: first + 3}), failure.Conflict)
	c.must(c.Commit(c.Context(), &store.Batch{First: first + 2}))
	grown := bytes.Repeat([]byte{1}, 64)
	c.must(c.Commit(c.Context(), &store.Batch{First: first + 2, Entries: [][]byte{[]byte("c")},
		Tiles: []store.Tile{{Level: 3, Index: 7, Hashes: grown}}}))
	c.reopen()
	if got := c.entries(first, first+9); len(got) != 3 || string(got[0])+string(got[1])+string(got[2]) != "abc" {
		c.Errorf("entries %q", got)
	}
	if got := c.entries(first+1, first+2); len(got) != 1 || string(got[0]) != "b" {
		c.Errorf("entries %q", got)
	}
	stop := errors.New("stop")
	if err := c.Entries(c.Context(), first, first+3, func(int64, []byte) error { return stop }); !errors.Is(err, stop) {
		c.Errorf("%v instead of the caller's error", err)
	}
	tile, err := c.Tile(c.Context(), 3, 7)
	if err != nil || !bytes.Equal(tile, grown) {
		c.Errorf("tile %x, %v", tile, err)
	}
	_, err = c.Tile(c.Context(), 3, 8)
	c.fails(err, failure.NotFound)
	if got, err := c.Checkpoint(c.Context()); err != nil || string(got) != "checkpoint" {
		c.Errorf("checkpoint %q, %v", got, err)
	}
	if got, err := c.Meta(c.Context(), "feed"); err != nil || len(got) != 1 {
		c.Errorf("meta %x, %v", got, err)
	}
	if got, err := c.Meta(c.Context(), "none"); err != nil || got != nil {
		c.Errorf("meta %x, %v", got, err)
	}
	cancelled, cancel := context.WithCancel(c.Context())
	cancel()
	if err := c.Commit(cancelled, &store.Batch{First: first + 3, Entries: [][]byte{[]byte("d")}}); err == nil {
		c.Error("a cancelled commit has no error")
	}
	if c.size() != first+3 {
		c.Errorf("%d entries", c.size())
	}
	secret, err := c.Secret(c.Context())
	if err != nil || len(secret) != 32 || bytes.Equal(secret, make([]byte, 32)) {
		c.Errorf("secret %x, %v", secret, err)
	}
}

// requests tests rows and their lists.
func requests(c *contract) {
	at := time.UnixMilli(1_800_000_000_123).UTC()
	var all []store.Request
	for i := range 30 {
		all = append(all, store.Request{ID: fmt.Sprintf("r%02d", i), Created: at, Changed: at, Key: fmt.Sprint("key", i%2),
			State: []string{"signed", "pending", "lost"}[i%3], Requester: fmt.Sprint("who", i%5), Rule: "rule",
			Digest: fmt.Sprint("d", i%7), Repository: fmt.Sprint("repository", i%6), Body: []byte(`{}`)})
	}
	c.must(c.Commit(c.Context(), &store.Batch{First: c.size(), Requests: all}))
	changed := all[4]
	changed.State, changed.Signature, changed.Changed, changed.Body = "signed", []byte("s"), at.Add(time.Second),
		[]byte("[]")
	c.must(c.Commit(c.Context(), &store.Batch{First: c.size(), Requests: []store.Request{changed}}))
	c.reopen()
	got, err := c.Request(c.Context(), "r04")
	if err != nil || fmt.Sprint(*got) != fmt.Sprint(changed) {
		c.Errorf("%+v, %v, instead of %+v", got, err, changed)
	}
	_, err = c.Request(c.Context(), "none")
	c.fails(err, failure.NotFound)
	for _, one := range []struct {
		q    store.Query
		want string // with > behind the last if there is a next page
	}{
		{store.Query{Limit: 3}, "[r29 r28 r27]>"},
		{store.Query{Limit: 3, Before: "r10"}, "[r09 r08 r07]>"},
		{store.Query{Limit: 100, State: "lost"}, "[r29 r26 r23 r20 r17 r14 r11 r08 r05 r02]"},
		{store.Query{Limit: 2, State: "signed", Key: "key0", Before: "r20"}, "[r18 r12]>"},
		{store.Query{Limit: 100, Requester: "who4", State: "pending"}, "[r19]"},
		{store.Query{Limit: 100, Requester: "nobody"}, "[]"},
		{store.Query{Limit: 100, Digest: "d6"}, "[r27 r20 r13 r06]"},
		{store.Query{Limit: 2, Repository: "repository5"}, "[r29 r23]>"},
		{store.Query{Limit: 100, Repository: "repository5", Digest: "d1", Before: "r29"}, "[]"},
		{store.Query{IDs: []string{"r03", "none", "r11", "r05"}}, "[r11 r05 r03]"},
		{store.Query{IDs: []string{"r03", "r11", "r05"}, Limit: 1, Before: "r11"}, "[r05]>"},
		{store.Query{IDs: []string{"r03", "r11", "r05"}, State: "lost"}, "[r11 r05]"},
		{store.Query{IDs: []string{}, Limit: 9}, "[]"},
	} {
		page, err := c.Requests(c.Context(), one.q)
		c.must(err)
		ids := []string{}
		for _, r := range page.Requests {
			ids = append(ids, r.ID)
		}
		got := fmt.Sprint(ids)
		if page.Before != "" {
			got += ">"
		}
		if got != one.want {
			c.Errorf("%+v lists %s, not %s", one.q, got, one.want)
		}
	}
	_, err = c.Requests(c.Context(), store.Query{IDs: make([]string, store.MaxLimit+1)})
	c.fails(err, failure.Invalid)
	_, err = c.Requests(c.Context(), store.Query{IDs: make([]string, store.MaxLimit)})
	c.must(err)
}

// notices tests that a notice is queued once, is listed while it waits, and is claimed once for each attempt.
func notices(c *contract) {
	at := time.UnixMilli(1_800_000_000_123).UTC()
	one := store.Notice{ID: "one", Channel: "mail", Recipient: "alice", Created: at, Due: at.Add(time.Second),
		Body: []byte("body")}
	two := store.Notice{ID: "two", Channel: "hook", Created: at, Due: at, Body: []byte{}}
	c.must(c.Commit(c.Context(), &store.Batch{First: c.size(), Notices: []store.Notice{one, two}}))
	other := one
	other.Body = []byte("other")
	c.must(c.Commit(c.Context(), &store.Batch{First: c.size(), Notices: []store.Notice{other, other}}))
	c.fails(c.Commit(c.Context(), &store.Batch{First: c.size(), Entries: [][]byte{{1}},
		Notices: []store.Notice{{ID: "large", Body: make([]byte, store.MaxNotice+1)}}}), failure.Invalid)
	c.fails(c.Commit(c.Context(), &store.Batch{First: c.size() + 1, Notices: []store.Notice{{ID: "three"}}}),
		failure.Conflict)
	c.reopen()
	want := func(channel string, due time.Time, limit int, want ...store.Notice) {
		c.Helper()
		got, err := c.Notices(c.Context(), channel, due, limit)
		c.must(err)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			c.Errorf("channel %q, limit %d, has %v due at %v, not %v", channel, limit, got, due, want)
		}
	}
	want("", one.Due, 10, two, one)
	want("", one.Due, 1, two)
	want("mail", one.Due, 10, one)
	want("mail", at, 10)
	claims := make(chan error)
	for range 4 {
		go func() { claims <- c.Postpone(c.Context(), "one", at.Add(time.Hour), 1) }()
	}
	made := 0
	for range 4 {
		if err := <-claims; err == nil {
			made++
		} else {
			c.fails(err, failure.Conflict)
		}
	}
	if made != 1 {
		c.Errorf("%d claims of one attempt", made)
	}
	one.Due, one.Attempts = at.Add(time.Hour), 1
	want("mail", one.Due.Add(-time.Millisecond), 10)
	want("mail", one.Due, 10, one)
	c.must(c.Noticed(c.Context(), "one", at))
	c.must(c.Noticed(c.Context(), "one", at.Add(store.KeepNotices))) // it has ended before
	c.must(c.Noticed(c.Context(), "none", at))
	c.fails(c.Postpone(c.Context(), "one", at, 2), failure.Conflict)
	queue := func() { c.must(c.Commit(c.Context(), &store.Batch{First: c.size(), Notices: []store.Notice{other}})) }
	queue()
	want("", at.Add(time.Hour), 10, two)
	c.must(c.Noticed(c.Context(), "two", at.Add(store.KeepNotices)))
	queue()
	want("", at.Add(time.Hour), 10)
	c.must(c.Noticed(c.Context(), "two", at.Add(store.KeepNotices+time.Millisecond))) // now one is forgotten
	queue()
	want("", at.Add(time.Hour), 10, other)
	c.must(c.Noticed(c.Context(), "one", at))
}

// snapshots tests that the newest one is found, and that old ones are deleted.
func snapshots(c *contract) {
	for size := int64(1); size < 5; size++ {
		c.must(c.Commit(c.Context(), &store.Batch{First: c.size(),
			Snapshot: &store.Snapshot{Size: size, Data: []byte{byte(size)}}}))
	}
	c.reopen()
	if got, err := c.Snapshot(c.Context()); err != nil || got == nil || got.Size != 4 || got.Data[0] != 4 {
		c.Errorf("%+v, %v", got, err)
	}
}

// documents tests that documents are found by their SHA-256, however often they are written.
func documents(c *contract) {
	data := []byte("document")
	for range 2 {
		c.must(c.Commit(c.Context(), &store.Batch{First: c.size(), Documents: [][]byte{data}}))
	}
	got, err := c.Document(c.Context(), sha256.Sum256(data))
	if err != nil || !bytes.Equal(got, data) {
		c.Errorf("%q, %v", got, err)
	}
	_, err = c.Document(c.Context(), [32]byte{})
	c.fails(err, failure.NotFound)
}

// erased tests that documents are deleted with a batch or not at all, and that what is kept outlives a purge.
func erased(c *contract) {
	kept, gone, both := []byte("kept"), []byte("gone"), []byte("both")
	c.must(c.Commit(c.Context(), &store.Batch{First: c.size(), Documents: [][]byte{kept, gone}}))
	c.fails(c.Commit(c.Context(), &store.Batch{First: c.size() + 1, Erased: [][32]byte{sha256.Sum256(gone)}}),
		failure.Conflict)
	if got, err := c.Document(c.Context(), sha256.Sum256(gone)); err != nil || !bytes.Equal(got, gone) {
		c.Errorf("%q, %v", got, err)
	}
	c.must(c.Commit(c.Context(), &store.Batch{First: c.size(), Entries: [][]byte{{1}}, Documents: [][]byte{both},
		Erased: [][32]byte{sha256.Sum256(gone), sha256.Sum256(both), {}}}))
	size := c.size()
	c.must(c.Purge(c.Context()))
	c.reopen()
	for _, data := range [][]byte{gone, both} {
		_, err := c.Document(c.Context(), sha256.Sum256(data))
		c.fails(err, failure.NotFound)
	}
	if got, err := c.Document(c.Context(), sha256.Sum256(kept)); err != nil || !bytes.Equal(got, kept) ||
		c.size() != size {
		c.Errorf("%q, %v, %d entries", got, err, c.size())
	}
}

// readers tests that those who read see whole batches while others are written.
func readers(c *contract) {
	first := c.size()
	var group sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if n, err := c.Size(c.Context()); err != nil || (n-first)%3 != 0 {
					c.Errorf("%d entries of batches of 3, %v", n-first, err)
					return
				}
			}
		})
	}
	for i := range int64(50) {
		c.must(c.Commit(c.Context(), &store.Batch{First: first + 3*i, Entries: [][]byte{{1}, {2}, {3}}}))
	}
	close(done)
	group.Wait()
}

// retain tests that old requests and their documents are deleted, and that nothing else is.
func retain(c *contract) {
	now := time.Now()
	old := now.AddDate(-1, -2, 0)
	var b store.Batch
	for i, at := range []time.Time{old, old.AddDate(0, 1, 0), now, now.AddDate(40, 0, 0)} {
		id := store.FirstID(at) + "ab"
		b.Requests = append(b.Requests, store.Request{ID: id, Repository: "retained", Body: []byte{}})
		b.RequestDocuments = append(b.RequestDocuments, store.RequestDocument{Request: id, Data: fmt.Append(nil, "of", i)},
			store.RequestDocument{Request: id, Data: []byte("of all")})
	}
	b.Requests = append(b.Requests, store.Request{ID: "gone", Repository: "retained", Body: []byte{}}) // no time
	b.Documents = [][]byte{[]byte("kept beside"), []byte("of 0 and kept")}
	b.RequestDocuments = append(b.RequestDocuments,
		store.RequestDocument{Request: b.Requests[0].ID, Data: []byte("of 0 and kept")},
		store.RequestDocument{Request: b.Requests[0].ID, Data: []byte("of 0, kept later")})
	b.First, b.Entries = c.size(), [][]byte{{1}}
	c.must(c.Commit(c.Context(), &b))
	c.must(c.Commit(c.Context(), &store.Batch{First: c.size(), Documents: [][]byte{[]byte("of 0, kept later")}}))
	want := func(requests int, documents ...string) {
		c.Helper()
		c.reopen()
		got, err := c.Requests(c.Context(), store.Query{Repository: "retained", Limit: 9})
		c.must(err)
		if len(got.Requests) != requests {
			c.Errorf("%d requests, not %d", len(got.Requests), requests)
		}
		var found []string
		for _, d := range []string{"of0", "of1", "of2", "of3", "of all", "kept beside", "of 0 and kept", "of 0, kept later"} {
			if _, err := c.Document(c.Context(), sha256.Sum256([]byte(d))); err == nil {
				found = append(found, d)
			} else {
				c.fails(err, failure.NotFound)
			}
		}
		if fmt.Sprint(found) != fmt.Sprint(documents) {
			c.Errorf("documents %q, not %q", found, documents)
		}
	}
	all := []string{"of0", "of1", "of2", "of3", "of all", "kept beside", "of 0 and kept", "of 0, kept later"}
	c.must(c.Retain(c.Context(), time.Time{}))
	want(5, all...)
	c.must(c.Retain(c.Context(), old.AddDate(0, -1, 0)))
	want(5, all...)
	c.must(c.Retain(c.Context(), now.AddDate(0, -1, 0)))
	want(3, all[2:]...)
	c.must(c.Retain(c.Context(), now.AddDate(0, -1, 0)))
	want(3, all[2:]...)
}
