package main

import (
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/verification"
)

func verifyCommand() *cobra.Command {
	var scope string
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify IMAGE...",
		Short: "Verify that images are signed as Notation's trust policy demands",
		Long: `Verify the signatures of images under Notation's trust policy and trust stores. Print the signer of
each image, or why it is refused. Images pass as for 'notation verify' with the same configuration.
The exit code is 0 only if every image passes.

Name an image by tag or digest. Short names belong to Docker Hub: alpine is
docker.io/library/alpine:latest. An image in an OCI layout is oci:DIR:TAG or oci:DIR@DIGEST, with
the repository whose policy applies in --scope. A tag is resolved once: what passes is the digest
that is printed. The signature of an index covers the images that it lists.

Where the trust policy comes with approvals for a repository ('notation-hsm trust approvals'), a
signature counts only with a bundle of approvals of the image ('hsm-image approvals attach') that
shows that the demanded people agreed to it. They are printed.

Where the trust policy comes with a root for a repository's tags ('notation-hsm trust tags'), a tag
is what the TUF metadata in the registry say, and the role that signed it is printed. --state-dir
remembers their versions, so that no registry can go back to older ones: keep it.`,
		Example: `  hsm-image verify registry.example.com/team/app:1.2
  hsm-image verify --trust-dir cluster/notation --json registry.example.com/team/app@sha256:...`,
		Args: func(c *cobra.Command, args []string) error {
			if err := cobra.MinimumNArgs(1)(c, args); err != nil {
				return cli.Usage(c, err)
			}
			return nil
		},
	}
	flags := verification.AddFlags(c)
	c.Flags().StringVar(&scope, "scope", "", "repository whose trust policy applies to images in OCI layouts")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, images []string) error {
		if err := cli.RefuseEmpty(c, "scope"); err != nil {
			return err
		}
		decisions, err := flags.Verify(c.Context(), images, scope)
		if err != nil {
			return err
		}
		if asJSON {
			err = cli.PrintJSON(c.OutOrStdout(), decisions)
		} else {
			err = verification.PrintDecisions(c.OutOrStdout(), decisions)
		}
		if err != nil {
			return err
		}
		return checkPassed(decisions)
	}
	return c
}

// checkPassed fails unless all images passed.
func checkPassed(decisions []gate.Decision) error {
	refused := 0
	for _, d := range decisions {
		if !d.Passed() {
			refused++
		}
	}
	if refused > 0 {
		return failure.New(failure.Denied, "%d of %d images did not pass", refused, len(decisions))
	}
	return nil
}
