// Package boundtest limits the memory that tests may allocate for an input. It counts bytes and objects, since times
// differ between machines.
package boundtest

import (
	"runtime"
	"testing"
)

// Budget is the memory that may be allocated for one input.
type Budget struct {
	Bytes        uint64 // for any input
	BytesPerByte uint64 // in addition, for each byte of the input
}

// objectSize is the average size of objects in bytes that a budget assumes: a budget of n bytes allows n/objectSize
// objects.
const objectSize = 16

// Check fails the test if f allocates more bytes or objects than the budget allows for an input of size bytes. It runs
// f up to three times, and fails only if each run exceeds the budget: the first run may initialise what is made once,
// and other goroutines may allocate at the same time.
func (b Budget) Check(t testing.TB, size int, f func()) {
	t.Helper()
	allowed := b.Bytes + b.BytesPerByte*uint64(size)
	var used, objects uint64
	for range 3 {
		if used, objects = allocations(f); used <= allowed && objects <= allowed/objectSize {
			return
		}
	}
	t.Errorf("an input of %d bytes allocates %d bytes in %d objects, more than %d bytes in %d objects", size, used,
		objects, allowed, allowed/objectSize)
}

// allocations returns the numbers of bytes and objects that f allocates.
func allocations(f func()) (bytes, objects uint64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, after.Mallocs - before.Mallocs
}
