package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// biglog fills the log of a broker, and prints how long a start and a proof take then, and how many entries a second
// are appended.
func (b *bench) biglog(count int64) {
	f := fixture{bench: b}
	dir := f.TempDir()
	path := filepath.Join(dir, "store", "broker.db")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(f, err)
	s, err := sqlite.Open(b.ctx, path)
	check(f, err)
	o := broker.Options{
		Policy: []byte("version: 1\nkeys:\n  release:\n    key: pkcs11:token=t;object=o\n    formats: [notation]\n" +
			"    modify: [{when: caller.issuer == \"unix\"}]\n"),
		Config: []byte("{}"), Keys: noKeys{}, Store: s,
		Log: broker.Log{Origin: "broker.example.com/log", Public: key.Public(), File: filepath.Join(dir, "checkpoint"),
			MaxUnpublished: time.Hour, MaxUnpublishedEntries: 1 << 40,
			Sign: func(_ context.Context, c translog.Checkpoint) ([]byte, error) { return c.Sign(key) }},
	}
	o.Limits.Requests.Count = 1 << 30
	at := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	o.Clock.Wall = func() time.Time { return at }
	first, err := broker.Open(b.ctx, o)
	check(f, err)
	check(f, first.Close())
	o.Clock.Wall = nil
	size, err := s.Size(b.ctx)
	check(f, err)
	tree, err := translog.NewTree(b.ctx, size, s.Tile)
	check(f, err)
	began := time.Now()
	policy := sha256.Sum256(o.Policy)
	for n := size; n < count; {
		batch := &store.Batch{First: n}
		for ; len(batch.Entries) < 512; n++ {
			at = at.Add(100 * time.Millisecond)
			batch.Entries = append(batch.Entries, logged(f, n-size, at, policy))
		}
		var changed []translog.Tile
		tree, changed = tree.Append(batch.Entries)
		for _, t := range changed {
			batch.Tiles = append(batch.Tiles, store.Tile(t))
		}
		check(f, s.Commit(b.ctx, batch))
	}
	fmt.Printf("%d entries: %.0f appended a second, 512 in a transaction\n", tree.Size(),
		float64(tree.Size()-size)/time.Since(began).Seconds())
	for _, name := range []string{"without a snapshot", "with a snapshot"} {
		began = time.Now()
		opened, err := broker.Open(b.ctx, o)
		check(f, err)
		fmt.Printf("start %s: %.2f s\n", name, time.Since(began).Seconds())
		waitForSnapshot(f, s)
		check(f, opened.Close())
	}
	began = time.Now()
	const proofs = 1000
	for i := range int64(proofs) {
		_, err := translog.ProveEntry(b.ctx, s.Tile, tree.Size(), i*(tree.Size()/proofs))
		check(f, err)
	}
	fmt.Printf("a proof: %.3f ms\n", float64(time.Since(began).Microseconds())/1000/proofs)
	check(f, s.Close())
}

// waitForSnapshot waits until a store has a snapshot.
func waitForSnapshot(f fixture, s store.Store) {
	for {
		kept, err := s.Snapshot(f.bench.ctx)
		check(f, err)
		if kept != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// logged returns the entry of a signature: its intent for an even number, its outcome for the next.
func logged(f fixture, n int64, at time.Time, policy [sha256.Size]byte) []byte {
	hash := func(what string) string {
		sum := sha256.Sum256(fmt.Append(nil, what, n/2))
		return "sha256:" + hex.EncodeToString(sum[:])
	}
	e := map[string]any{"type": "signed/v1", "key": "release", "request": hash("request")[7:39],
		"payload":   hash("payload"),
		"signature": hash("signature"), "time": at.Format("2006-01-02T15:04:05.000Z")}
	if n%2 == 0 {
		e = map[string]any{"type": "intent/v1", "key": "release", "request": e["request"], "payload": e["payload"],
			"time": e["time"], "caller": hash("caller")[7:39], "requester": hash("caller")[7:39], "digest": hash("image"),
			"format": "notation", "leaf": hash("leaf"), "policy": "sha256:" + hex.EncodeToString(policy[:]), "rule": "release",
			"rule_digest": hash("rule"), "statement": hash("statement"), "token": hash("token"), "token_ends": at.Unix() + 300}
	}
	entry, err := translog.Canonical(e)
	check(f, err)
	return entry
}

func check(f fixture, err error) {
	if err != nil {
		f.Fatal(err)
	}
}

// noKeys are the keys of a broker that signs nothing.
type noKeys struct{}

func (noKeys) Describe(context.Context, string) (crypto.PublicKey, []*x509.Certificate, error) {
	return nil, nil, fmt.Errorf("no key")
}

func (noKeys) Sign(context.Context, string, []byte, string) ([]byte, error) {
	return nil, fmt.Errorf("no key")
}
