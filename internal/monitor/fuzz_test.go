package monitor

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
)

// FuzzRead reads logs of any entries, one in a line: within bounds, with alerts that can be told, and the same after
// the state was written and read.
func FuzzRead(f *testing.F) {
	c, err := ParseConfig("monitor.yaml", []byte("version: 1\n"+listed))
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []story{
		begun().plus(asks(), approves("alice"), approves("bob"), intends(20), signs(20)),
		begun().plus(nightly("a"), entry.Event{Type: entry.Voided, Index: 1}, entry.Event{Type: entry.EpochBegun, Epoch: 2}),
		{{Type: entry.Blocked, Key: "release"}, {Type: entry.Unblocked, Key: "release"}, {Type: entry.Ended, Request: "r1"}},
	} {
		var lines [][]byte
		for _, e := range s {
			e.Time = noon.Format(entry.TimeLayout)
			data, err := e.Encode()
			if err != nil {
				f.Fatal(err)
			}
			lines = append(lines, data)
		}
		f.Add(bytes.Join(lines, []byte("\n")))
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		facts := newFacts()
		for _, line := range bytes.Split(log, []byte("\n")) {
			before, err := json.Marshal(facts)
			if err != nil {
				t.Fatal(err)
			}
			again := newFacts()
			if err := json.Unmarshal(before, again); err != nil {
				t.Fatal(err)
			}
			alerts, others := facts.read(c, origin, line, noon), again.read(c, origin, line, noon)
			if len(alerts) != len(others) {
				t.Fatalf("%d alerts, and %d after the state was read", len(alerts), len(others))
			}
			for i, a := range alerts {
				if len(a.message()) > 8<<10 || a.ID != others[i].ID || a.Found != noon.UTC().Round(time.Second) {
					t.Fatalf("%s", a.message())
				}
			}
		}
	})
}
