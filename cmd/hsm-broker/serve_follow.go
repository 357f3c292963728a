package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/telemetry"
	"github.com/notation-hsm/notation-hsm/internal/translog/feed"
)

// logToStderr has the broker log on standard error, unless a variable names a file for its log: in JSON, or as text on
// a terminal.
func logToStderr() {
	if config.LogsToFile() {
		return
	}
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	var handler slog.Handler = slog.NewJSONHandler(os.Stderr, options)
	if term.IsTerminal(int(os.Stderr.Fd())) { //nolint:gosec // a descriptor fits
		handler = slog.NewTextHandler(os.Stderr, options)
	}
	slog.SetDefault(slog.New(handler))
}

// follow starts what delivers the log and the traces elsewhere, until the returned function is called. Of the replicas
// of a broker, the one that leads delivers the log.
func follow(f *brokerfile.File, b *broker.Broker, tracer *telemetry.Tracer, metrics prometheus.Registerer) (
	stop func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	stop = func() {
		cancel()
		group.Wait()
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	for i, c := range f.Log.Feeds {
		one, err := feed.New(c, feed.Log{Origin: f.Log.Origin, Entries: b.Log().Entries,
			Size: func(context.Context) (int64, error) { return b.Published(), nil }}, version)
		if err != nil {
			return nil, err
		}
		name := followerOf(c)
		if _, err := b.Position(ctx, name); err != nil {
			return nil, err
		}
		metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "hsm_broker_feed_lag_entries",
			Help:        "Entries under a checkpoint that a feed has not delivered.",
			ConstLabels: prometheus.Labels{"feed": one.Name(), "index": strconv.Itoa(i)}},
			func() float64 {
				if !b.Leads() {
					return 0
				}
				return float64(max(0, b.Published()-one.Position()))
			}))
		group.Go(func() { b.WhileLeading(ctx, func(ctx context.Context) { deliver(ctx, b, one, name) }) })
	}
	if tracer != nil {
		metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "hsm_broker_spans_dropped_total",
			Help: "Spans of traces that the collector did not get."}, func() float64 { return float64(tracer.Dropped()) }))
		group.Go(func() { tracer.Run(ctx) })
	}
	return stop, nil
}

// deliver has a feed deliver the log from where it, or that of another replica, has ended, until ctx ends.
func deliver(ctx context.Context, b *broker.Broker, one *feed.Feed, name string) {
	position, err := b.Position(ctx, name)
	if err == nil {
		err = one.Run(ctx, position, func(ctx context.Context, position int64) error {
			return b.SetPosition(ctx, name, position)
		})
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		slog.Error("a feed of the log has ended", "feed", one.Name(), "error", err)
	}
}

// followerOf returns the name under which the position of a feed is kept: that of its target, which may have a secret
// in its path.
func followerOf(c feed.Config) string {
	hash := sha256.Sum256([]byte(c.File + "\n" + c.Syslog + "\n" + c.Webhook))
	return hex.EncodeToString(hash[:16])
}

// registerProcess adds the metrics of the program, and of the disk that has the database of SQLite.
func registerProcess(metrics prometheus.Registerer, database string) {
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "hsm_broker_build_info", Help: "1, with the version.",
		ConstLabels: prometheus.Labels{"version": version}})
	info.Set(1)
	metrics.MustRegister(info)
	if database == "" { // it is on another machine
		return
	}
	metrics.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "hsm_broker_store_bytes",
			Help: "Size of the database and of its write-ahead log."}, func() (size float64) {
			for _, path := range []string{database, database + "-wal"} {
				if info, err := os.Stat(path); err == nil {
					size += float64(info.Size())
				}
			}
			return size
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "hsm_broker_store_free_bytes",
			Help: "Free space of the file system that has the database."}, func() float64 {
			var fs unix.Statfs_t
			if unix.Statfs(database, &fs) != nil {
				return 0
			}
			return float64(fs.Bavail) * float64(fs.Bsize)
		}))
}
