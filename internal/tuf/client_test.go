package tuf

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// history is a repository with an earlier state, and the one after it.
type history struct {
	*world
	old memory
}

// newHistory has v1 in the old state, and v1 as another image in the new one.
func newHistory(t *testing.T) *history {
	t.Helper()
	h := &history{world: newWorld(t)}
	h.signTag("v1", "one")
	h.old = maps.Clone(h.published)
	h.signTag("v1", "two")
	return h
}

func (h *history) signTag(tag, content string) {
	h.t.Helper()
	changed := target(content)
	changed.Tag = tag
	h.propose(h.view().Amend(h.t.Context(), nil, Tags, Change{Set: []Target{changed}}, []*Signer{h.targets}))
	h.publish()
}

// changed is the reason for a file that is not the signed one.
const changed = "a file is not the signed one"

// refused fails unless a client refuses files, with words in its reason.
func refused(t *testing.T, c Client, files Files, words string) {
	t.Helper()
	v, err := c.Update(t.Context(), files)
	if err == nil {
		_, err = v.Resolve(t.Context(), "v1")
	}
	if err == nil || failure.From(err).Kind != failure.Denied || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v, want a refusal with %q", err, words)
	}
}

// accept fails unless a client takes files.
func accept(t *testing.T, c Client, files Files) *View {
	t.Helper()
	v, err := c.Update(t.Context(), files)
	if err == nil {
		_, err = v.Resolve(t.Context(), "v1")
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestAttacks has a registry that serves something else than the newest metadata, one attack of TUF's list (section
// 1.5.2) after another.
func TestAttacks(t *testing.T) {
	h := newHistory(t)
	seen := func() Client {
		c := Client{Root: h.pin, Dir: t.TempDir()}
		accept(t, c, h.published)
		return c
	}
	with := func(changes map[string][]byte) memory {
		m := maps.Clone(h.published)
		maps.Copy(m, changes)
		return m
	}
	t.Run("rollback", func(t *testing.T) { refused(t, seen(), h.old, "went back to an older version") })
	t.Run("freeze", func(t *testing.T) {
		c := seen()
		c.Now = time.Now().Add(25 * time.Hour)
		refused(t, c, h.published, "has expired")
	})
	t.Run("mix and match", func(t *testing.T) {
		refused(t, Client{Root: h.pin, Dir: t.TempDir()},
			with(map[string][]byte{"3.snapshot.json": h.old["2.snapshot.json"]}), changed)
	})
	t.Run("old tags under a new snapshot", func(t *testing.T) {
		refused(t, Client{Root: h.pin, Dir: t.TempDir()}, with(map[string][]byte{"3.tags.json": h.old["2.tags.json"]}),
			changed)
	})
	t.Run("endless data", func(t *testing.T) {
		refused(t, Client{Root: h.pin, Dir: t.TempDir()}, endless{h.published}, changed)
	})
	t.Run("arbitrary software", func(t *testing.T) {
		other := newHistory(t)
		refused(t, Client{Root: h.pin, Dir: t.TempDir()}, other.published, "lacks signatures by enough of the role's keys")
	})
	t.Run("root of another", func(t *testing.T) {
		other := newWorld(t)
		root, err := other.view().Root().Next(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := root.Sign(t.Context(), []*Signer{other.root}); err != nil {
			t.Fatal(err)
		}
		data, err := root.Encode()
		if err != nil {
			t.Fatal(err)
		}
		refused(t, Client{Root: h.pin, Dir: t.TempDir()}, with(map[string][]byte{"2.root.json": data}),
			"lacks signatures by enough of the role's keys")
	})
	t.Run("extraneous dependencies", func(t *testing.T) { // tags in targets.json, which delegates alone
		m := metadata.Targets(expiry(day))
		m.Signed.Delegations = h.view().trusted.Targets[Targets].Signed.Delegations
		m.Signed.Targets["v1"] = &metadata.TargetFiles{Length: 1, Hashes: metadata.Hashes{"sha256": make([]byte, 32)}}
		if err := checkDelegations(m); err == nil || !strings.Contains(err.Error(), "lists tags itself") {
			t.Error(err)
		}
	})
	t.Run("garbage", func(t *testing.T) {
		refused(t, Client{Root: h.pin, Dir: t.TempDir()}, with(map[string][]byte{"timestamp.json": []byte(
			strings.Repeat("[", 100))}), "cannot read the tag metadata timestamp.json")
	})
	t.Run("remembered", func(t *testing.T) { // by another process
		c := seen()
		refused(t, Client{Root: h.pin, Dir: c.Dir}, h.old, "went back to an older version")
	})
}

// endless is a set of files whose snapshot is longer than signed.
type endless struct{ memory }

func (e endless) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	if strings.HasSuffix(name, ".snapshot.json") {
		return make([]byte, limit+1), nil
	}
	return e.memory.Read(ctx, name, limit)
}

// down is a registry that does not answer.
type down struct{}

func (down) Read(context.Context, string, int64) ([]byte, error) {
	return nil, failure.New(failure.Unavailable, "connection refused")
}

func TestStale(t *testing.T) {
	h := newHistory(t)
	c := Client{Root: h.pin, Dir: t.TempDir(), Stale: 72 * time.Hour}
	if _, err := c.Update(t.Context(), down{}); err == nil || failure.From(err).Kind != failure.Unavailable {
		t.Errorf("nothing is remembered: %v", err)
	}
	accept(t, c, h.published)
	for _, files := range []Files{down{}, nil} {
		c.Now = time.Now().Add(71 * time.Hour) // the timestamp has expired
		v := accept(t, c, files)
		if got, err := v.Resolve(t.Context(), "v1"); err != nil || !got.Stale {
			t.Errorf("%+v, %v", got, err)
		}
		c.Now = time.Now().Add(73 * time.Hour)
		if _, err := c.Update(t.Context(), files); err == nil || failure.From(err).Kind != failure.Unavailable ||
			!strings.Contains(err.Error(), "more than 72h0m0s ago") {
			t.Errorf("after 73 hours: %v", err)
		}
	}
	c.Now = time.Time{}
	refused(t, c, h.old, "went back to an older version") // it answers
	c.Stale = 0
	if _, err := c.Update(t.Context(), nil); err == nil || failure.From(err).Kind != failure.Unavailable {
		t.Errorf("without stale: %v", err)
	}
}

// TestNewPin has users pin another root, after too many root keys were lost.
func TestNewPin(t *testing.T) {
	h, anew := newHistory(t), newHistory(t)
	c := Client{Root: h.pin, Dir: t.TempDir()}
	accept(t, c, h.published)
	c.Root = anew.pin
	accept(t, c, anew.published)
	refused(t, c, h.published, "lacks signatures by enough of the role's keys")
}

func TestPinIsChecked(t *testing.T) {
	h := newHistory(t)
	root, err := ParseRoot(h.pin, nil)
	if err != nil {
		t.Fatal(err)
	}
	root.m.Signatures = []metadata.Signature{}
	data, err := root.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CheckPin(data); err == nil || !strings.Contains(err.Error(), "lacks 1 signatures") {
		t.Errorf("a root without signatures: %v", err)
	}
	refused(t, Client{Root: data, Dir: t.TempDir()}, h.published, "lacks signatures by enough of the role's keys")
}

// TestOtherPin verifies that a client that gets another root forgets what it has seen of the one before, and that one
// that gets the newest root of the same repository does not.
func TestOtherPin(t *testing.T) {
	h := newHistory(t)
	c := Client{Root: h.pin, Dir: t.TempDir()}
	accept(t, c, h.published)
	c.Root = h.published["1.root.json"]
	refused(t, c, h.old, "went back to an older version")

	again := &world{t: t, root: newSigner(t), targets: h.targets, snapshot: h.snapshot, timestamp: h.timestamp,
		dir: t.TempDir()}
	root, err := NewRoot(one(again.root), one(again.targets), one(again.snapshot), one(again.timestamp))
	h.must(err)
	h.must(root.Sign(t.Context(), []*Signer{again.root}))
	again.pin, err = root.Encode()
	h.must(err)
	first, err := Begin(t.Context(), root, []*Signer{again.targets, again.snapshot, again.timestamp})
	h.must(err)
	again.published = memory(first.Files)

	refused(t, c, again.published, "went back to an older version")
	c.Root = again.pin
	refused(t, c, again.published, "tag v1 is not signed")
	h.world = again
	h.signTag("v1", "three")
	accept(t, c, h.published)
}

// TestDamagedMemory refuses, with the file's path, when a remembered file is damaged: to forget it would hide that the
// registry went back.
func TestDamagedMemory(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	client := Client{Root: w.pin, Dir: dir}
	if _, err := client.Update(t.Context(), w.published); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, Timestamp+".json")
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Update(t.Context(), w.published); err == nil || !strings.Contains(err.Error(), path) ||
		failure.From(err).Kind != failure.Invalid {
		t.Errorf("with a damaged file: %v", err)
	}
}
