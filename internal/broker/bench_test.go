package broker

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkSign signs with a module that takes 5 ms a call on 16 sessions, for 128 callers.
func BenchmarkSign(b *testing.B) {
	f := newFixture(b)
	f.policy = `
version: 1
keys:
  release:
    key: pkcs11:token=test;object=release
    formats: [notation]
    use: [{name: all, when: caller.subject.startsWith("ci") && artifact.size < 100000}]
`
	f.unpublished = 100_000
	f.start()
	sessions := make(chan bool, 16)
	f.keys.before = func() error {
		sessions <- true
		time.Sleep(5 * time.Millisecond)
		<-sessions
		return nil
	}
	var n atomic.Int64
	var group sync.WaitGroup
	b.ResetTimer()
	for w := range 128 {
		group.Go(func() {
			for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
				if _, err := f.Sign(b.Context(), caller(fmt.Sprint("ci", w)), "release", f.image(int(i))); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
}
