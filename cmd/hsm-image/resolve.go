package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/verification"
)

func resolveCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "resolve IMAGE",
		Short: "Verify an image and print it by its digest, for a program that pulls it",
		Long: `Verify an image as 'hsm-image verify' does, and print REPOSITORY@DIGEST: what podman, docker or
skopeo pull by this name is what was verified, whatever the tag becomes meanwhile. Of an image that
is refused, nothing is printed on standard output; the reason is on standard error and the exit code
is 3. An image in an OCI layout cannot be pulled, and is refused.`,
		Example: `  IMAGE="$(hsm-image resolve registry.example.com/team/app:1.2)" && podman run "$IMAGE"`,
		Args:    cli.Exactly(1),
	}
	flags := verification.AddFlags(c)
	c.RunE = func(c *cobra.Command, images []string) error {
		pinned, err := flags.Pin(c.Context(), images[0], c.ErrOrStderr())
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.OutOrStdout(), pinned)
		return err
	}
	return c
}
