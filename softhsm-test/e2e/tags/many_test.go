package tags

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// meter counts the bytes, in both directions, and the requests that a registry gets.
type meter struct {
	t     testing.TB
	proxy *proxy
	bytes *atomic.Int64
}

// measure calls do, and verifies that it moves at most so many bytes, with at most so many requests.
func (m *meter) measure(what string, most int64, requests int, do func()) {
	m.t.Helper()
	m.proxy.take("")
	before := m.bytes.Load()
	do()
	moved, sent := m.bytes.Load()-before, m.proxy.take("")
	m.t.Logf("%s: %d bytes, %d requests", what, moved, len(sent))
	if moved > most || len(sent) > requests {
		m.t.Errorf("%s moves %d bytes with %d requests, more than %d with %d: %v", what, moved, len(sent), most, requests,
			sent)
	}
}

// TestManyTags verifies that among 10,000 tags, signing one and resolving one move less than 200 KB.
func TestManyTags(t *testing.T) {
	const count, most, many = 10_000, 200_000, 1 << 30
	s := newScene(t)
	m := &meter{t: t, proxy: newProxy(t, s.registry, nil)}
	s.registry, m.bytes = oci.CountingProxy(t, m.proxy.address)
	s.name = s.registry + "/" + repository
	s.init()
	all := tuf.Change{}
	for i := range count {
		all.Set = append(all.Set, tuf.Target{Tag: fmt.Sprintf("v1.%d.%d", i/100, i%100), Size: 1234,
			Digest: digest.FromString(fmt.Sprint(i))})
	}
	s.withSigners([]string{"targets", "snapshot", "timestamp"}, func(signers []*tuf.Signer) {
		m.measure("signing 10,000 tags", 64<<20, many, func() {
			result, err := s.repositoryAt(s.registry).Change(t.Context(), all, signers, time.Hour)
			if err != nil || !result.Published {
				t.Fatalf("%+v: %v", result, err)
			}
		})
	})

	// The many tags of one role do not hide those of the roles after it.
	s.keys("alice")
	s.tag(slices.Concat([]string{"delegate", "add", s.name, "alice", "--paths", "release-*", "--key", s.uri("alice"),
		"--targets", s.uri("targets"), "--wait", patience}, s.online())...)
	s.resolves("release-1", s.sign("release-1", s.uri("alice")), "alice")

	sum := s.push("v2")
	signs := func(what string) {
		t.Helper()
		m.measure("signing one tag, "+what, most, many, func() {
			s.tag("sign", s.name+":v2", "--key", s.uri("targets"), "--wait", "0")
		})
	}
	s.forget()
	signs("by someone who has seen nothing")
	m.measure("publishing it", 2<<20, many, func() { s.refresh() })
	s.resolves("v2", sum, "tags")
	sum = s.pushAs("v2", "another image")
	signs("by someone who has signed before")
	waits := s.repositoryAt(s.registry)
	status := func() {
		t.Helper()
		if status, err := waits.Status(t.Context()); err != nil || len(status.Proposals) != 1 {
			t.Errorf("%+v: %v", status, err)
		}
	}
	status()
	m.measure("looking again at what is proposed", 20_000, 4, status)
	s.refresh()
	s.resolves("v2", sum, "tags")

	r := s.repositoryAt(s.registry)
	resolve := func(what string, bytes int64, requests int, tag string, want digest.Digest) {
		t.Helper()
		m.measure("resolving one tag, "+what, bytes, requests, func() {
			if got := resolveOne(t, r, tag); got != want {
				t.Errorf("%s is %s, not %s", tag, got, want)
			}
		})
	}
	resolve("by someone who has seen nothing", most, many, "v1.1.1", digest.FromString("101"))
	resolve("again", most, 1, "v1.1.1", digest.FromString("101"))
	s.pushAs("v2", "a third image")
	s.tag(append([]string{"sign", s.name + ":v2", "--key", s.uri("targets"), "--wait", patience}, s.online()...)...)
	resolve("after another was signed", most, many, "v1.1.1", digest.FromString("101"))
	resolve("of those that are still unknown", most, many, "v1.99.99", digest.FromString("9999"))
	s.refresh()
	resolve("after a new timestamp", most, many, "v1.99.99", digest.FromString("9999"))
	if list := s.list(); len(list) != count+2 {
		t.Errorf("%d tags are listed", len(list))
	}
	readable(t, s.published())
}

// resolveOne returns what a tag is.
func resolveOne(t testing.TB, r *tags.Repository, tag string) digest.Digest {
	t.Helper()
	v, _, err := r.View(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	target, err := v.Resolve(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	return target.Digest
}
