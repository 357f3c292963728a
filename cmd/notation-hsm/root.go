package main

import (
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "notation-hsm",
		Short: "Sign container images with keys that never leave their hardware module",
		Long: `notation-hsm is the Notation plugin "hsm": with it, 'notation sign' uses a key in a PKCS#11 module.
The commands below make keys and certificates in the module and tell Notation about them.

A key is named by an RFC 7512 URI, such as "pkcs11:token=signing;object=release", or by its alias in the config file.
Settings come from flags, the URI, the environment (--module-path is NOTATION_HSM_MODULE_PATH, and so on) and the
config file, in this order.`,
		Example: `  notation-hsm token list --module-path /usr/lib/softhsm/libsofthsm2.so
  notation-hsm key generate --token signing --spec EC-256 --label release
  notation-hsm install --key-name release --key "pkcs11:token=signing;object=release"`,
		Version:       version,
		Args:          cobra.ArbitraryArgs, // so that an unknown command reaches onlyGroup
		RunE:          onlyGroup,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, err) })
	root.AddCommand(tokenCommand(), keyCommand(), certCommand(), installCommand(), caCommand(), ceremonyCommand(), trustCommand(), doctorCommand())
	return root
}

// usage is a failure to use a command as it is meant.
func usage(c *cobra.Command, err error) error {
	return failure.New(failure.Invalid, "see '"+c.CommandPath()+" --help'", "%w", err)
}

func exactly(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(c, args); err != nil {
			return usage(c, err)
		}
		return nil
	}
}

// group is a command that only holds others: alone it shows its help, and anything else it is given is a mistake.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: onlyGroup}
	c.AddCommand(commands...)
	return c
}

func onlyGroup(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	return failure.New(failure.Invalid, "see '"+c.CommandPath()+" --help'", "unknown command %q", args[0])
}

var settingHelp = map[string]string{
	config.ModulePath:       "PKCS#11 library of the HSM (default: p11-kit's proxy, if installed)",
	config.Token:            "token by its label, or by a pkcs11: URI",
	config.SlotID:           "token by the number of its slot",
	config.PINSource:        `where the PIN comes from: env:NAME, file:/path, "exec:command args", prompt or none`,
	config.CertificateChain: "PEM file with the leaf and its issuers, or the issuers alone",
	config.Timeout:          "longest wait for the module (default 30s)",
}

var tokenSettings = []string{config.ModulePath, config.Token, config.SlotID, config.PINSource, config.Timeout, config.AllowFinalPINTry}

// addSettings gives a command flags for settings and returns a function for those that were given.
func addSettings(c *cobra.Command, names ...string) func() map[string]string {
	for _, name := range names {
		if name == config.AllowFinalPINTry {
			c.Flags().Bool(name, false, "try the PIN even when a wrong one would lock the token")
			continue
		}
		c.Flags().String(name, "", settingHelp[name])
	}
	return func() map[string]string {
		given := map[string]string{}
		for _, name := range names {
			if flag := c.Flags().Lookup(name); flag.Changed {
				given[name] = flag.Value.String()
			}
		}
		return given
	}
}
