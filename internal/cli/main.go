package cli

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/crashreport"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/stdio"
)

// Prepare readies the process for a module, whose code can write to any descriptor and crash: it opens the log,
// redirects standard output and standard error of the module to it, and sets how a crash is reported. form formats a
// failure.
func Prepare(form func(error) []byte) error {
	log, err := config.OpenLog()
	if err != nil {
		return err
	}
	if err := stdio.Redirect(log); err != nil {
		return err
	}
	crashreport.SetFormat(form)
	folders.UseNotation()
	return nil
}

// Exit codes of every command, by the kind of its failure.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitDenied      = 3
	exitNotFound    = 4
	exitUnavailable = 5
)

// ExitCode returns the exit code of a failure.
func ExitCode(err error) int {
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case failure.Is(err, failure.Denied):
		return exitDenied
	case failure.Is(err, failure.NotFound):
		return exitNotFound
	case failure.Is(err, failure.Unavailable), failure.Is(err, failure.Timeout):
		return exitUnavailable
	}
	return exitFailure
}

// Run runs the command that the process arguments name and returns the exit code. It returns even if a module hangs.
func Run(ctx context.Context, root *cobra.Command) int {
	if term.IsTerminal(int(os.Stderr.Fd())) { //nolint:gosec // a descriptor fits
		ctx = withProgress(ctx, os.Stderr, time.Now)
	}
	if err := deadline.Run(ctx, root.ExecuteContext); err != nil {
		_, _ = os.Stderr.Write(FormatError(err)) // there is nowhere to report that writing has failed
		return ExitCode(err)
	}
	return 0
}

// Root completes the root command of an executable, and adds its subcommands. --version prints its version, and whether
// PKCS#11 modules can be used.
func Root(root *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	root.Version += ", " + modules
	root.Args = cobra.ArbitraryArgs // so that an unknown command reaches OnlyGroup
	root.RunE = OnlyGroup
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(Usage)
	root.SetUsageFunc(wrappedUsage(root.UsageFunc()))
	root.AddCommand(commands...)
	return root
}
