package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// How long a caller can take, and how much it can send before the body.
const (
	readTime   = 20 * time.Second // to send a request
	writeTime  = 20 * time.Second // to read the answer
	IdleTime   = 5 * time.Minute  // between requests
	maxHeaders = 16 << 10         // bytes of the path and the headers
)

// Serve serves callers until ctx ends, and then lets requests in flight finish for a short while. connected returns the
// context of a new connection's requests; what it returns comes from limits.Admit.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler, limits *Limits,
	connected func(context.Context, net.Conn) context.Context) error {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: readTime, ReadTimeout: readTime, WriteTimeout: writeTime,
		IdleTimeout: IdleTime, MaxHeaderBytes: maxHeaders, DisableGeneralOptionsHandler: true,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext: connected, ConnState: limits.Track,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	answered := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(answered)
		ending, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if server.Shutdown(ending) != nil {
			server.Close()
		}
	})
	err := server.Serve(listener)
	if !stop() {
		<-answered // Serve itself returns as soon as the server stops to accept
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return failure.New(failure.Unavailable, "cannot serve: %w", err)
	}
	return nil
}
