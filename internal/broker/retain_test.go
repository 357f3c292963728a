package broker

import (
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestRetain deletes requests that are older than is kept, with what was agreed to, and no entry of the log.
func TestRetain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.keep = func(now time.Time) time.Time { return now.AddDate(0, 0, -30) }
	f.start()
	old, err := f.Create(t.Context(), caller("people"), newTarget(1))
	if err != nil {
		t.Fatal(err)
	}
	statement, err := parseHash(old.Statement)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.Document(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
	f.later(20 * 24 * time.Hour)
	young := f.signs("ci", 2)
	f.later(20 * 24 * time.Hour)
	entries := len(f.events())
	f.stop()
	f.start()
	for gone := false; !gone; time.Sleep(time.Millisecond) {
		_, row := f.store.Request(t.Context(), old.ID)
		_, document := f.store.Document(t.Context(), statement)
		gone = failure.Is(row, failure.NotFound) && failure.Is(document, failure.NotFound)
	}
	if _, err := f.Request(t.Context(), caller("ci"), young.Request); err != nil {
		t.Error(err)
	}
	if now := len(f.events()); now < entries {
		t.Errorf("%d entries of %d", now, entries)
	}
}
