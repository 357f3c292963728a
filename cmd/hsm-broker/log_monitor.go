package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/logflags"
	"github.com/notation-hsm/notation-hsm/internal/monitor"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

func logMonitorCommand() *cobra.Command {
	var flags logflags.Flags
	var config, state string
	var compare []string
	var once bool
	c := &cobra.Command{
		Use:   "monitor DIR|URL",
		Short: "Follow the log of a broker, and alert when it shows what nobody agreed to",
		Long: `Follow the log that a broker or a web server serves, on a machine that the operators of the broker do
not run. It verifies that the log only grows, and reads each new entry. It alerts, in log lines, metrics
and a webhook, of forks, of uses of keys without approvals or outside their hours, and of policies that
the config does not list.

With --once, it reads up to the newest checkpoint and ends: with exit code 0 when it has found nothing, 1
when it has alerts, and 5 when the log or the webhook does not answer. It goes on where it was.`,
		Example: `  hsm-broker log monitor https://broker.example.com/v1/log --key log.pem --origin broker.example.com/log \
    --config /etc/hsm-log-monitor.yaml`,
		Args: cli.Exactly(1),
	}
	flags.Add(c)
	c.Flags().StringVar(&config, "config", "", "file that says what is expected of the log, and who is told of the rest")
	c.Flags().StringVar(&state, "state", "", "folder of what is kept between runs (default: state in the config)")
	c.Flags().StringArrayVar(&compare, "compare", nil,
		"URL of the log as others see it, or file with a checkpoint of it or a bundle of approvals; can be given again")
	c.Flags().BoolVar(&once, "once", false, "read up to the newest checkpoint, and end")
	c.RunE = func(c *cobra.Command, args []string) error {
		logToStderr()
		o, err := monitorOptions(c, &flags, args[0], config, state, compare)
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		if once {
			return monitorOnce(ctx, c, o)
		}
		return follows(ctx, o)
	}
	return c
}

// monitorOptions returns what the arguments say.
func monitorOptions(c *cobra.Command, flags *logflags.Flags, log, config, state string, compare []string,
) (o monitor.Options, err error) {
	o = monitor.Options{Config: &monitor.Config{Version: 1}, Version: version}
	if o.Verifiers, err = flags.Verifiers(c); err != nil {
		return o, err
	}
	if config != "" {
		data, err := logflags.ReadFile(config)
		if err != nil {
			return o, err
		}
		if o.Config, err = monitor.ParseConfig(config, data); err != nil {
			return o, err
		}
	}
	if state != "" {
		o.Config.State = state
	}
	if o.Config.State == "" {
		return o, cli.Required(c, "state", "/var/lib/hsm-log-monitor")
	}
	if o.Files, err = flags.Files(log); err != nil {
		return o, err
	}
	for _, name := range compare {
		view, err := viewOf(flags, name, o.Verifiers)
		if err != nil {
			return o, err
		}
		o.Views = append(o.Views, view)
	}
	return o, nil
}

// viewOf returns the log as others see it: at a URL, or as a checkpoint in a file, or in a bundle of approvals. A file
// is read now to find mistakes, and again at each look.
func viewOf(flags *logflags.Flags, name string, verifiers []*translog.Verifier) (monitor.View, error) {
	v := monitor.View{Name: name}
	if logflags.IsURL(name) {
		files, err := flags.Files(name)
		if err != nil {
			return v, err
		}
		v.Files = files
		v.Newest = func(ctx context.Context) ([]byte, error) { return files(ctx, translog.CheckpointPath) }
		return v, nil
	}
	v.Newest = func(context.Context) ([]byte, error) { return readCheckpoint(name) }
	data, err := v.Newest(context.Background())
	if err == nil {
		_, err = translog.Open(data, verifiers)
	}
	return v, err
}

// readCheckpoint returns the checkpoint in a file, or that of the bundle in it.
func readCheckpoint(path string) ([]byte, error) {
	data, err := logflags.ReadFile(path)
	if err != nil || !bytes.HasPrefix(data, []byte("{")) {
		return data, err
	}
	b, err := proof.Decode(data)
	if err != nil {
		return nil, err
	}
	return []byte(b.Checkpoint), nil
}

// monitorOnce reads the log up to its newest checkpoint.
func monitorOnce(ctx context.Context, c *cobra.Command, o monitor.Options) error {
	m, err := monitor.Open(ctx, o)
	if err != nil {
		return err
	}
	defer m.Close()
	found, err := m.Once(ctx)
	if found > 0 {
		return failure.New(failure.Conflict, "found %d alerts in %d entries of the log", found, m.Size()).
			WithHint("look at the log lines, and at what docs/monitor.md says of each class")
	}
	if err != nil {
		f := failure.From(err)
		if f.Kind == failure.NotFound || f.Kind == failure.Invalid { // what the server answers
			err = failure.New(failure.Unavailable, "%w", err).WithHint(f.Hint)
		}
		return err
	}
	fmt.Fprintf(c.OutOrStdout(), "%d entries, no alerts\n", m.Size())
	return nil
}

// follows follows the log until ctx ends.
func follows(ctx context.Context, o monitor.Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	metrics := prometheus.NewRegistry()
	o.Registerer = metrics
	var listener net.Listener
	if address := o.Config.Metrics; address != "" {
		var err error
		if listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address); err != nil {
			return failure.New(failure.Unavailable, "cannot listen on %s for metrics: %w", address, err).
				WithHint("set metrics to a free address")
		}
		defer listener.Close()
	}
	m, err := monitor.Open(ctx, o)
	if err != nil {
		return err
	}
	defer m.Close()
	served := make(chan error, 1)
	if listener != nil {
		slog.Info("serving metrics", "at", "http://"+listener.Addr().String()+"/metrics")
		go func() {
			served <- serveMetrics(ctx, listener, metrics)
			cancel()
		}()
	} else {
		served <- nil
	}
	slog.Info("following the log", "entries", m.Size())
	err = m.Run(ctx)
	cancel()
	return errors.Join(err, <-served)
}
