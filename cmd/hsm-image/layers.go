package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/image"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
)

func layersCommand(ks *keystore.Keystore) *cobra.Command {
	c := &cobra.Command{
		Use:   "layers IMAGE",
		Short: "Show an image's layers and their recipients",
		Long: `Show the layers of an image, or of all images of an index: digest, size in bytes, and for encrypted
layers the scheme and the recipients. A recipient is shown by its kid, the RFC 7638 thumbprint of
its public key; --recipient gives kids a name.`,
		Example: "  hsm-image layers docker://registry.example.com/app:1 --recipient pubkey:node.pem",
		Args:    cli.Exactly(1),
	}
	showImage(ks, c, func(out io.Writer, images []image.Image, names map[string]string, asJSON bool) error {
		if asJSON {
			return cli.PrintJSON(out, layersJSON(images, names))
		}
		var rows [][]string
		for _, i := range images {
			for _, l := range i.Layers {
				var schemes, recipients []string
				for _, h := range l.Recipients {
					if !slices.Contains(schemes, h.Scheme) {
						schemes = append(schemes, h.Scheme)
					}
					recipients = append(recipients, recipientName(h, names))
				}
				if l.Encrypted && len(schemes) == 0 {
					schemes = []string{"unknown"}
				}
				rows = append(rows, []string{cli.OrDash(i.Platform.String()), fmt.Sprint(l.Index), l.Digest.String(),
					fmt.Sprint(l.Size),
					cli.OrDash(strings.Join(schemes, ", ")), cli.OrDash(strings.Join(recipients, ", "))})
			}
		}
		return cli.PrintTable(out, []string{"PLATFORM", "LAYER", "DIGEST", "SIZE", "ENCRYPTED", "RECIPIENTS"}, rows)
	})
	return c
}

// showImage completes a command that reads an image and shows something of it. show gets the names of recipients by
// kid, as the user wrote them.
func showImage(ks *keystore.Keystore, c *cobra.Command,
	show func(out io.Writer, images []image.Image, names map[string]string, asJSON bool) error) {
	var known []string
	var asJSON bool
	c.Flags().StringArrayVar(&known, "recipient", nil,
		"recipient to show by this name instead of its kid: a key's URI or alias, cert:FILE or pubkey:FILE; can be repeated")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	registry := addImageFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		ref, err := image.ParseReference(args[0])
		if err != nil {
			return err
		}
		names, err := image.RecipientNames(c.Context(), ks, known)
		if err != nil {
			return err
		}
		images, err := image.Layers(c.Context(), ref, registry())
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), images, names, asJSON)
	}
}

// addImageFlags adds the flags for how the registry of an image is reached to a command. It returns a function for
// their values.
func addImageFlags(c *cobra.Command) func() image.Registry {
	authFile := c.Flags().String("authfile", "",
		"file with the registry's credentials (default: that of 'skopeo login' or 'docker login')")
	registry := addRegistryFlags(c, "", "the registry")
	return func() image.Registry { return registry(*authFile) }
}

// recipientName returns the name of a recipient for people.
func recipientName(h layerkey.RecipientInfo, names map[string]string) string {
	switch {
	case names[h.KeyID] != "":
		return names[h.KeyID]
	case h.KeyID != "":
		return h.KeyID
	case h.Name != "":
		return h.Name
	}
	return "a key that is not named"
}

type imageJSON struct {
	Digest   string      `json:"digest"`
	Platform string      `json:"platform,omitempty"`
	Layers   []layerJSON `json:"layers"`
}

type layerJSON struct {
	Index      int             `json:"index"`
	Digest     string          `json:"digest"`
	Size       int64           `json:"size"`
	MediaType  string          `json:"mediaType"`
	Encrypted  bool            `json:"encrypted"`
	Recipients []recipientJSON `json:"recipients,omitempty"`
}

type recipientJSON struct {
	layerkey.RecipientInfo
	Recipient string `json:"recipient,omitempty"` // as it was named on the command line
}

func layersJSON(images []image.Image, names map[string]string) []imageJSON {
	out := []imageJSON{}
	for _, i := range images {
		shown := imageJSON{Digest: i.Digest.String(), Platform: i.Platform.String(), Layers: []layerJSON{}}
		for _, l := range i.Layers {
			layer := layerJSON{Index: l.Index, Digest: l.Digest.String(), Size: l.Size, MediaType: l.MediaType,
				Encrypted: l.Encrypted}
			for _, h := range l.Recipients {
				layer.Recipients = append(layer.Recipients, recipientJSON{h, names[h.KeyID]})
			}
			shown.Layers = append(shown.Layers, layer)
		}
		out = append(out, shown)
	}
	return out
}
