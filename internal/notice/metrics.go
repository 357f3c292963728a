package notice

import "github.com/prometheus/client_golang/prometheus"

// metrics count notices by channel.
type metrics struct{ queued, delivered, failed, abandoned *prometheus.CounterVec }

func newMetrics(to prometheus.Registerer, channels []*channel) *metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"channel"})
		for _, one := range channels {
			c.WithLabelValues(one.name) // so that a rate has the first one, too
		}
		if to != nil {
			to.MustRegister(c)
		}
		return c
	}
	return &metrics{
		queued:    counter("hsm_broker_notices_queued_total", "Notices that the broker made, by channel."),
		delivered: counter("hsm_broker_notices_delivered_total", "Notices that were delivered, by channel."),
		failed:    counter("hsm_broker_notice_errors_total", "Attempts to deliver a notice that failed, by channel."),
		abandoned: counter("hsm_broker_notices_abandoned_total", "Notices that were given up, by channel."),
	}
}
