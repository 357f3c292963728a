package monitor

import "github.com/prometheus/client_golang/prometheus"

// metrics are those of a monitor.
type metrics struct {
	alerts                                     *prometheus.CounterVec
	errors, undelivered                        prometheus.Counter
	size, read, since, success, waiting, other prometheus.Gauge
	forgotten                                  prometheus.Gauge
}

func newMetrics(to prometheus.Registerer) *metrics {
	const prefix = "hsm_log_monitor_"
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
	}
	m := &metrics{
		alerts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "alerts_total",
			Help: "Alerts, by class."}, []string{"class"}),
		errors:      counter("errors_total", "Looks at the log, or at others' checkpoints, that failed."),
		undelivered: counter("webhook_errors_total", "Attempts to deliver an alert that failed."),
		size:        gauge("log_entries", "Entries of the newest checkpoint."),
		read:        gauge("read_entries", "Entries that were read."),
		since:       gauge("checkpoint_seconds", "Unix time when the newest checkpoint was seen first."),
		success:     gauge("success_seconds", "Unix time of the last look that verified the log."),
		waiting:     gauge("waiting_alerts", "Alerts that the webhook does not have yet."),
		other:       gauge("unknown_entries", "Entries of types that this version does not know."),
		forgotten:   gauge("forgotten_requests", "Requests that were forgotten because there were too many."),
	}
	for _, class := range Classes {
		m.alerts.WithLabelValues(class) // so that a rate has the first one, too
	}
	if to != nil {
		to.MustRegister(m.alerts, m.errors, m.undelivered, m.size, m.read, m.since, m.success, m.waiting, m.other,
			m.forgotten)
	}
	return m
}

// show sets the gauges.
func (m *Monitor) show() {
	k := m.kept
	m.metrics.size.Set(float64(m.newest.Size))
	m.metrics.read.Set(float64(k.Facts.Next))
	m.metrics.since.Set(float64(k.Since.Unix()))
	m.metrics.waiting.Set(float64(len(k.Outbox)))
	m.metrics.other.Set(float64(k.Facts.Unknown))
	m.metrics.forgotten.Set(float64(k.Facts.Forgotten))
}
