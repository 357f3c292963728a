// Command hsm-broker uses keys in a module for programs that have neither the module nor its PIN.
package main

import (
	"context"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/harden"
)

// version is set by the linker for releases.
var version = "0.1.0"

// unprotected is why the process was not protected from its start.
var unprotected error

func main() {
	backends.ServeWorker()
	if startsAgent(os.Args[1:]) {
		unprotected = harden.Restart()
	}
	os.Exit(run())
}

// startsAgent reports whether arguments start an agent, and not one of its subcommands.
func startsAgent(args []string) bool {
	return len(args) > 0 && args[0] == "agent" && (len(args) == 1 || strings.HasPrefix(args[1], "-"))
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
	}, agentCommand(), logCommand(), policyCommand())
}
