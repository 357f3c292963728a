package main

import (
	"context"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/dockercli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/verification"
)

const short = "Pull and run images whose signatures verify"

func hsmCommand(docker dockercli.Docker) *cobra.Command {
	c := cli.Group("hsm", short)
	c.Long = `Verify an image as 'hsm-image verify' does, and have docker pull or run it by its digest. An image
without valid trust data is neither pulled nor run, even if the engine has one under its tag.

The options of docker hsm stand before its command, and docker's options after it.`
	c.Example = `  docker hsm pull registry.example.com/team/app:1.2
  docker --context build hsm --log decisions.jsonl run --rm -it registry.example.com/team/app:1.2 sh`
	flags := verification.AddFlags(c)
	verify := func(ctx context.Context, image string) (string, error) {
		ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		return flags.Pin(ctx, image, c.ErrOrStderr())
	}
	c.AddCommand(pullCommand(docker, verify), runCommand(docker, verify), inspectCommand(flags))
	return c
}

func pullCommand(docker dockercli.Docker, verify dockercli.Verify) *cobra.Command {
	return &cobra.Command{
		Use:   "pull [DOCKER PULL'S OPTIONS] IMAGE",
		Short: "Verify an image, pull it by its digest, and tag it",
		Long: `Verify an image, run 'docker pull REPOSITORY@DIGEST', and tag what was pulled as the image was named.
The options are those of 'docker pull', except --all-tags.`,
		Example:            "  docker hsm pull --platform linux/arm64 registry.example.com/team/app:1.2",
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			call, err := dockercli.ReadPull(args)
			switch {
			case err != nil:
				return cli.Usage(c, err)
			case call.Help:
				return c.Help()
			}
			return docker.Pull(c.Context(), call, verify)
		},
	}
}

func runCommand(docker dockercli.Docker, verify dockercli.Verify) *cobra.Command {
	return &cobra.Command{
		Use:   "run [DOCKER RUN'S OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Verify an image, and run a container from it by its digest",
		Long: `Verify an image, and run 'docker run' with REPOSITORY@DIGEST in its place. The options are those of
'docker run'. The exit code is that of 'docker run', and 125 if the image is refused.`,
		Example:            "  docker hsm run --rm -p 8080:80 -e MODE=test registry.example.com/team/app:1.2 serve",
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			call, err := dockercli.ReadRun(args)
			switch {
			case err != nil:
				return &runError{cli.Usage(c, err)}
			case call.Help:
				return c.Help()
			}
			if err := docker.Run(c.Context(), call, verify); err != nil {
				return &runError{err}
			}
			return nil
		},
	}
}

func inspectCommand(flags *verification.Flags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show the digest of an image in its registry, and who signed it",
		Long: `Verify an image, and show its digest and who signed it, or why it is refused. Nothing is pulled, and
the engine is not asked.`,
		Args: cli.Exactly(1),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, images []string) error {
		if _, err := gate.Repository(images[0]); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		decisions, err := flags.Verify(ctx, images, "")
		if err != nil {
			return err
		}
		d := decisions[0]
		if asJSON {
			err = cli.PrintJSON(c.OutOrStdout(), d)
		} else {
			err = verification.PrintDecisions(c.OutOrStdout(), decisions)
		}
		if err == nil && !d.Passed() {
			err = failure.New(failure.Denied, "no valid trust data for %s: %s", d.Reference, d.Reason)
		}
		return err
	}
	return c
}
