package config

import (
	"log/slog"
	"os"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// LogsToFile reports whether NOTATION_HSM_LOG names a file for the log.
func LogsToFile() bool { return os.Getenv(logVariable) != "" }

// OpenLog makes slog's default logger write to the file that NOTATION_HSM_LOG names, and returns the file. Without that
// variable nothing is logged, and the file is nil. Callers log steps and their results, never a PIN, a payload or key
// material.
func OpenLog() (*os.File, error) {
	path := os.Getenv(logVariable)
	if path == "" {
		slog.SetDefault(slog.New(slog.DiscardHandler))
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot open the log file: %w", err).
			WithHint("name a file that this user can write in NOTATION_HSM_LOG, or unset it")
	}
	handler := slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug})
	slog.SetDefault(slog.New(handler).With("pid", os.Getpid()))
	return f, nil
}
