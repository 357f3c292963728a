package postgres

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestUses lets each thing be used once, by one of many replicas, and forgets those that are long over.
func TestUses(t *testing.T) {
	t.Parallel()
	url := softhsmtest.Postgres(t).Database(t)
	first, second := open(t, url), open(t, url)
	until := time.Now().Add(time.Minute)
	var group sync.WaitGroup
	var once atomic.Int32
	for i := range 20 {
		group.Go(func() {
			s := []*Store{first, second}[i%2]
			if ok, err := s.Once(t.Context(), [32]byte{1}, until); err != nil {
				t.Error(err)
			} else if ok {
				once.Add(1)
			}
		})
	}
	if group.Wait(); once.Load() != 1 {
		t.Errorf("it was used %d times", once.Load())
	}
	for id, want := range map[byte]bool{1: true, 2: false} {
		if used, err := second.Used(t.Context(), [32]byte{id}); err != nil || used != want {
			t.Errorf("%d was used: %t, %v", id, used, err)
		}
	}
	for id, past := range map[byte]time.Duration{3: keepUse / 2, 4: 2 * keepUse} {
		if ok, err := first.Once(t.Context(), [32]byte{id}, time.Now().Add(-past)); err != nil || !ok {
			t.Fatalf("%t, %v", ok, err)
		}
	}
	if ok, err := first.Once(t.Context(), [32]byte{5}, until); err != nil || !ok {
		t.Fatalf("%t, %v", ok, err)
	}
	for id, want := range map[byte]bool{1: true, 3: true, 4: false, 5: true} { // by a clock that is late, 3 is not over
		if used, err := second.Used(t.Context(), [32]byte{id}); err != nil || used != want {
			t.Errorf("%d is remembered: %t, %v", id, used, err)
		}
	}
	second.Close()
	if ok, err := second.Once(t.Context(), [32]byte{6}, until); ok || !failure.Is(err, failure.Unavailable) {
		t.Errorf("without a database: %t, %v", ok, err)
	}
	if used, err := second.Used(t.Context(), [32]byte{6}); used || !failure.Is(err, failure.Unavailable) {
		t.Errorf("without a database: %t, %v", used, err)
	}
}
