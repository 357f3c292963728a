// Package cli is what the executables' commands have in common: the flags of settings, how a command is used, and the
// words that people read.
package cli

import (
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// A usageError is a wrong call of a command.
type usageError struct{ failure *failure.Error }

func (e *usageError) Error() string { return e.failure.Error() }

// Unwrap returns the failure, of kind Invalid.
func (e *usageError) Unwrap() error { return e.failure }

// Usage returns the failure of a wrong call, which ends with exit code 2. err says what is wrong with it; its hint is
// kept, and without one the hint is the command's help.
func Usage(c *cobra.Command, err error) error {
	f := failure.New(failure.Invalid, "%w", err).WithHint("see '" + c.CommandPath() + " --help'")
	if hint := failure.From(err).Hint; hint != "" {
		f.Hint = hint
	}
	return &usageError{f}
}

// Exactly is a command that takes n arguments.
func Exactly(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(c, args); err != nil {
			return Usage(c, err)
		}
		return nil
	}
}

// Group is a command that only holds others: alone it shows its help, and anything else it is given is a mistake.
func Group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: OnlyGroup}
	c.AddCommand(commands...)
	return c
}

// OnlyGroup is what a group does.
func OnlyGroup(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	return Usage(c, failure.New(failure.Invalid, "unknown command %q", args[0]))
}

var settingHelp = map[string]string{
	config.ModulePath:       "PKCS#11 library of the HSM (default: p11-kit's proxy, if installed)",
	config.Token:            "token by its label or a pkcs11: URI; or nethsm: for the NetHSM of the config file",
	config.SlotID:           "token by the number of its slot",
	config.PINSource:        `where the PIN comes from: env:NAME, file:/path, "exec:command args", prompt or none`,
	config.CertificateChain: "PEM file with the leaf and its issuers, or the issuers alone",
	config.Timeout:          "longest wait for the module (default 30s)",
}

// TokenSettings are the settings that every command with a key or a token has.
var TokenSettings = []string{config.ModulePath, config.Token, config.SlotID, config.PINSource, config.Timeout,
	config.AllowFinalPINTry}

// AddSettings gives a command flags for settings and returns a function for those that were given.
func AddSettings(c *cobra.Command, names ...string) func() map[string]string {
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
