// Command hsm-broker uses keys in a module for programs that have neither the module nor its PIN.
package main

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/harden"
)

// version is set by the linker for releases.
var version = "0.1.0"

// unprotected is why the process was not protected from its start.
var unprotected error

func main() {
	backends.ServeWorker()
	if serves(os.Args[1:]) {
		unprotected = harden.Restart()
	}
	os.Exit(run())
}

// serves reports whether arguments start a program that holds PINs for long: a broker, or an agent and not one of its
// subcommands.
func serves(args []string) bool {
	return len(args) > 0 && (args[0] == "serve" ||
		args[0] == "agent" && (len(args) == 1 || strings.HasPrefix(args[1], "-")))
}

// protect keeps other processes from the memory of this one.
func protect() error {
	if err := harden.Memory(); err != nil { // the environment may hold the PIN
		return failure.New(failure.Unavailable, "cannot protect the memory of the broker: %w", err).
			WithHint("allow it where this process is confined")
	}
	if unprotected != nil {
		slog.Warn("other processes of the user could open the memory of the broker while it started", "error", unprotected)
	}
	if tracer, err := harden.Tracer(); os.Geteuid() != 0 && (err != nil || tracer != 0) {
		return failure.New(failure.Denied, "another process can read the memory of the broker: process %d traces it", tracer).
			WithHint("start the broker without a debugger")
	}
	return nil
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
on one machine; 'hsm-broker serve' for a team, as a policy says.`,
		Version: version,
	}, agentCommand(), initCommand(), checkConfigCommand(), serveCommand(), policyCommand(),
		requestCommand(), approveCommand(), rejectCommand(), approverCommand(), configCommand(), keyCommand(),
		logCommand(), reportCommand(), backupCommand(), restoreCommand(), migrateCommand(), pinCommand())
}
