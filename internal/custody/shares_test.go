package custody

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// joinFiles reads shares and joins them, as RestoreWrappingKey does.
func joinFiles(files []string, accept func(Untagged) error) (string, []byte, error) {
	shares, err := readShares(context.Background(), files, &identities{})
	if err != nil {
		return "", nil, err
	}
	w, value, err := combine(files, shares, accept)
	return w.Label + " " + string(w.ID), value, err
}

// TestShares recovers the key from every choice of enough shares, in any order, and from no choice of fewer.
func TestShares(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ n, threshold int }{{2, 2}, {3, 2}, {5, 3}, {5, 5}} {
		w, value, shares, err := split("backup", c.n, c.threshold)
		if err != nil || len(value) != 32 || len(w.ID) != 8 {
			t.Fatalf("%d of %d: %v", c.threshold, c.n, err)
		}
		paths, err := writeShares(t.TempDir(), shares, nil)
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
			again, made, err := joinFiles(files, nil)
			enough := len(files) >= c.threshold
			switch {
			case enough != (err == nil):
				t.Errorf("%d of %d with %d: %v", c.threshold, c.n, len(files), err)
			case enough && (!bytes.Equal(made, value) || again != "backup "+string(w.ID)):
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

// TestSharesChanged edits every field of one share, and of all shares alike: no edit recovers a key.
func TestSharesChanged(t *testing.T) {
	t.Parallel()
	_, _, shares, err := split("backup", 4, 3)
	_, _, others, err2 := split("backup", 4, 3)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	for name, edit := range map[string]func(*Share){
		"label":       func(s *Share) { s.Key = "trusted" },
		"id":          func(s *Share) { s.ID = others[0].ID },
		"of":          func(s *Share) { s.Of = 5 },
		"threshold":   func(s *Share) { s.Threshold = 2 },
		"fewer":       func(s *Share) { s.Threshold, s.Commitments = 2, s.Commitments[:2] },
		"commitments": func(s *Share) { s.Commitments = others[0].Commitments },
		"value":       func(s *Share) { s.Value = others[s.Number-1].Value },
		"tag":         func(s *Share) { s.Tag = others[0].Tag },
		"no tag":      func(s *Share) { s.Tag = "" },
		"older":       func(s *Share) { s.Version, s.Tag = 1, "" },
		"number":      func(s *Share) { s.Number = s.Number%4 + 1 },
		"other's": func(s *Share) {
			o := others[s.Number-1]
			s.Commitments, s.Value, s.ID = o.Commitments, o.Value, o.ID
		},
	} {
		for _, edited := range []int{1, 3} {
			changed := slices.Clone(shares[:3])
			for i := range edited {
				edit(&changed[i])
			}
			files := make([]string, 3)
			dir := t.TempDir()
			for i, s := range changed {
				data, err := json.Marshal(s)
				if err != nil {
					t.Fatal(err)
				}
				files[i] = filepath.Join(dir, string(rune('a'+i)))
				if err := os.WriteFile(files[i], data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if w, value, err := joinFiles(files, nil); err == nil || value != nil {
				t.Errorf("%s in %d shares makes %q", name, edited, w)
			}
			// They are of version 1 now, and used if the user accepts what they claim.
			if name == "older" && edited == 3 {
				var shown Untagged
				_, value, err := joinFiles(files, func(u Untagged) error { shown = u; return nil })
				if err != nil || value == nil || shown != (Untagged{"backup", 4, 3}) {
					t.Errorf("%v, %v", shown, err)
				}
			}
		}
	}
}

// TestSharesUnwritten removes the shares that were written before one that cannot be.
func TestSharesUnwritten(t *testing.T) {
	t.Parallel()
	_, _, shares, err := split("backup", 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	second := filepath.Join(folder, "backup-share-2-of-3.x")
	custodians := make([]custodian, 3)
	for i := range custodians {
		custodians[i] = custodian{extension: "x", encrypt: bytesOf}
	}
	custodians[2].encrypt = func(share []byte) ([]byte, error) { // when the second path was checked already
		return share, os.Mkdir(second, 0o700)
	}
	if paths, err := writeShares(folder, shares, custodians); err == nil {
		t.Errorf("all are written: %q", paths)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) != 1 || left[0].Name() != filepath.Base(second) {
		t.Errorf("left are %v, %v", left, err)
	}
}

func bytesOf(share []byte) ([]byte, error) { return bytes.Clone(share), nil }
