package publisher

import (
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/tags"
)

// tell logs a publication, and why something is not published: once, until the reason is another.
func (r *followed) tell(report *tags.Report, err error) {
	if err != nil {
		f := failure.From(err)
		if now := f.Error(); now != r.told {
			r.told = now
			slog.Error("cannot publish tags", "repository", r.Name, "error", f, "hint", f.Hint)
		}
		return
	}
	if report.Published {
		slog.Info("published tags", "repository", r.Name, "version", report.Versions.Timestamp, "proposals",
			report.Proposals)
	}
	if report.Restored {
		slog.Warn("restored published tags", "repository", r.Name, "reason", tags.RestoredTag)
	}
	reasons := slices.Concat(report.Held, report.Refused, report.Kept)
	if now := strings.Join(reasons, "\n"); now != r.told {
		if r.told = now; now != "" {
			slog.Warn("some proposals are not published", "repository", r.Name, "reasons", reasons)
		}
	}
}

// metrics are what a publisher counts for Prometheus. The values of the label repository are those of the config file.
type metrics struct {
	rounds *prometheus.CounterVec // by repository and result
	expiry *prometheus.GaugeVec   // by repository and role
}

// The values of the label result.
const (
	published = "published"
	unchanged = "unchanged"
	failed    = "failed"
)

func newMetrics(to prometheus.Registerer) *metrics {
	m := &metrics{
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsm_broker_tag_rounds_total",
			Help: "How often the tags of a repository were published, unchanged, or could not be published."},
			[]string{"repository", "result"}),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "hsm_broker_tag_expiry_timestamp_seconds",
			Help: "When a role of a repository's tags expires, in seconds since 1970; 0 if that is not known."},
			[]string{"repository", "role"}),
	}
	if to != nil {
		to.MustRegister(m.rounds, m.expiry)
	}
	return m
}

// add makes the series of a repository.
func (m *metrics) add(repository string) {
	for _, result := range []string{published, unchanged, failed} {
		m.rounds.WithLabelValues(repository, result)
	}
	for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
		m.expiry.WithLabelValues(repository, role)
	}
}

// count counts a round, and notes when roles expire. A round that fails leaves what is known of that.
func (m *metrics) count(repository string, report *tags.Report, err error) {
	if err != nil {
		m.rounds.WithLabelValues(repository, failed).Inc()
		return
	}
	result := unchanged
	if report.Published {
		result = published
	}
	m.rounds.WithLabelValues(repository, result).Inc()
	for role, expires := range map[string]time.Time{"root": report.Expiry.Root, "targets": report.Expiry.Targets,
		"snapshot": report.Expiry.Snapshot, "timestamp": report.Expiry.Timestamp} {
		m.expiry.WithLabelValues(repository, role).Set(float64(expires.Unix()))
	}
}
