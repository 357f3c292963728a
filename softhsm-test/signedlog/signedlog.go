// Package signedlog makes logs as a broker writes them, in memory and of any length, for tests and measurements.
package signedlog

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Origin is the origin of logs.
const Origin = "broker.example.com/log"

// Log is a log in memory.
type Log struct {
	Now time.Time // of the next entry

	key     *ecdsa.PrivateKey
	entries [][]byte
	tree    *translog.Tree
	tiles   map[tileName][]byte
}

type tileName struct {
	level int
	index int64
}

// New returns a log without entries.
func New() (*Log, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return &Log{Now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), key: key, tree: &translog.Tree{},
		tiles: map[tileName][]byte{}}, err
}

// Append appends entries, each a millisecond after the one before.
func (l *Log) Append(events ...entry.Event) error {
	var batch [][]byte
	for _, e := range events {
		e.Time = l.Now.Format(entry.TimeLayout)
		l.Now = l.Now.Add(time.Millisecond)
		data, err := e.Encode()
		if err != nil {
			return err
		}
		batch = append(batch, data)
	}
	l.entries = append(l.entries, batch...)
	var changed []translog.Tile
	l.tree, changed = l.tree.Append(batch)
	for _, t := range changed {
		l.tiles[tileName{t.Level, t.Index}] = t.Hashes
	}
	return nil
}

// Verifier returns the verifier of the log's key.
func (l *Log) Verifier() (*translog.Verifier, error) {
	return translog.NewVerifier(Origin, l.key.Public())
}

// File returns a file of the log, under a checkpoint of all entries; it is a translog.Files.
func (l *Log) File(ctx context.Context, path string) ([]byte, error) {
	s := translog.Source{
		Tile: func(_ context.Context, level int, index int64) ([]byte, error) {
			data, exists := l.tiles[tileName{level, index}]
			if !exists {
				return nil, failure.New(failure.NotFound, "there is no tile %d of level %d", index, level)
			}
			return data, nil
		},
		Entries: func(_ context.Context, first, end int64, each func(int64, []byte) error) error {
			for i := first; i < end; i++ {
				if err := each(i, l.entries[i]); err != nil {
					return err
				}
			}
			return nil
		},
		Checkpoint: func(context.Context) ([]byte, error) {
			return translog.Checkpoint{Origin: Origin, Size: l.tree.Size(), Root: l.tree.Root()}.Sign(l.key)
		},
	}
	return s.File(ctx, path)
}
