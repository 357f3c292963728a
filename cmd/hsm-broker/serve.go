package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/agent"
	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/broker/api"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/logflags"
	"github.com/notation-hsm/notation-hsm/internal/notice"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/telemetry"
)

// defaultConfig is the config file of a broker without --config.
const defaultConfig = "/etc/hsm-broker/config.yaml"

func serveCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Use keys for a team: CI signs without a PIN, and a policy decides what is signed",
		Args:  cli.Exactly(0),
	}
	addConfig(c, &file)
	c.RunE = func(c *cobra.Command, _ []string) error {
		logToStderr()
		if err := protect(); err != nil {
			return err
		}
		f, err := brokerfile.Read(file)
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return serveTeam(ctx, c.OutOrStdout(), f)
	}
	return c
}

// serveTeam runs the broker of a config file until ctx ends.
func serveTeam(ctx context.Context, out io.Writer, f *brokerfile.File) (err error) {
	service := agent.NewNotifier()
	var opened closers
	defer func() { err = errors.Join(err, opened.close()) }()
	text, err := os.ReadFile(f.Policy)
	if err != nil {
		return failure.New(failure.NotFound, "cannot read the policy: %w", err).WithHint("set policy in the config file")
	}
	decisive, err := f.Decisive()
	if err != nil {
		return err
	}
	callers, err := identity.New(f.Callers, f.Administrators)
	if err != nil {
		return err
	}
	opened.add(func() error { callers.Close(); return nil })
	registries, err := repository.New(repository.Config{Registries: f.Registries})
	if err != nil {
		return err
	}
	url := strings.TrimSuffix(f.PublicURL, "/")
	first, err := firstApprovers(f)
	if err != nil {
		return err
	}
	tagged, err := readRepositories(f)
	if err != nil {
		return err
	}
	s, err := openStore(ctx, f)
	if err != nil {
		return err
	}
	opened.add(s.Close)
	replica, err := replicaOf(f, s)
	if err != nil {
		return err
	}
	refused := refusalsIn(f, s)
	opened.add(refused.Close)
	ks := backends.GuardedService(refused.Guard)
	keys := held.New(ks, failure.New(failure.Unavailable, "the broker is stopping").WithHint("try again"))
	opened.add(keys.Close)
	stopFollowing := background(func(ctx context.Context) { refused.Follow(ctx, ks.Forget) })
	opened.add(func() error { stopFollowing(); return nil })
	signing, err := openLogKey(ctx, ks, f, keys)
	if err != nil {
		return err
	}
	witnesses, err := f.WitnessClients()
	if err != nil {
		return err
	}
	metrics := prometheus.NewRegistry()
	registerProcess(metrics, f.StorePath())
	told, err := notice.New(notice.Options{Config: f.Told(), Store: s, PublicURL: url, Version: version,
		Registerer: metrics})
	if err != nil {
		return err
	}
	var b *broker.Broker
	use := heldKeys(ks, f, keys, func(name string) *policy.Key { return b.Key(name) })
	use.Log = signing.Copies
	metrics.MustRegister(use.Collector())
	b, err = broker.Open(ctx, broker.Options{
		Store: s, Policy: text, Config: decisive, Keys: use, Limits: f.Callers.Limits.WithDefaults(),
		Check: registries.Check, Manifests: registries.Manifests, Registerer: metrics, First: first,
		PublicURL: url, Notices: told.Rows, Replica: replica, Keep: keepOf(f),
		Log: broker.Log{
			Origin: f.Log.Origin, Public: signing.public, File: f.Log.CheckpointFile,
			MaxUnpublished: f.Log.MaxUnpublished.Time, MaxUnpublishedEntries: f.Log.MaxUnpublished.Entries,
			Witnesses: witnesses,
			Sign:      signing.sign,
		},
	})
	if err != nil {
		return err
	}
	opened.add(b.Close)
	var tracer *telemetry.Tracer
	if f.Traces != "" {
		if tracer, err = telemetry.New(f.Traces, version); err != nil {
			return err
		}
	}
	stopTelling := background(told.Run)
	opened.add(func() error { stopTelling(); return nil })
	stop, err := follow(f, b, tracer, metrics)
	if err != nil {
		return err
	}
	opened.add(func() error { stop(); return nil })
	stopTags := publishTags(f, tagged, registries, b, use, metrics)
	opened.add(func() error { stopTags(); return nil })
	shared := secretsOf(s, replica)
	page, sessions, err := newPage(f, b, use, registries, url, shared)
	if err != nil {
		return err
	}
	return listen(ctx, out, service, f, api.New(api.Options{Broker: b, Identity: callers, Keys: use, PublicURL: url,
		Modules: use.Modules, Version: version, Size: int64(f.Callers.Limits.WithDefaults().Size), Page: page.Handler(),
		Sessions: sessions,
		Uses:     shared.uses, Registerer: metrics, Tracer: tracer}), metrics)
}

// listen serves on all listeners of a config file until ctx ends or one of them fails.
func listen(ctx context.Context, out io.Writer, service agent.Notifier, f *brokerfile.File, server *api.API,
	metrics *prometheus.Registry) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var serving []func() error
	var listening []string
	if h := f.Listen.HTTPS; h != nil {
		l, err := api.ListenTLS(ctx, h.Address, api.Certificate{Chain: h.Certificate, Key: h.Key, ClientCA: h.ClientCA})
		if err != nil {
			return err
		}
		defer l.Close()
		listening = append(listening, "https://"+l.Addr().String())
		serving = append(serving, func() error { return server.Serve(ctx, l) })
	}
	if u := f.Listen.Unix; u != nil {
		l, err := api.ListenUnix(ctx, u.Path)
		if err != nil {
			return err
		}
		defer l.Close()
		listening = append(listening, "unix:"+u.Path)
		serving = append(serving, func() error { return server.Serve(ctx, l) })
	}
	if address := f.Listen.Metrics; address != "" {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			return failure.New(failure.Unavailable, "cannot listen on %s for metrics: %w", address, err).
				WithHint("set listen.metrics to a free address")
		}
		defer l.Close()
		listening = append(listening, "http://"+l.Addr().String()+"/metrics")
		serving = append(serving, func() error { return serveMetrics(ctx, l, metrics) })
	}
	failed := make(chan error, len(serving))
	for _, serve := range serving {
		go func() {
			defer cancel() // one that ends ends the others
			failed <- serve()
		}()
	}
	for _, address := range listening {
		fmt.Fprintln(out, "listening on "+address)
	}
	service.Notify("READY=1")
	defer context.AfterFunc(ctx, func() { service.Notify("STOPPING=1") })()
	var all []error
	for range serving {
		all = append(all, <-failed)
	}
	return errors.Join(all...)
}

// serveMetrics serves Prometheus' metrics until ctx ends.
func serveMetrics(ctx context.Context, l net.Listener, metrics *prometheus.Registry) error {
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return failure.New(failure.Unavailable, "cannot serve metrics: %w", err)
	}
	return nil
}

// epoch is what the name of a log has besides in a later epoch.
var epoch = regexp.MustCompile(`^(/[1-9][0-9]*)?$`)

// originIn returns the name of a broker's log in a checkpoint, whose signature it does not verify: the name in the
// config file, or the one of a later epoch. It fails with Denied for the checkpoint of another log.
func originIn(f *brokerfile.File, checkpoint []byte) (string, error) {
	origin, _, _ := strings.Cut(string(checkpoint), "\n")
	if rest, ours := strings.CutPrefix(origin, f.Log.Origin); !ours || !epoch.MatchString(rest) {
		return "", failure.New(failure.Denied, "the checkpoint is of the log %.100q, not of %q", origin, f.Log.Origin).
			WithHint("name a copy of this broker's log, and check log.origin in the config file")
	}
	return origin, nil
}

func logKeyCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "key",
		Short: "Print the public key of a broker's log, as 'log verify --key' takes it",
		Long: `Print the public key of a broker's log, as 'log verify --key' takes it: ORIGIN+ID+KEY (C2SP signed-note).
Publish it where auditors find it, not on the broker. A new epoch has another name of the log: print it
again then.`,
		Args: cli.Exactly(0),
	}
	addConfig(c, &file)
	c.RunE = func(c *cobra.Command, _ []string) error {
		f, err := brokerfile.Read(file)
		if err != nil {
			return err
		}
		origin := f.Log.Origin
		checkpoint, err := logflags.ReadFile(f.Log.CheckpointFile)
		if err == nil {
			origin, err = originIn(f, checkpoint)
		}
		if err != nil && !failure.Is(err, failure.NotFound) { // it does not exist before the first start
			return err
		}
		v, err := logVerifier(c.Context(), f, origin)
		if err != nil {
			return err
		}
		fmt.Fprintln(c.OutOrStdout(), v)
		return nil
	}
	return c
}

// background runs a function until the returned function is called, which waits for its end.
func background(run func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		run(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// closers are what was opened, closed in the reverse order.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c *closers) close() error {
	var failed []error
	for i := len(*c) - 1; i >= 0; i-- {
		if err := (*c)[i](); err != nil {
			slog.Warn("cannot end in order", "error", err)
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
