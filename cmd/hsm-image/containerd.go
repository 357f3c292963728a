package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/image"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"
)

const (
	containerdRoot = "/var/lib/containerd"
	decoderKeys    = "key that opens layers, by URI or alias; can be repeated (default: all keys of the configured token)"
)

func containerdDecoderCommand(ks *keystore.Keystore) *cobra.Command {
	d := image.Decoder{Keystore: ks}
	var user string
	c := &cobra.Command{
		Use: "containerd-decoder", Short: "Decrypt a layer for containerd, which starts this command",
		Long: `containerd-decoder is a stream processor of containerd: it reads an encrypted layer from standard
input and writes it to standard output, as a tar archive. 'hsm-image containerd-config' prints the
configuration with which containerd starts it.`,
		Args: cli.Exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			d.MediaType, d.Payload = os.Getenv("STREAM_PROCESSOR_MEDIATYPE"), image.ContainerdPayload()
			confined, err := d.Confined(user)
			if err != nil {
				return d.Refuse(os.Stdout, err)
			}
			return confined.Decode(c.Context(), os.Stdin, os.Stdout)
		},
	}
	c.Flags().StringVar(&d.Root, "root", containerdRoot, "containerd's root folder")
	c.Flags().StringVar(&user, "user", "",
		"user that the decoder switches to after it has opened the key of the layer (default: no switch)")
	c.Flags().StringArrayVar(&d.References, "key", nil, decoderKeys)
	return c
}

func containerdConfigCommand() *cobra.Command {
	var keys []string
	var path, settings, root, user string
	c := &cobra.Command{
		Use: "containerd-config", Short: "Print the configuration with which containerd opens encrypted images",
		Example: "  hsm-image containerd-config > /etc/containerd/conf.d/hsm-image.toml",
		Args:    cli.Exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := cli.RefuseEmpty(c, "user"); err != nil {
				return err
			}
			if _, err := sandbox.LookUp(image.DecoderUser); user == "" && err == nil {
				user = image.DecoderUser
			}
			if path == "" {
				own, err := ownPath()
				if err != nil {
					return failure.From(err).WithHint("name it with --path")
				}
				path = own
			}
			for _, file := range []string{path, settings, root} {
				if !filepath.IsAbs(file) {
					return failure.New(failure.Invalid, "%s is not a full path", file).
						WithHint("name it by its full path: containerd has another working folder")
				}
			}
			for _, key := range keys {
				if strings.Contains(key, "pin-value=") {
					return failure.New(failure.Invalid, "a PIN in containerd's configuration could be read by others").
						WithHint("set pin-source in " + settings)
				}
			}
			config, err := image.ContainerdConfig(path, settings, root, user, keys)
			if err != nil {
				return err
			}
			_, err = os.Stdout.Write(config)
			return err
		},
	}
	c.Flags().StringVar(&path, "path", "", "path of hsm-image on the node (default: the path of this program)")
	c.Flags().StringVar(&root, "root", containerdRoot, "containerd's root folder on the node")
	c.Flags().StringVar(&user, "user", "",
		"user on the node that the decoder switches to after it has opened the key of a layer "+
			"(default: "+image.DecoderUser+" if this system has the user, else root)")
	c.Flags().StringVar(&settings, "config", "/etc/notation-hsm/config.yaml",
		"config file on the node, with the token and its pin-source, or with the broker")
	c.Flags().StringArrayVar(&keys, "key", nil, decoderKeys)
	return c
}
