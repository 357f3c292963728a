package broker

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

const (
	witnessInterval = 2 * time.Second  // between two rounds, at least
	witnessTime     = 10 * time.Second // how long a witness may take to answer
	witnessBackoff  = time.Minute      // after failures, at most
)

// cosignedMeta is the name under which the store keeps the newest cosigned checkpoint, with its cosignatures.
const cosignedMeta = "cosigned"

// cosigned is a checkpoint that witnesses have cosigned.
type cosigned struct {
	published                        // the note has the cosignatures
	by        []translog.Cosignature // by index of the witness; zero for one that has not cosigned it
}

// witness is one that is asked for cosignatures.
type witness struct {
	client *translog.WitnessClient
	size   atomic.Int64          // of the newest checkpoint that it has cosigned
	failed atomic.Pointer[error] // of the last request; nil if it was answered

	failures int       // in a row
	next     time.Time // it is not asked before
}

// witnesses are asked in rounds. A round asks all of them to cosign the same checkpoint, the newest one, so that one
// checkpoint has the cosignatures of all.
type witnesses struct {
	all    []*witness
	every  time.Duration
	errors *prometheus.CounterVec
	newest atomic.Pointer[cosigned] // nil without cosignatures
}

func newWitnesses(o Options) *witnesses {
	ws := &witnesses{every: cmp.Or(o.witnessEvery, witnessInterval),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hsm_broker_witness_errors_total", Help: "Requests for cosignatures that a witness did not grant, by witness.",
		}, []string{"witness"})}
	for _, client := range o.Log.Witnesses {
		ws.all = append(ws.all, &witness{client: client})
		ws.errors.WithLabelValues(client.Witness().Name()) // so that a rate has the first one, too
	}
	return ws
}

// register adds the metrics of the witnesses.
func (ws *witnesses) register(to prometheus.Registerer, b *Broker) {
	if to == nil || len(ws.all) == 0 {
		return
	}
	to.MustRegister(ws.errors)
	for _, w := range ws.all {
		to.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "hsm_broker_witness_lag_entries",
			Help:        "Entries under a checkpoint that a witness has not cosigned.",
			ConstLabels: prometheus.Labels{"witness": w.client.Witness().Name()}},
			func() float64 { return float64(max(0, b.Published()-w.size.Load())) }))
	}
}

// Cosigned returns the newest checkpoint that a witness has cosigned, and its note with all cosignatures that the
// broker has got for it. Without one, the note is nil. Published may be ahead of it.
func (b *Broker) Cosigned() (checkpoint translog.Checkpoint, note []byte) {
	c, newest := b.witnesses.newest.Load(), b.published.Load()
	if c == nil || newest == nil || c.Origin != newest.Origin { // of an epoch before
		return translog.Checkpoint{}, nil
	}
	return c.Checkpoint, c.note
}

// newestNote returns the newest checkpoint, with the cosignatures that there are of it; nil if there is none.
func (b *Broker) newestNote() []byte {
	newest := b.published.Load()
	if newest == nil {
		return nil
	}
	if c := b.witnesses.newest.Load(); c != nil && c.Checkpoint == newest.Checkpoint {
		return c.note
	}
	return newest.note
}

// loadCosigned reads the newest cosigned checkpoint from the store. One that does not verify is not used: the witnesses
// are asked again.
func (b *Broker) loadCosigned(ctx context.Context) error {
	note, err := b.options.Store.Meta(ctx, cosignedMeta)
	if err != nil || note == nil || len(b.witnesses.all) == 0 {
		return err
	}
	c := &cosigned{published: published{note: note}, by: make([]translog.Cosignature, len(b.witnesses.all))}
	newest := b.published.Load()
	if c.Checkpoint, err = b.verify(note); err == nil && c.Origin == newest.Origin {
		var root translog.Hash
		if root, err = b.rootAt(ctx, c.Size, newest.Size); err == nil && root != c.Root {
			err = errEdited
		}
	}
	if err != nil {
		slog.Warn("cannot use the cosigned checkpoint of the database", "error", err)
		return nil
	}
	found := false
	for i, w := range b.witnesses.all {
		named, err := translog.Cosigned(note, []*translog.Witness{w.client.Witness()})
		if err == nil && len(named) > 0 {
			c.by[i], found = named[0], true
			w.size.Store(c.Size)
		}
	}
	if found {
		b.witnesses.newest.Store(c)
	}
	return nil
}

// cosign asks the witnesses until the broker ends.
func (b *Broker) cosign() {
	tick := time.NewTicker(b.witnesses.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if b.Leads() {
				b.cosignNow(b.running)
			}
		case <-b.running.Done():
			return
		}
	}
}

// cosignNow makes a round: it asks the witnesses that have not cosigned the newest checkpoint, and waits for all.
// A checkpoint with any cosignature replaces an older one, also if that has more: it must not hide progress.
func (b *Broker) cosignNow(ctx context.Context) {
	ws, newest := b.witnesses, b.published.Load()
	if newest == nil || newest.Size == 0 {
		return
	}
	next := &cosigned{published: *newest, by: make([]translog.Cosignature, len(ws.all))}
	if before := ws.newest.Load(); before != nil && before.Checkpoint == newest.Checkpoint {
		copy(next.by, before.by)
	}
	var group sync.WaitGroup
	var got atomic.Bool
	for i, w := range ws.all {
		if next.by[i].Witness != "" || time.Now().Before(w.next) {
			continue
		}
		group.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, witnessTime)
			defer cancel()
			one, err := w.client.Cosign(ctx, newest.note, b.tiles)
			if ctx.Err() != nil && b.running.Err() != nil {
				return // the broker ends
			}
			w.answered(newest.Size, err, ws.errors)
			if err == nil {
				next.by[i] = one
				got.Store(true)
			}
		})
	}
	group.Wait()
	if !got.Load() {
		return
	}
	var all []translog.Cosignature
	for _, one := range next.by {
		if one.Witness != "" {
			all = append(all, one)
		}
	}
	next.note = translog.Merge(newest.note, all)
	err := b.do(ctx, func(d *decision) error {
		d.meta(cosignedMeta, next.note)
		return nil
	})
	if err != nil && b.running.Err() == nil {
		slog.Error("cannot keep the cosigned checkpoint", "error", err)
	}
	ws.newest.Store(next)
}

// answered notes the outcome of a request for a checkpoint of a size. The first failure in a row is logged.
func (w *witness) answered(size int64, err error, errors *prometheus.CounterVec) {
	name := w.client.Witness().Name()
	if err == nil {
		if w.failures > 0 {
			slog.Info("the witness cosigns again", "witness", name)
		}
		w.size.Store(size)
		w.failed.Store(nil)
		w.failures, w.next = 0, time.Time{}
		return
	}
	errors.WithLabelValues(name).Inc()
	if w.failures == 0 {
		slog.Error("cannot get a cosignature of the log's checkpoint", "witness", name, "error", err)
	}
	w.failed.Store(&err)
	w.next = time.Now().Add(min(witnessInterval<<min(w.failures, 10), witnessBackoff))
	w.failures++
}

// parts returns the state of the witnesses. The broker works without them.
func (ws *witnesses) parts() (all []brokerapi.Part) {
	for _, w := range ws.all {
		part := brokerapi.Part{Name: "witness " + w.client.Witness().Name(), Ready: true}
		if err := w.failed.Load(); err != nil {
			part.Ready, part.Detail = false, failure.From(*err).What
		}
		all = append(all, part)
	}
	return all
}
