// Package boundtest measures what an input costs, by counting and not by a clock, since machines differ.
package boundtest

import (
	"runtime"
	"testing"
)

// A Budget is what parsing one input may allocate.
type Budget struct {
	Bytes        uint64 // whatever the size of the input
	BytesPerByte uint64 // more for each byte of the input
}

// objectSize is the average size of an allocated object that a budget counts on: so many bytes fewer allow one
// allocation fewer.
const objectSize = 16

// Check fails the test if f allocates more than the budget allows for an input of size bytes, in bytes or in objects. f
// is run again when it did, since the first run may have made what is made once, and other goroutines may have
// allocated meanwhile: it has to exceed the budget each time.
func (b Budget) Check(t testing.TB, size int, f func()) {
	t.Helper()
	allowed := b.Bytes + b.BytesPerByte*uint64(size)
	var used, objects uint64
	for range 3 {
		if used, objects = allocations(f); used <= allowed && objects <= allowed/objectSize {
			return
		}
	}
	t.Errorf("an input of %d bytes has %d bytes in %d objects allocated, more than %d bytes in %d objects", size, used,
		objects, allowed, allowed/objectSize)
}

// allocations returns how many bytes and objects f allocates.
func allocations(f func()) (bytes, objects uint64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, after.Mallocs - before.Mallocs
}
