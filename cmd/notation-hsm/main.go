// Command notation-hsm is the Notation plugin "hsm", and the commands around it that make and show keys and certificates in
// a PKCS#11 module.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/notaryproject/notation-go/dir"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/crash"
	"github.com/notation-hsm/notation-hsm/internal/plugin"
	"github.com/notation-hsm/notation-hsm/internal/streams"
	"github.com/notation-hsm/notation-hsm/internal/watch"
)

// version is set by the linker for releases.
var version = "0.1.0"

// useNotationFolders looks for Notation's files where the notation command does: its library does not read these by itself.
func useNotationFolders() {
	for name, folder := range map[string]*string{"NOTATION_CONFIG": &dir.UserConfigDir, "NOTATION_LIBEXEC": &dir.UserLibexecDir, "NOTATION_CACHE": &dir.UserCacheDir} {
		if value := os.Getenv(name); value != "" {
			*folder = value
		}
	}
}

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	asPlugin := len(os.Args) == 2 && plugin.IsVerb(os.Args[1])
	form := formatError
	if asPlugin {
		form = plugin.FormatError
	}
	fail := func(err error) int {
		_, _ = os.Stderr.Write(form(err)) // nobody is left to tell
		return 1
	}
	log, err := config.OpenLog()
	if err == nil {
		err = streams.Guard(log)
	}
	if err != nil {
		return fail(err)
	}
	crash.Report(form)
	useNotationFolders()
	if asPlugin {
		return plugin.Plugin{Version: version}.Serve(ctx, os.Args[1], os.Stdin, os.Stdout, os.Stderr)
	}
	if err := watch.Run(ctx, func(ctx context.Context) error { return command().ExecuteContext(ctx) }); err != nil {
		return fail(err)
	}
	return 0
}
