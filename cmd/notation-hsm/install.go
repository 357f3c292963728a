package main

import (
	"fmt"

	"github.com/notation-hsm/notation-hsm/internal/cli"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/custody"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func installCommand() *cobra.Command {
	var name, reference string
	var makeDefault, yes bool
	c := &cobra.Command{
		Use:   "install",
		Short: "Install this plugin for Notation, and register a signing key",
		Long: `Copy this program to where Notation looks for plugins. With --key-name and --key, also add a signing key to Notation's
list, so that 'notation sign --key NAME' uses it. The settings given as flags are stored with the key, as its plugin config. A library
or command that they name is listed in the config file as well, since Notation's list alone may have nothing run. With --key-name alone,
what the key of this name has in Notation's list is shown, and listed after a yes.`,
		Example: `  notation-hsm install --key-name release --key "pkcs11:token=signing;object=release" --default \
    --module-path /usr/lib/softhsm/libsofthsm2.so --pin-source env:SIGNING_PIN
  notation-hsm install --key-name release`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.Names...)
	c.Flags().StringVar(&name, "key-name", "", "name of the signing key in Notation's list")
	c.Flags().StringVar(&reference, "key", "", "the key, by URI or alias")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	c.Flags().BoolVar(&makeDefault, "default", false, "make it Notation's default signing key")
	c.RunE = func(c *cobra.Command, _ []string) error {
		settings := given()
		if reference != "" && name == "" || reference == "" && (makeDefault || len(settings) > 0) {
			return failure.New(failure.Invalid, "a signing key needs both --key-name and --key").
				WithHint(`as in: --key-name release --key "pkcs11:token=signing;object=release"`)
		}
		out := c.ErrOrStderr()
		path, err := custody.Install()
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "plugin %s is installed: %s\n", config.PluginName, path)
		if name == "" {
			return nil
		}
		say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
		if reference == "" {
			return custody.AllowRegistered(c.Context(), name, func(p config.Programs) error {
				for _, module := range p.Modules {
					say("Notation's signing key %q has this library loaded: %q", name, module)
				}
				for _, command := range p.Commands {
					say("Notation's signing key %q has this command run: %q", name, command)
				}
				if yes {
					return nil
				}
				return cli.Ask(c.Context(), "type yes to allow it", "yes")
			}, say)
		}
		added, err := custody.Register(c.Context(), name, reference, settings, makeDefault, say)
		if err != nil {
			return err
		}
		if added {
			fmt.Fprintf(out, "signing key %q is registered with Notation\n", name)
		} else {
			fmt.Fprintf(out, "signing key %q was registered with Notation already\n", name)
		}
		fmt.Fprintf(out, "next: notation sign --key %s registry.example.com/app@sha256:...\n", name)
		return nil
	}
	return c
}
