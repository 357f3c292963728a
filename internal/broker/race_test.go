package broker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestKeyChanged releases no signature of a key that the policy has replaced, or dropped, since it was decided.
func TestKeyChanged(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"object=other", "gone"} {
		f := newFixture(t)
		f.start()
		f.keys.before = func() error {
			changed := strings.Replace(testPolicy, "object=release", name, 1)
			if name == "gone" {
				changed = strings.Replace(testPolicy, "  release:", "  other:", 1)
			}
			_, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangePolicy, Policy: []byte(changed)})
			return err
		}
		_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1))
		failsWith(t, err, failure.Unavailable, "meanwhile")
	}
}

// TestManyAtOnce does all that callers can at the same time, until the broker ends. The log stays whole, no request has
// two uses, and a start has the same state.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.snapshots = 20
	f.start()
	b := f.Broker // f has none once it has stopped
	var group sync.WaitGroup
	for n := range 8 {
		group.Go(func() {
			who := caller([]string{"ci", "people", "slow", "admin"}[n%4])
			for i := range 60 {
				var err error
				switch (n + i) % 6 {
				case 0, 1:
					_, err = b.Sign(t.Context(), who, "release", f.image(i%7))
				case 2:
					r, failed := b.Create(t.Context(), who, newTarget(byte(i%7)))
					if err = failed; err == nil {
						_, err = b.Cancel(t.Context(), who, r.ID)
					}
				case 3:
					_, err = b.Propose(t.Context(), who, Change{What: []string{ChangeBlock, ChangeUnblock}[i%2], Key: "release"})
				case 4:
					_, err = b.Propose(t.Context(), who, Change{What: ChangePolicy,
						Policy: fmt.Appendf(nil, "%s# %d %d\n", testPolicy, n, i)})
				default:
					b.expire()
					_ = b.Parts(t.Context())
					_, err = b.Requests(context.Background(), who, Query{Limit: 3})
				}
				if err != nil && failure.From(err).Kind == failure.Internal {
					t.Error(err)
				}
				if n == 0 && i == 40 {
					go func() { _ = b.Close() }()
				}
			}
		})
	}
	group.Wait()
	<-b.ended
	before := b.state
	_ = f.store.Close()
	f.Broker = nil
	f.start()
	f.events()
	if now := f.state; before.Policy != now.Policy || len(before.Requests) != len(now.Requests) ||
		len(before.Blocked) != len(now.Blocked) {
		t.Errorf("%+v, %+v", before, now)
	}
}
