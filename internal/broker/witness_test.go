package broker

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	"github.com/notation-hsm/notation-hsm/internal/translog/witnesstest"
)

// witnessed is a broker whose log witnesses cosign.
type witnessed struct {
	*fixture

	servers []*witnesstest.Witness
	known   []*translog.Witness
	v       *translog.Verifier
}

func newWitnessed(t *testing.T, names ...string) *witnessed {
	t.Helper()
	w := &witnessed{fixture: newFixture(t)}
	v, err := translog.NewVerifier("broker.example.com/log", w.log.Public())
	if err != nil {
		t.Fatal(err)
	}
	w.v = v
	for _, name := range names {
		server := witnesstest.New(t, name)
		server.Add(t, v.String())
		named, err := translog.ParseWitness(server.Key)
		if err != nil {
			t.Fatal(err)
		}
		w.servers, w.known = append(w.servers, server), append(w.known, named)
	}
	w.clients()
	return w
}

// clients makes clients that know nothing of the witnesses, as after a start.
func (w *witnessed) clients() {
	w.t.Helper()
	w.witnesses = nil
	for i, server := range w.servers {
		client, err := translog.NewWitnessClient(w.known[i], server.Server.URL)
		if err != nil {
			w.t.Fatal(err)
		}
		w.witnesses = append(w.witnesses, client)
	}
}

// cosigned returns the names of the witnesses that have cosigned a note, in order. It verifies the note.
func (w *witnessed) cosigned(note []byte) (translog.Checkpoint, string) {
	w.t.Helper()
	c, err := translog.Open(note, []*translog.Verifier{w.v})
	if err != nil {
		w.t.Fatal(err)
	}
	all, err := translog.Cosigned(note, w.known)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, one := range all {
		names = append(names, one.Witness)
	}
	return c, strings.Join(names, " ")
}

// until waits until the newest checkpoint covers all entries, and witnesses have cosigned it as it is served.
func (w *witnessed) until(names string) translog.Checkpoint {
	w.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		c, note := w.Cosigned()
		if note != nil && w.Published() == w.durable.Load() && c.Size == w.Published() {
			served, err := w.Log().File(w.t.Context(), translog.CheckpointPath)
			if err != nil {
				w.t.Fatal(err)
			}
			if opened, by := w.cosigned(note); opened == c && by == names && string(served) == string(note) {
				return c
			}
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the checkpoint of %d of %d entries is not cosigned by %s:\n%s", c.Size, w.durable.Load(), names, note)
		}
	}
}

// failures returns the number of failures of a witness, by the metrics.
func (w *witnessed) failures(name string) float64 {
	w.t.Helper()
	registry := prometheus.NewRegistry()
	w.Broker.witnesses.register(registry, w.Broker)
	families, err := registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "hsm_broker_witness_errors_total" && m.GetLabel()[0].GetValue() == name {
				return m.GetCounter().GetValue()
			}
		}
	}
	w.t.Fatalf("there is no metric of the witness %s", name)
	return 0
}

// TestWitnesses has two witnesses cosign the log while it grows, and after a restart.
func TestWitnesses(t *testing.T) {
	t.Parallel()
	w := newWitnessed(t, "a.example.com", "b.example.com")
	w.start()
	const both = "a.example.com b.example.com"
	for n := range 3 {
		w.signs("ci", n)
		w.until(both)
	}
	w.stop()
	w.clients()
	w.start()
	w.signs("ci", 3)
	c := w.until(both)
	if _, err := translog.Verify(t.Context(), w.Log().File, []*translog.Verifier{w.v}, translog.Options{}); err != nil {
		t.Errorf("the log with cosignatures does not verify: %v", err)
	}
	for _, server := range w.servers {
		if size := server.Size(c.Origin); size != c.Size {
			t.Errorf("a witness has cosigned %d of %d entries", size, c.Size)
		}
		if most := int(c.Size) + 2; server.Asked() > most { // once for each checkpoint, and twice after a start
			t.Errorf("a witness got %d requests for at most %d checkpoints", server.Asked(), c.Size)
		}
	}
}

// TestCosignedIsKept finds the cosigned checkpoint again after a restart, without the witnesses.
func TestCosignedIsKept(t *testing.T) {
	t.Parallel()
	w := newWitnessed(t, "a.example.com")
	w.start()
	w.signs("ci", 1)
	c := w.until("a.example.com")
	down := func(to http.ResponseWriter, _ *http.Request) { http.Error(to, "down", http.StatusServiceUnavailable) }
	w.servers[0].Answer(down)
	w.stop()
	w.start()
	if again, note := w.Cosigned(); again != c || note == nil {
		t.Errorf("the cosigned checkpoint of %d entries was not kept: %d", c.Size, again.Size)
	} else if _, by := w.cosigned(note); by != "a.example.com" {
		t.Errorf("it is cosigned by %q", by)
	}
	w.stop()
	w.start()
	note, err := w.store.Meta(t.Context(), cosignedMeta)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{"forged": strings.Replace(string(note), "\n\n", "\nx\n\n", 1), "garbage": "x",
		"uncosigned": string(note[:strings.Index(string(note), "— a.example.com")])} {
		size, err := w.store.Size(t.Context())
		if err == nil {
			err = w.store.Commit(t.Context(), &store.Batch{First: size, Meta: map[string][]byte{cosignedMeta: []byte(bad)}})
		}
		if err != nil {
			t.Fatal(err)
		}
		w.stop()
		w.start()
		if c, note := w.Cosigned(); note != nil {
			t.Errorf("%s: a checkpoint of %d entries counts", name, c.Size)
		}
	}
	w.servers[0].Answer(nil)
	w.until("a.example.com")
}

// TestWitnessFails has one witness fail: the broker signs, the log goes on, and the other one cosigns. It says which
// one fails.
func TestWitnessFails(t *testing.T) {
	t.Parallel()
	w := newWitnessed(t, "a.example.com", "b.example.com")
	hold := make(chan struct{})
	var once bool
	t.Cleanup(func() {
		if !once {
			close(hold)
		}
	})
	var open, most atomic.Int32                                        // requests at a time
	w.servers[1].Answer(func(_ http.ResponseWriter, r *http.Request) { // answers nothing
		_, _ = io.Copy(io.Discard, r.Body)
		most.Store(max(most.Load(), open.Add(1)))
		defer open.Add(-1)
		select {
		case <-hold:
		case <-r.Context().Done(): // the broker does not wait any more
		}
	})
	w.start()
	for w.servers[1].Asked() == 0 {
		time.Sleep(time.Millisecond)
	}
	w.signs("ci", 1)
	w.signs("ci", 2)
	if most.Load() > 1 {
		t.Errorf("a witness got %d requests at a time", most.Load())
	}
	w.servers[1].Answer(func(to http.ResponseWriter, _ *http.Request) { http.NotFound(to, nil) })
	close(hold)
	once = true
	w.until("a.example.com")
	parts := w.Parts(t.Context())
	last := parts[len(parts)-2:]
	if !last[0].Ready || last[1].Ready || last[1].Needed || last[1].Name != "witness b.example.com" || last[1].Detail == "" {
		t.Errorf("%+v", last)
	}
	if a, b := w.failures("a.example.com"), w.failures("b.example.com"); a != 0 || b == 0 {
		t.Errorf("%v failures were counted of a witness that answers, %v of one that does not", a, b)
	}
	w.servers[1].Answer(nil)
	w.until("a.example.com b.example.com")
	if parts := w.Parts(t.Context()); !parts[len(parts)-1].Ready {
		t.Errorf("%+v", parts[len(parts)-1])
	}
}

// TestNoWitnesses has no cosigned checkpoint.
func TestNoWitnesses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.signs("ci", 1)
	if c, note := f.Cosigned(); note != nil || c.Size != 0 {
		t.Errorf("%+v, %s", c, note)
	}
}
