// Command docker-hsm is the plugin "hsm" of Docker's command line: docker hsm pull and docker hsm run verify an image
// before docker gets it, by its digest.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/dockercli"
	"github.com/notation-hsm/notation-hsm/internal/folders"
)

// version is set by the linker for releases.
var version = "0.1.0"

func main() { os.Exit(run(os.Args[1:])) }

// run runs the command that the arguments name and returns the exit code: docker's, if docker was run and failed.
func run(args []string) int {
	folders.UseNotation()
	ctx, stop := dockercli.Interruptible(context.Background())
	defer stop()
	docker, args, help, err := dockercli.Split(args)
	if err == nil {
		c := command(docker)
		if help {
			args = []string{"hsm", "--help"}
		}
		c.SetArgs(args)
		err = c.ExecuteContext(ctx)
	}
	var exit *dockercli.ExitError
	var failed *runError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	_, _ = os.Stderr.Write(cli.FormatError(err)) // there is nowhere to report that writing has failed
	if errors.As(err, &failed) {
		return notRun
	}
	return cli.ExitCode(err)
}

// notRun is the exit code of 'docker run' when no container was run: other codes are the container's.
const notRun = 125

// A runError is why no container was run.
type runError struct{ error }

func (e *runError) Unwrap() error { return e.error }

// command returns the command line as docker calls it: the plugin's command and the one that describes the plugin.
func command(docker dockercli.Docker) *cobra.Command {
	root := cli.Root(&cobra.Command{
		Use:     "docker",
		Short:   "Run Docker's command line with verified images",
		Long:    "docker-hsm is a plugin of Docker's command line: call it as 'docker hsm'.",
		Version: version,
	}, hsmCommand(docker), metadataCommand())
	root.TraverseChildren = true // the options of 'docker hsm' stand before its command, and docker's after it
	return root
}

// metadataCommand describes the plugin to docker.
func metadataCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "docker-cli-plugin-metadata",
		Hidden: true,
		Args:   cli.Exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return cli.PrintJSON(c.OutOrStdout(), map[string]string{
				"SchemaVersion": "0.1.0", "Vendor": "notation-hsm", "Version": version, "ShortDescription": short})
		},
	}
}
