package broker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// metrics are what the broker counts for Prometheus.
type metrics struct {
	requests *prometheus.CounterVec   // by state and rule
	errors   *prometheus.CounterVec   // by kind
	latency  *prometheus.HistogramVec // of the module, by key
	commit   prometheus.Histogram     // of the store
	batch    prometheus.Histogram     // entries of a commit
}

func newMetrics(to prometheus.Registerer) *metrics {
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
	}
	if to != nil {
		to.MustRegister(m.requests, m.errors, m.latency, m.commit, m.batch)
	}
	return m
}

// signed counts a use of the module.
func (m *metrics) signed(key string, took time.Duration, err error) {
	m.latency.WithLabelValues(key).Observe(took.Seconds())
	if err != nil {
		m.errors.WithLabelValues(key, failure.From(err).Kind.String()).Inc()
	}
}

// event counts an event of a request.
func (m *metrics) event(e *Event) {
	state := e.State
	switch e.Type {
	case intended:
		state = "signing"
	case signed:
		state = "signed"
	case failed:
		state = "failed"
	case lost:
		state = "lost"
	case requested, ended:
	default:
		return
	}
	m.requests.WithLabelValues(state, e.Key, e.Rule).Inc()
}
