package report

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzVerify reads reports of anyone: those that verify are of the log whose key is known.
func FuzzVerify(f *testing.F) {
	verifiers := newLog(f).verifiers()
	for _, name := range []string{"report.json", "empty.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)/2])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := Verify(bytes.NewReader(data), verifiers)
		if err == nil && (found.About.Origin != origin || found.About.Type != reportType) {
			t.Errorf("%+v", found)
		}
	})
}
