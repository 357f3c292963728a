package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

// metrics are what a server counts for Prometheus. Operations are those of the API: no caller can add one.
type metrics struct {
	requests *prometheus.CounterVec   // by operation and status
	failures *prometheus.CounterVec   // by operation and kind
	latency  *prometheus.HistogramVec // by operation
}

// The operations of requests that no operation of the API takes.
const (
	noOperation   = "none"
	pageOperation = "page" // the page takes them
)

func newMetrics(to prometheus.Registerer, limits *httpapi.Limits) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsm_broker_http_requests_total",
			Help: "Requests of the API that were answered, by operation and status."}, []string{"operation", "status"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsm_broker_refusals_total",
			Help: "Requests of the API that were answered with a failure, by operation and kind."},
			[]string{"operation", "kind"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "hsm_broker_http_seconds",
			Help:    "Time that a request of the API took, by operation.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 17)}, []string{"operation"}),
	}
	if to != nil {
		to.MustRegister(m.requests, m.failures, m.latency, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hsm_broker_http_connections", Help: "Open connections of callers."},
			func() float64 { return float64(limits.Use().Connections) }))
	}
	return m
}

// observe counts, times and traces requests.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		operation := noOperation
		if _, pattern := a.mux.Handler(r); pattern != "" {
			operation = pattern
		} else if a.isPage(r) {
			operation = pageOperation
		}
		ctx, span := a.options.Tracer.Request(r.Context(), r.Header.Get("Traceparent"), operation)
		ctx = httpapi.WithCaller(ctx, "operation", operation)
		ctx, kind := httpapi.Observe(ctx)
		answer := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(answer, r.WithContext(ctx))
		status := strconv.Itoa(answer.status)
		a.metrics.requests.WithLabelValues(operation, status).Inc()
		a.metrics.latency.WithLabelValues(operation).Observe(time.Since(began).Seconds())
		if kind() != "" {
			a.metrics.failures.WithLabelValues(operation, kind()).Inc()
		}
		span.Set("http.response.status_code", status)
		span.End(kind())
	})
}
