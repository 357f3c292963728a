// Package cli is what the commands of all executables share: flags for settings, failures of wrong calls, confirmation
// on the terminal, output, and exit codes.
package cli

import (
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// A usageError is the failure of a wrong call of a command.
type usageError struct{ failure *failure.Error }

func (e *usageError) Error() string { return e.failure.Error() }

// Unwrap returns the failure, of kind Invalid.
func (e *usageError) Unwrap() error { return e.failure }

// Usage returns the failure of a wrong call, which ends the process with exit code 2. err describes the mistake. Its
// hint is kept; without one, the hint is the command's help.
func Usage(c *cobra.Command, err error) error {
	f := failure.New(failure.Invalid, "%w", err).WithHint("see '" + c.CommandPath() + " --help'")
	if hint := failure.From(err).Hint; hint != "" {
		f.Hint = hint
	}
	return &usageError{f}
}

// Required returns the failure of a call without a flag that the command needs. example is a value for the hint.
func Required(c *cobra.Command, flag, example string) error {
	return Usage(c, failure.New(failure.Invalid, "--%s is required", flag).WithHint("as in: --"+flag+" "+example))
}

// RefuseEmpty fails for flags with an empty value, such as an unset variable of a script: their defaults would be used
// instead, for example another trust policy.
func RefuseEmpty(c *cobra.Command, names ...string) error {
	for _, name := range names {
		if c.Flags().Changed(name) && c.Flags().Lookup(name).Value.String() == "" {
			return Usage(c, failure.New(failure.Invalid, "--%s is empty", name))
		}
	}
	return nil
}

// Exactly makes a command take n arguments.
func Exactly(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(c, args); err != nil {
			return Usage(c, err)
		}
		return nil
	}
}

// AtMost makes a command take up to n arguments.
func AtMost(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := cobra.MaximumNArgs(n)(c, args); err != nil {
			return Usage(c, err)
		}
		return nil
	}
}

// Group returns a command that only has subcommands.
func Group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: OnlyGroup}
	c.AddCommand(commands...)
	return c
}

// OnlyGroup runs a command that only has subcommands: it prints its help, and fails if it has an argument.
func OnlyGroup(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	return Usage(c, failure.New(failure.Invalid, "unknown command %q", args[0]))
}

var settingHelp = map[string]string{
	config.ModulePath:       "PKCS#11 library of the HSM (default: p11-kit's proxy, if it is installed)",
	config.Token:            "label or pkcs11: URI of the token; or nethsm: for the NetHSM of the config file",
	config.SlotID:           "slot number of the token",
	config.PINSource:        `source of the PIN: env:NAME, file:/path, "exec:command args", prompt or none`,
	config.CertificateChain: "PEM file with the leaf and its issuers, or with the issuers alone",
	config.Timeout:          "longest wait for an answer of the module (default 30s)",
	config.Broker: "broker that uses the key: unix:PATH of the socket of 'hsm-broker agent', or https://HOST[:PORT] of " +
		"'hsm-broker serve'",
	config.BrokerCA:     "PEM file with the CA of the broker's certificate (default: the system's roots)",
	config.BrokerCert:   "PEM file with the certificate that this program shows to the broker, and its issuers",
	config.BrokerKey:    "PEM file with the private key of that certificate",
	config.BrokerToken:  "source of a token for the broker: github, gitlab:VARIABLE, kubernetes or file:/path",
	config.ApprovalWait: "how long a signature waits for approvals or a time lock (default 0s: not at all)",
	config.Repository:   "repository of the image, which the broker checks",
}

// TokenSettings are the settings of commands that log in to a token.
var TokenSettings = []string{config.ModulePath, config.Token, config.SlotID, config.PINSource, config.Timeout,
	config.AllowFinalPINTry}

// AddSettings gives a command flags for settings, and returns a function that returns those that were given, by name.
func AddSettings(c *cobra.Command, names ...string) func() map[string]string {
	for _, name := range names {
		if name == config.AllowFinalPINTry {
			c.Flags().Bool(name, false, "try the PIN even if a wrong one would lock the token")
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
