package main

import (
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/image"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

func decryptCommand(ks *keystore.Keystore) *cobra.Command {
	var keys []string
	c := &cobra.Command{
		Use:   "decrypt SRC DST",
		Short: "Copy an image and decrypt its layers with keys in a module",
		Long: `Copy an image and decrypt its layers with keys in a module: those that --key names, by URI or alias,
or else those of the configured token (NOTATION_HSM_TOKEN, or the config file). It decrypts images
of 'hsm-image encrypt', and those that skopeo and other tools encrypted with jwe:, pkcs7: or pkcs11:
and the public half of such a key.

The module unwraps the keys of all layers before anything is copied. A layer is authenticated at its
end, so a copy on this machine appears whole and authentic, or not at all.`,
		Example: `  hsm-image decrypt docker://registry.example.com/app:1 oci:plain:app \
    --key "pkcs11:token=node;object=images"
  hsm-image decrypt docker://registry.example.com/app:1 docker-archive:app.tar \
    --platform linux/amd64`,
		Args: cli.Exactly(2),
	}
	c.Flags().StringArrayVar(&keys, "key", nil,
		"key that decrypts the image, by URI or alias; can be repeated (default: all keys of the configured token)")
	settings := addCopyFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		what, err := settings(args)
		if err != nil {
			return err
		}
		made, err := image.Decrypt(c.Context(), ks, what, keys)
		if err != nil {
			return err
		}
		tellCopy(c, what, made)
		return nil
	}
	return c
}
