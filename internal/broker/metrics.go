package broker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// metrics are what the broker counts for Prometheus. The values of labels are names of the policy, states and kinds:
// nothing that a caller can choose.
type metrics struct {
	requests *prometheus.CounterVec   // by state, key and rule
	errors   *prometheus.CounterVec   // of the module, by key and kind
	latency  *prometheus.HistogramVec // of the module, by key
	commit   prometheus.Histogram     // of the store
	batch    prometheus.Histogram     // entries of a commit
	failed   prometheus.Counter       // commits

	waiting   *prometheus.GaugeVec   // signatures, by key
	throttled *prometheus.CounterVec // by key
	turn      prometheus.Histogram   // that a replica waits for
}

func newMetrics(to prometheus.Registerer, b *Broker) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsm_broker_requests_total",
			Help: "Requests that came into a state, by state, key and rule."}, []string{"state", "key", "rule"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsm_broker_signature_errors_total",
			Help: "Signatures that the module did not make, by key and kind of the failure."}, []string{"key", "kind"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "hsm_broker_module_seconds",
			Help:    "Time that the module took for a signature, its verification included, by key.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}, []string{"key"}),
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "hsm_broker_commit_seconds",
			Help:    "Time that a transaction of the store took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "hsm_broker_commit_entries",
			Help: "Entries of the log in a transaction of the store.", Buckets: prometheus.ExponentialBuckets(1, 2, 10)}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{Name: "hsm_broker_commit_errors_total",
			Help: "Transactions of the store that failed."}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "hsm_broker_signatures_waiting",
			Help: "Signatures that wait for a place at their module, by key."}, []string{"key"}),
		throttled: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsm_broker_signatures_throttled_total",
			Help: "Signatures that were refused as too many waited for the module, by key."}, []string{"key"}),
		turn: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "hsm_broker_turn_wait_seconds",
			Help:    "Time that this replica waited until it might add to the log.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15)}),
	}
	if to != nil {
		to.MustRegister(m.requests, m.errors, m.latency, m.commit, m.batch, m.failed, m.waiting, m.throttled,
			readOnlyCollector{b})
		for _, g := range b.gauges() {
			to.MustRegister(g)
		}
	}
	if to != nil && b.options.Replica != nil {
		to.MustRegister(m.turn)
		for _, g := range b.replicaGauges() {
			to.MustRegister(g)
		}
	}
	return m
}

// gauges are read when Prometheus asks.
func (b *Broker) gauges() (all []prometheus.Collector) {
	add := func(name, help string, read func() float64) {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
	}
	add("hsm_broker_log_entries", "Entries of the log.", func() float64 { return float64(b.durable.Load()) })
	add("hsm_broker_log_unpublished_entries", "Entries of the log that no checkpoint covers.",
		func() float64 { return float64(b.unpublished()) })
	add("hsm_broker_log_unpublished_seconds",
		"Time since the oldest entry that no checkpoint covers was added; 0 if all are covered.", func() float64 {
			if b.unpublished() == 0 {
				return 0
			}
			return max(0, (b.clock.clock.Boot() - time.Duration(b.ahead.Load())).Seconds())
		})
	add("hsm_broker_clock_jump_seconds", "By how much the clock is wrong; 0 if it is right.",
		func() float64 { return b.clock.frozen(time.Time{}).Seconds() })
	add("hsm_broker_keys_blocked", "Keys that are blocked.", func() float64 {
		if blocked := b.blocked.Load(); blocked != nil {
			return float64(len(*blocked))
		}
		return 0
	})
	add("hsm_broker_signatures_in_flight", "Requests for signatures that are being answered.",
		func() float64 { return float64(b.flying.now.Load()) })
	return all
}

// replicaGauges are those of a broker that shares its store. They tell what was seen last.
func (b *Broker) replicaGauges() (all []prometheus.Collector) {
	add := func(name, help string, read func() float64) {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
	}
	number := func(is bool) float64 {
		if is {
			return 1
		}
		return 0
	}
	add("hsm_broker_leader", "1 if this replica leads.", func() float64 { return number(b.Leads()) })
	add("hsm_broker_replicas", "Replicas that are alive; 0 while the database is away.", func() float64 {
		if s, err := b.sight(); err == nil {
			return float64(len(s.members))
		}
		return 0
	})
	add("hsm_broker_standby", "1 if commits wait for a standby of the database.", func() float64 {
		s, err := b.sight()
		return number(err == nil && (s.standby == store.StandbyThere || s.standby == store.StandbyUnknown))
	})
	return all
}

// unpublished returns the number of durable entries that no checkpoint covers.
func (b *Broker) unpublished() int64 {
	size := b.durable.Load() // before the checkpoint, which may be newer
	if newest := b.published.Load(); newest != nil {
		return max(0, size-newest.Size)
	}
	return size
}

// readOnlyReasons are the values of the label reason, by why nothing is signed.
var readOnlyReasons = map[string]string{
	older: "database-older", forked: "database-forked", noFile: "checkpoint-file-missing",
	newConfig: "config-not-in-force",
	future:    "entries-from-the-future",
	badPolicy: "policy-unreadable",
}

// otherReason is the reason of a broker that signs nothing for another reason.
const otherReason = "other"

var readOnlyMetric = prometheus.NewDesc("hsm_broker_read_only", "1 if the broker signs nothing for this reason.",
	[]string{"reason"}, nil)

// readOnlyCollector tells why a broker signs nothing.
type readOnlyCollector struct{ b *Broker }

// Describe sends the description of the metric.
func (readOnlyCollector) Describe(to chan<- *prometheus.Desc) { to <- readOnlyMetric }

// Collect sends the metric of each reason.
func (c readOnlyCollector) Collect(to chan<- prometheus.Metric) {
	is := ""
	if why := c.b.readOnly.Load(); why != nil {
		if is = readOnlyReasons[*why]; is == "" {
			is = otherReason
		}
	}
	send := func(reason string) {
		value := 0.0
		if reason == is {
			value = 1
		}
		to <- prometheus.MustNewConstMetric(readOnlyMetric, prometheus.GaugeValue, value, reason)
	}
	for _, reason := range readOnlyReasons {
		send(reason)
	}
	send(otherReason)
}

// signed counts a use of the module.
func (m *metrics) signed(key string, took time.Duration, err error) {
	m.latency.WithLabelValues(key).Observe(took.Seconds())
	for _, kind := range []failure.Kind{failure.Unavailable, failure.Timeout} { // so that a rate has the first one, too
		m.errors.WithLabelValues(key, kind.String())
	}
	if err != nil {
		m.errors.WithLabelValues(key, failure.From(err).Kind.String()).Inc()
	}
}

// transition is a request that comes into a state.
type transition struct{ state, key, rule string }

// transition returns what an event is for a request, before it is applied. ok is false for other events.
func (s *state) transition(e *Event) (t transition, ok bool) {
	t = transition{e.State, e.Key, e.Rule}
	switch e.Type {
	case intended:
		t.state = "signing"
	case signed:
		t.state = "signed"
	case failed:
		t.state = "failed"
	case lost:
		t.state = "lost"
	case requested, ended:
	default:
		return t, false
	}
	if r := s.Requests[e.Request]; r != nil { // the outcome of an intent does not repeat these
		if t.key == "" {
			t.key = r.Key
		}
		if t.rule == "" {
			t.rule = r.Rule
		}
	}
	return t, true
}

// count counts transitions that are durable.
func (m *metrics) count(all []transition) {
	for _, t := range all {
		m.requests.WithLabelValues(t.state, t.key, t.rule).Inc()
	}
}
