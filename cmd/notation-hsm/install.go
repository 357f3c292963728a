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
		Long: `Copy this program to Notation's folder of plugins. With --key-name and --key, also add a signing key
to Notation's list, so that 'notation sign --key NAME' uses it. The settings given as flags are
stored in the list, as plugin config of the key. A library or command that they name is also added
to the config file: Notation's list can name no other. With --key-name alone, print the library and
command that Notation's list has for this key, and add them to the config file after confirmation.`,
		Example: `  notation-hsm install --key-name release --key "pkcs11:token=signing;object=release" --default \
    --module-path /usr/lib/softhsm/libsofthsm2.so --pin-source env:SIGNING_PIN
  notation-hsm install --key-name release`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.StoredNames...)
	c.Flags().StringVar(&name, "key-name", "", "name of the signing key in Notation's list")
	c.Flags().StringVar(&reference, "key", "", "URI or alias of the key")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	c.Flags().BoolVar(&makeDefault, "default", false, "make it Notation's default signing key")
	c.RunE = func(c *cobra.Command, _ []string) error {
		settings := given()
		if reference != "" && name == "" || reference == "" && (makeDefault || len(settings) > 0) {
			return cli.Usage(c, failure.New(failure.Invalid, "--key-name and --key are both required for a signing key").
				WithHint(`as in: --key-name release --key "pkcs11:token=signing;object=release"`))
		}
		out := c.ErrOrStderr()
		path, err := custody.Install()
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "installed the plugin %s: %s\n", config.PluginName, path)
		if name == "" {
			return nil
		}
		notify := notifier(c)
		if reference == "" {
			return custody.AllowRegistered(c.Context(), name, func(p config.Programs) error {
				for _, module := range p.Modules {
					notify("Notation's signing key %q names this library to load: %q", name, module)
				}
				for _, command := range p.Commands {
					notify("Notation's signing key %q names this command to run: %q", name, command)
				}
				if yes {
					return nil
				}
				return cli.Ask(c.Context(), "type yes to allow this", "yes")
			}, notify)
		}
		added, err := custody.Register(c.Context(), name, reference, settings, makeDefault, notify)
		if err != nil {
			return err
		}
		if added {
			fmt.Fprintf(out, "added the signing key %q to Notation's list\n", name)
		} else {
			fmt.Fprintf(out, "Notation's list already has the signing key %q\n", name)
		}
		fmt.Fprintf(out, "next: notation sign --key %s registry.example.com/app@sha256:...\n", name)
		return nil
	}
	return c
}

// notifier returns a function that prints a line of progress.
func notifier(c *cobra.Command) custody.Notify {
	return func(format string, args ...any) { fmt.Fprintf(c.ErrOrStderr(), format+"\n", args...) }
}
