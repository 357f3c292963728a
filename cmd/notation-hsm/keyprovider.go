package main

import (
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keyprovider"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

func keyproviderCommand(ks *keystore.Keystore) *cobra.Command {
	return &cobra.Command{
		Use:   "keyprovider",
		Short: "Wrap and unwrap keys of encrypted images, for tools with ocicrypt",
		Long: `Read one request of ocicrypt's key provider protocol from standard input and answer it. Tools such
as skopeo, buildah, podman and CRI-O run this command if OCICRYPT_KEYPROVIDER_CONFIG names a file
with

  {"key-providers": {"hsm": {"cmd": {"path": "notation-hsm", "args": ["keyprovider"]}}}}

They then accept --encryption-key provider:hsm:RECIPIENT and --decryption-key provider:hsm:KEY. A
recipient is a key (URI or alias), cert:FILE or pubkey:FILE.`,
		Args: cli.Exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return keyprovider.Serve(c.Context(), ks, c.InOrStdin(), c.OutOrStdout())
		},
	}
}
