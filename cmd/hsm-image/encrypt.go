package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/image"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

func encryptCommand(ks *keystore.Keystore) *cobra.Command {
	var recipients []string
	var layers []int
	c := &cobra.Command{
		Use:   "encrypt SRC DST",
		Short: "Copy an image and encrypt its layers to the keys of recipients",
		Long: `Copy an image and encrypt its layers, each under a key of its own that is wrapped for every
recipient. A recipient is a key by its URI or alias, cert:FILE or pubkey:FILE; encrypting needs
neither a private key nor a PIN. The module of a key is asked whether the key can decrypt, and which
hash of OAEP it supports; a key that cannot decrypt is refused. For a file, no module is asked: add
?oaep=sha1 to an RSA recipient (&oaep=sha1 after other attributes of a URI) whose module supports
OAEP with SHA-1 alone, as SoftHSM.

The image gets a new digest, for which signatures of the old image do not verify: encrypt first,
then sign.`,
		Example: `  hsm-image encrypt oci:build:app docker://registry.example.com/app:1 --recipient pubkey:node.pem
  hsm-image encrypt oci:build:app oci:copy:app --layer -1 \
    --recipient node-a --recipient cert:node-b.crt`,
		Args: cli.Exactly(2),
	}
	c.Flags().StringArrayVar(&recipients, "recipient", nil,
		"recipient who can decrypt the image: a key's URI or alias, cert:FILE or pubkey:FILE; can be repeated")
	c.Flags().IntSliceVar(&layers, "layer", nil,
		"encrypt only the layer with this index, counted from 0, or from the last, -1; can be repeated")
	settings := addCopyFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(recipients) == 0 {
			return cli.Required(c, "recipient", "pubkey:node.pem")
		}
		what, err := settings(args)
		if err != nil {
			return err
		}
		made, err := image.Encrypt(c.Context(), ks, what, recipients, layers)
		if err != nil {
			return err
		}
		tellCopy(c, what, made)
		if what.LeavesPlain() {
			fmt.Fprintf(c.ErrOrStderr(),
				"warning: the plain layers are still in the same folder as the encrypted ones; publish from another folder\n")
		}
		fmt.Fprintf(c.ErrOrStderr(), "signatures of %s do not verify for it: sign it under its new digest\n", what.From)
		return nil
	}
	return c
}

// addCopyFlags adds the flags of a copy to a command. It returns a function that makes the copy of flags and arguments.
func addCopyFlags(c *cobra.Command) func(args []string) (image.Copy, error) {
	var platforms []string
	c.Flags().StringArrayVar(&platforms, "platform", nil,
		"of an index, copy only the image for OS/ARCHITECTURE[/VARIANT]; can be repeated (default: all)")
	authFile := c.Flags().String("authfile", "",
		"file with the registries' credentials (default: that of 'skopeo login' or 'docker login')")
	from, to := addRegistryFlags(c, "src-", "the source's registry"),
		addRegistryFlags(c, "dest-", "the destination's registry")
	return func(args []string) (what image.Copy, err error) {
		what.FromRegistry, what.ToRegistry = from(*authFile), to(*authFile)
		if what.From, err = image.ParseReference(args[0]); err != nil {
			return what, err
		}
		if what.To, err = image.ParseReference(args[1]); err != nil {
			return what, err
		}
		for _, text := range platforms {
			p, err := image.ParsePlatform(text)
			if err != nil {
				return what, err
			}
			what.Platforms = append(what.Platforms, p)
		}
		if term.IsTerminal(int(os.Stderr.Fd())) {
			what.Progress = os.Stderr
		}
		return what, nil
	}
}

// addRegistryFlags adds the flags for how a registry is reached to a command, with a prefix. It returns a function for
// their values.
func addRegistryFlags(c *cobra.Command, prefix, whose string) func(authFile string) image.Registry {
	verify := c.Flags().Bool(prefix+"tls-verify", true, "insist on HTTPS and valid certificates with "+whose)
	certDir := c.Flags().String(prefix+"cert-dir", "",
		"folder with the CA (*.crt), and the client's certificate and key (*.cert, *.key), for "+whose)
	return func(authFile string) image.Registry {
		return image.Registry{AuthFile: authFile, CertDir: *certDir, Insecure: !*verify}
	}
}

// tellWarnings prints warnings.
func tellWarnings(c *cobra.Command, warnings []string) {
	for _, warning := range warnings {
		fmt.Fprintf(c.ErrOrStderr(), "warning: %s\n", warning)
	}
}

// tellCopy prints the name of the copy with its digest, which is what to sign.
func tellCopy(c *cobra.Command, what image.Copy, made *image.CopyResult) {
	tellWarnings(c, made.Warnings)
	if made.Skipped > 0 {
		fmt.Fprintf(c.ErrOrStderr(),
			"attestations of BuildKit left out: %d (they describe images that the copy does not have)\n", made.Skipped)
	}
	fmt.Fprintf(c.ErrOrStderr(), "wrote %s\n", what.To)
	if made.Name != "" {
		fmt.Fprintln(c.OutOrStdout(), made.Name)
	} else {
		fmt.Fprintln(c.OutOrStdout(), made.Digest)
	}
}
