package broker

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"
)

// TestIntruder keeps a key blocked while somebody else adds entries to the log of a running broker: one that unblocks
// it, with the tiles that fit, in the place of the next one or of one that no checkpoint covers.
func TestIntruder(t *testing.T) {
	t.Parallel()
	for name, replace := range map[string]bool{"added": false, "replaced": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, broken := newFaulty(t)
			if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeBlock, Key: "release"}); err != nil {
				t.Fatal(err)
			}
			f.publishAll()
			f.noLog.Store(true)
			before := f.tree
			invite := func() {
				_ = f.do(t.Context(), func(d *decision) error {
					return d.event(Event{Type: invited, Approver: f.personID("alice"), Caller: f.callerOf(caller("admin")),
						Invitation: hashOf([]byte(rand.Text())), NotAfter: d.now.Add(time.Hour).Unix()})
				})
			}
			if replace {
				invite()
			}
			e := Event{Type: unblocked, Key: "release", Time: f.clock.now().UTC().Format(eventTime)}
			entry, err := e.Encode()
			if err != nil {
				t.Fatal(err)
			}
			_, tiles := before.Append([][]byte{entry})
			f.edit(fmt.Sprintf("INSERT OR REPLACE INTO entries VALUES (%d, x'%x')", before.Size(), entry))
			for _, one := range tiles {
				f.edit(fmt.Sprintf("INSERT OR REPLACE INTO tiles VALUES (%d, %d, x'%x')", one.Level, one.Index,
					one.Hashes))
			}
			broken.down.Store(replace)
			invite()
			broken.down.Store(false)
			for range 3 {
				if _, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1)); err == nil {
					t.Fatal("it has signed with a key that is blocked")
				}
			}
		})
	}
}
