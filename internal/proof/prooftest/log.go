// Package prooftest makes bundles of approvals for tests: a log, people with keys of all kinds, and requests of them.
package prooftest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Origin is the origin of logs.
const Origin = "broker.example.com/log"

// Log is the log of a broker.
type Log struct {
	Origin  string
	Key     crypto.Signer
	Now     time.Time // of the next entry
	Entries [][]byte

	t      testing.TB
	hashes []tlog.Hash // as tlog stores them
}

// NewLog returns a log with a few entries. Its key is the same in each process.
func NewLog(t testing.TB) *Log {
	t.Helper()
	l := &Log{t: t, Origin: Origin, Key: Key(elliptic.P256(), 100), Now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	l.Append(entry.Event{Type: entry.Opened, Origin: Origin})
	return l
}

// Append appends an entry, and returns its index. The clock goes on by a second.
func (l *Log) Append(e entry.Event) int64 {
	l.t.Helper()
	e.Time = l.Now.UTC().Format(entry.TimeLayout)
	data, err := e.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	l.Now = l.Now.Add(time.Second)
	return l.AppendRaw(data)
}

// AppendRaw appends bytes as an entry, and returns its index.
func (l *Log) AppendRaw(data []byte) int64 {
	l.t.Helper()
	index := int64(len(l.Entries))
	l.Entries = append(l.Entries, data)
	more, err := tlog.StoredHashes(index, data, l.reader())
	if err != nil {
		l.t.Fatal(err)
	}
	l.hashes = append(l.hashes, more...)
	return index
}

func (l *Log) reader() tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		all := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			all[i] = l.hashes[index]
		}
		return all, nil
	})
}

// Checkpoint returns the signed checkpoint of all entries.
func (l *Log) Checkpoint() []byte {
	l.t.Helper()
	root, err := tlog.TreeHash(int64(len(l.Entries)), l.reader())
	if err != nil {
		l.t.Fatal(err)
	}
	note, err := translog.Checkpoint{Origin: l.Origin, Size: int64(len(l.Entries)), Root: root}.Sign(l.Key)
	if err != nil {
		l.t.Fatal(err)
	}
	return note
}

// Entry returns an entry with its proof under the checkpoint of all entries.
func (l *Log) Entry(index int64) proof.Entry {
	l.t.Helper()
	hashes, err := tlog.ProveRecord(int64(len(l.Entries)), index, l.reader())
	if err != nil {
		l.t.Fatal(err)
	}
	e := proof.Entry{Entry: bytes.Clone(l.Entries[index]), Index: index}
	for _, hash := range hashes {
		e.Hashes = append(e.Hashes, hash[:])
	}
	return e
}

// Verifier returns the verifier of the log's key.
func (l *Log) Verifier() *translog.Verifier {
	l.t.Helper()
	v, err := translog.NewVerifier(l.Origin, l.Key.Public())
	if err != nil {
		l.t.Fatal(err)
	}
	return v
}

// Key returns the key of a number on a curve.
func Key(curve elliptic.Curve, number byte) *ecdsa.PrivateKey {
	scalar := make([]byte, (curve.Params().BitSize+7)/8)
	scalar[len(scalar)-1], scalar[1] = number, 1
	key, err := ecdsa.ParseRawPrivateKey(curve, scalar)
	if err != nil {
		panic(err)
	}
	return key
}
