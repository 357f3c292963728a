package monitor

import (
	"testing"
	"time"
)

// BenchmarkRead reads a log of 51,204 entries over HTTP from its beginning.
func BenchmarkRead(b *testing.B) {
	l := newLedger(b)
	l.at = noon.Add(-time.Hour)
	l.add(b, begun()...)
	l.grow(b, 25_600)
	s := serve(b, l)
	for b.Loop() {
		w := watch(b, l, s, listed)
		if alerts := w.looks(); len(alerts) > 0 || w.Size() != l.tree.Size() {
			b.Fatal(textOf(alerts), w.Size())
		}
	}
	b.ReportMetric(float64(l.tree.Size())*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
