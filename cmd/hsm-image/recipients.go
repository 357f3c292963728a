package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/image"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

func recipientsCommand(ks *keystore.Keystore) *cobra.Command {
	return cli.Group("recipients", "List, add and remove an image's recipients, without moving its layers",
		recipientsListCommand(ks), recipientsAddCommand(ks), recipientsRemoveCommand(ks))
}

func recipientsListCommand(ks *keystore.Keystore) *cobra.Command {
	c := &cobra.Command{
		Use:     "list IMAGE",
		Short:   "List an image's recipients",
		Example: "  hsm-image recipients list docker://registry.example.com/app:1 --recipient pubkey:node.pem",
		Args:    cli.Exactly(1),
	}
	showImage(ks, c, func(out io.Writer, images []image.Image, names map[string]string, asJSON bool) error {
		found, encrypted := image.Recipients(images)
		if asJSON {
			all := []recipientLayersJSON{}
			for _, h := range found {
				all = append(all, recipientLayersJSON{h, encrypted, names[h.KeyID]})
			}
			return cli.PrintJSON(out, all)
		}
		var rows [][]string
		for _, h := range found {
			rows = append(rows, []string{recipientName(h.RecipientInfo, names), h.Scheme, h.Algorithm,
				fmt.Sprintf("%d of %d", h.Layers, encrypted)})
		}
		return cli.PrintTable(out, []string{"RECIPIENT", "SCHEME", "ALGORITHM", "ENCRYPTED LAYERS"}, rows)
	})
	return c
}

type recipientLayersJSON struct {
	image.RecipientLayers
	Encrypted int    `json:"encryptedLayers"`
	Recipient string `json:"recipient,omitempty"` // as it was named on the command line
}

func recipientsAddCommand(ks *keystore.Keystore) *cobra.Command {
	var recipients, keys []string
	c := &cobra.Command{
		Use:   "add IMAGE",
		Short: "Add recipients to an image",
		Long: `Add recipients to an image in a registry or in an OCI layout (oci:DIR:TAG). A key of a recipient
(--key, by URI or alias, else those of the configured token) unwraps the keys of the layers in the
module, and they are wrapped for the new recipients too. Only manifests change, in place; no layer
is read or moved. The image gets a new digest: sign it again.`,
		Example: "  hsm-image recipients add docker://registry.example.com/app:1 \\\n" +
			"    --recipient pubkey:node-b.pem --key node-a",
		Args: cli.Exactly(1),
	}
	c.Flags().StringArrayVar(&recipients, "recipient", nil,
		"recipient to add: a key's URI or alias, cert:FILE or pubkey:FILE; can be repeated")
	c.Flags().StringArrayVar(&keys, "key", nil,
		"key that decrypts the image, by URI or alias; can be repeated (default: all keys of the configured token)")
	registry := addImageFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		ref, err := image.ParseReference(args[0])
		if err != nil {
			return err
		}
		if len(recipients) == 0 {
			return cli.Required(c, "recipient", "pubkey:node-b.pem")
		}
		made, err := image.AddRecipients(c.Context(), ks, ref, registry(), recipients, keys)
		if err != nil {
			return err
		}
		tellChange(c, ref, made)
		return nil
	}
	return c
}

func recipientsRemoveCommand(ks *keystore.Keystore) *cobra.Command {
	var recipients []string
	c := &cobra.Command{
		Use:   "remove IMAGE",
		Short: "Remove recipients from an image",
		Long: `Remove recipients from the manifests of an image in a registry or in an OCI layout (oci:DIR:TAG). It
needs no key.

A removed recipient who kept the old manifest, or a layer's key, still opens these layers. To
prevent that, encrypt the image anew, without them. The last recipient cannot be removed.`,
		Example: "  hsm-image recipients remove docker://registry.example.com/app:1 --recipient pubkey:node-a.pem",
		Args:    cli.Exactly(1),
	}
	c.Flags().StringArrayVar(&recipients, "recipient", nil,
		"recipient to remove: a kid, a key's URI or alias, cert:FILE or pubkey:FILE; can be repeated")
	registry := addImageFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		ref, err := image.ParseReference(args[0])
		if err != nil {
			return err
		}
		if len(recipients) == 0 {
			return cli.Required(c, "recipient", "pubkey:node-a.pem")
		}
		made, err := image.RemoveRecipients(c.Context(), ks, ref, registry(), recipients)
		if err != nil {
			return err
		}
		tellChange(c, ref, made)
		fmt.Fprintln(c.ErrOrStderr(),
			"a removed recipient who kept the old manifest or the layers' keys still opens these layers; "+
				"to prevent that, encrypt the image anew")
		return nil
	}
	return c
}

// tellChange prints what a change of recipients did.
func tellChange(c *cobra.Command, ref image.Reference, made *image.RecipientChange) {
	tellWarnings(c, made.Warnings)
	if made.Layers == 0 {
		fmt.Fprintf(c.ErrOrStderr(), "%s was not changed: its layers are encrypted to these recipients already\n", ref)
		return
	}
	fmt.Fprintf(c.ErrOrStderr(), "changed %s; layers with other recipients: %d\n", ref, made.Layers)
	fmt.Fprintln(c.ErrOrStderr(), "signatures of the image do not verify any more: sign it under its new digest")
	if made.Name != "" {
		fmt.Fprintln(c.OutOrStdout(), made.Name)
	} else {
		fmt.Fprintln(c.OutOrStdout(), made.Digest)
	}
}
