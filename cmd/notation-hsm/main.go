// Command notation-hsm is the Notation plugin "hsm". Its commands manage the keys and certificates that the plugin
// signs with, in a PKCS#11 module or a NetHSM.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/plugin"
)

// version is set by the linker for releases.
var version = "0.1.0"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	asPlugin := len(os.Args) == 2 && plugin.IsCommand(os.Args[1])
	form := cli.FormatError
	if asPlugin {
		form = plugin.FormatError
	}
	if err := cli.Prepare(form); err != nil {
		_, _ = os.Stderr.Write(form(err)) // there is nowhere to report that writing has failed
		return 1
	}
	var warnings io.Writer = os.Stderr // which cli.Prepare has set
	if asPlugin {
		warnings = io.Discard // Notation reads standard error; the log has them
	}
	ks := backends.KeystoreWarning(warnings)
	defer ks.Close()
	if asPlugin {
		return plugin.Plugin{Version: version, Keystore: ks}.Serve(ctx, os.Args[1], os.Stdin, os.Stdout, os.Stderr)
	}
	return cli.Run(ctx, command(ks))
}
