package custody

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestShares makes the key again from every choice of enough custodians, in any order, and from no choice of fewer.
func TestShares(t *testing.T) {
	for _, c := range []struct{ n, threshold int }{{2, 2}, {3, 2}, {5, 3}, {5, 5}} {
		w, value, shares, err := split("backup", c.n, c.threshold)
		if err != nil || len(value) != 32 || len(w.ID) != 8 {
			t.Fatalf("%d of %d: %v", c.threshold, c.n, err)
		}
		paths, err := writeShares(t.TempDir(), shares)
		if err != nil {
			t.Fatal(err)
		}
		for choice := range 1 << c.n {
			var files []string
			for i, path := range paths {
				if choice>>i&1 == 1 {
					files = append(files, path)
				}
			}
			slices.Reverse(files)
			again, made, err := join(files)
			enough := len(files) >= c.threshold
			switch {
			case enough != (err == nil):
				t.Errorf("%d of %d with %d: %v", c.threshold, c.n, len(files), err)
			case enough && (!bytes.Equal(made, value) || !bytes.Equal(again.ID, w.ID) || again.Label != "backup"):
				t.Errorf("%d of %d with %d made another key", c.threshold, c.n, len(files))
			}
		}
	}
	one, _, _, err := split("backup", 3, 2)
	other, _, _, err2 := split("backup", 3, 2)
	if err != nil || err2 != nil || bytes.Equal(one.ID, other.ID) {
		t.Errorf("two keys are the same: %x", one.ID)
	}
}

// FuzzShare holds that no share file crashes, and that none passes but what split wrote.
func FuzzShare(f *testing.F) {
	_, _, shares, err := split("backup", 3, 2)
	if err != nil {
		f.Fatal(err)
	}
	paths, err := writeShares(f.TempDir(), shares)
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add([]byte(strings.Replace(string(data), `"threshold": 2`, `"threshold": 1`, 1)))
		f.Add([]byte(strings.Replace(string(data), `"value": "`, `"value": "00`, 1)))
	}
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "share.json")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, _, err := readShare(path); err == nil && len(s.Commitments) != s.Threshold {
			t.Errorf("%s passes", data)
		}
		_, _ = readBackup(path)
	})
}
