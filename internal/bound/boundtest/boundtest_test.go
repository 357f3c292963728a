package boundtest_test

import (
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
)

// recorder notes whether a test failed.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.failed = true }

var kept any

// TestCheck verifies that a budget limits bytes and objects, for the size of an input.
func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		size   int
		f      func()
		failed bool
	}{
		"nothing":                 {0, func() {}, false},
		"few bytes":               {0, func() { kept = make([]byte, 32<<10) }, false},
		"too many bytes":          {0, func() { kept = make([]byte, 128<<10) }, true},
		"many bytes of much":      {8 << 10, func() { kept = make([]byte, 128<<10) }, false},
		"too many small objects":  {0, func() { allocate(6000) }, true},
		"small objects of much":   {8 << 10, func() { allocate(6000) }, false},
		"only the first run":      {0, once(func() { kept = make([]byte, 128<<10) }), false},
		"still too many of a lot": {8 << 10, func() { kept = make([]byte, 1<<20) }, true},
	} {
		r := &recorder{TB: t}
		boundtest.Budget{Bytes: 64 << 10, BytesPerByte: 16}.Check(r, c.size, c.f)
		if r.failed != c.failed {
			t.Errorf("%s: failed %v, want %v", name, r.failed, c.failed)
		}
	}
}

// allocate allocates n objects of 8 bytes.
func allocate(n int) {
	list := make([]*int64, 1)
	for i := range n {
		list[0] = new(int64)
		*list[0] = int64(i)
		kept = list[0]
	}
}

func once(f func()) func() {
	done := false
	return func() {
		if !done {
			done = true
			f()
		}
	}
}
