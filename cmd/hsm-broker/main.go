// Command hsm-broker uses keys in a module for programs that have neither the module nor its PIN.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/cli"
)

// version is set by the linker for releases.
var version = "0.1.0"

func main() {
	backends.ServeWorker()
	os.Exit(run())
}

// run runs the command. A signal ends it, but those that serve handle signals themselves: they finish what they do.
func run() int {
	debug.SetGCPercent(400) // the heap is small, and each signature leaves some garbage
	if err := cli.Prepare(cli.FormatError); err != nil {
		_, _ = os.Stderr.Write(cli.FormatError(err))
		return 1
	}
	return cli.Run(context.Background(), command())
}

// command returns the command that holds all others.
func command() *cobra.Command {
	return cli.Root(&cobra.Command{
		Use:   "hsm-broker",
		Short: "Use keys in a module for programs that have neither the module nor its PIN",
		Long: `hsm-broker logs in to a module and uses its keys for other programs, which need no PIN. It reads what
is to be signed, and signs what a key is allowed to sign. 'hsm-broker agent' does so for one person
on one machine.`,
		Version: version,
	}, agentCommand())
}
