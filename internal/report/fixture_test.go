package report

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

const origin = "broker.example.com/log"

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// madeLog is a log whose entries a test makes.
type madeLog struct {
	t       testing.TB
	entries [][]byte
	now     time.Time
	tree    *translog.Tree
	tiles   map[string][]byte
	key     ed25519.PrivateKey
}

func newLog(t testing.TB) *madeLog {
	t.Helper()
	l := &madeLog{t: t, now: begin, tree: &translog.Tree{}, tiles: map[string][]byte{},
		key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	l.add(entry.Event{Type: entry.Opened, Origin: origin, Policy: hash("policy", 0), Config: hash("config", 0)})
	return l
}

// hash returns a hash of its own for what is so named.
func hash(what string, n int) string {
	sum := sha256.Sum256(fmt.Append(nil, what, n))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// add appends an entry, a second after the one before.
func (l *madeLog) add(e entry.Event) {
	l.t.Helper()
	e.Time = l.now.Format(entry.TimeLayout)
	l.now = l.now.Add(time.Second)
	data, err := e.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	l.entries = append(l.entries, data)
}

// signs adds a signature of artifact n that people have approved.
func (l *madeLog) signs(n int, rule, why string, people ...string) {
	l.t.Helper()
	id, statement := fmt.Sprintf("request-%06d", n), ""
	if len(people) > 0 {
		statement = hash("statement", n)
	}
	e := entry.Event{Key: "release", Request: id, Rule: rule, Digest: hash("image", n), Format: "notation",
		Leaf: hash("leaf", 0), Policy: hash("policy", 0), Requester: "requester", Caller: "caller",
		Repository: "registry.example.com/app", Statement: statement}
	if len(people) > 0 || why != "" {
		request := e
		request.Type, request.Why, request.NotAfter = entry.Requested, why, l.now.Add(time.Hour).Unix()
		l.add(request)
	}
	for _, person := range people {
		l.add(entry.Event{Type: entry.Approved, Request: id, Key: "release", Approver: person,
			Credential: hash(person, 0), Statement: statement})
	}
	e.Type, e.Payload = entry.Intended, hash("payload", n)
	l.add(e)
	l.add(entry.Event{Type: entry.Signed, Key: "release", Request: id, Payload: e.Payload,
		Signature: hash("signature", n)})
}

// publish adds the entries to the tree.
func (l *madeLog) publish() {
	tree, tiles := l.tree.Append(l.entries[l.tree.Size():])
	l.tree = tree
	for _, t := range tiles {
		l.tiles[fmt.Sprint(t.Level, t.Index)] = t.Hashes
	}
}

// source returns the log as it is served.
func (l *madeLog) source() translog.Source {
	l.t.Helper()
	l.publish()
	signed, err := translog.Checkpoint{Origin: origin, Size: l.tree.Size(), Root: l.tree.Root()}.Sign(l.key)
	if err != nil {
		l.t.Fatal(err)
	}
	return translog.Source{
		Tile: func(_ context.Context, level int, index int64) ([]byte, error) {
			return l.tiles[fmt.Sprint(level, index)], nil
		},
		Checkpoint: func(context.Context) ([]byte, error) { return signed, nil },
		Entries: func(_ context.Context, first, end int64, each func(int64, []byte) error) error {
			for i := first; i < end; i++ {
				if err := each(i, l.entries[i]); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (l *madeLog) verifiers() []*translog.Verifier {
	l.t.Helper()
	v, err := translog.NewVerifier(origin, l.key.Public())
	if err != nil {
		l.t.Fatal(err)
	}
	return []*translog.Verifier{v}
}

// report returns the report of the whole log so far.
func (l *madeLog) report() *Report {
	l.t.Helper()
	r, err := New(l.t.Context(), l.source().File, l.verifiers(), Options{From: begin, To: l.now})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(r.Close)
	return r
}
