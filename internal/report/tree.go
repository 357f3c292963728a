package report

import (
	"bufio"
	"fmt"
	"os"

	"golang.org/x/mod/sumdb/tlog"
)

// tree has the hashes of a log's tree in a file, in the order of tlog.StoredHashIndex, so that the proof of any entry
// reads few of them.
type tree struct {
	file *os.File
	to   *bufio.Writer
	edge []tlog.Hash // roots of the perfect trees at the right edge, the largest first
	size int64
}

// newTree returns an empty tree whose file has no name.
func newTree() (*tree, error) {
	file, err := temporary()
	if err != nil {
		return nil, err
	}
	return &tree{file: file, to: bufio.NewWriterSize(file, 1<<16)}, nil
}

// add appends an entry.
func (t *tree) add(raw []byte) error {
	hash := tlog.RecordHash(raw)
	if _, err := t.to.Write(hash[:]); err != nil {
		return err
	}
	for n := t.size; n&1 == 1; n >>= 1 {
		hash = tlog.NodeHash(t.edge[len(t.edge)-1], hash)
		t.edge = t.edge[:len(t.edge)-1]
		if _, err := t.to.Write(hash[:]); err != nil {
			return err
		}
	}
	t.edge = append(t.edge, hash)
	t.size++
	return nil
}

// prove returns the inclusion proof of an entry. No entry can be added after it.
func (t *tree) prove(index int64) ([][]byte, error) {
	if err := t.to.Flush(); err != nil {
		return nil, err
	}
	proof, err := tlog.ProveRecord(t.size, index, tlog.HashReaderFunc(t.read))
	if err != nil {
		return nil, err
	}
	hashes := make([][]byte, len(proof))
	for i := range proof {
		hashes[i] = proof[i][:]
	}
	return hashes, nil
}

func (t *tree) read(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if _, err := t.file.ReadAt(hashes[i][:], index*tlog.HashSize); err != nil {
			return nil, fmt.Errorf("cannot read a hash of the log: %w", err)
		}
	}
	return hashes, nil
}
