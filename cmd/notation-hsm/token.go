package main

import (
	"fmt"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

func tokenCommand(ks *keystore.Keystore) *cobra.Command {
	return cli.Group("token", "Show the tokens of a module", tokenListCommand(ks))
}

func tokenListCommand(ks *keystore.Keystore) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the tokens of a module with their URIs",
		Example: "  notation-hsm token list --module-path /usr/lib/softhsm/libsofthsm2.so",
		Args:    cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.ModulePath, config.Timeout)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := ks.Resolve("", given(), config.Flags)
		if err != nil {
			return err
		}
		tokens, err := s.Tokens(c.Context())
		if err != nil {
			return err
		}
		if asJSON {
			if tokens == nil {
				tokens = []key.Token{}
			}
			return cli.PrintJSON(c.OutOrStdout(), tokens)
		}
		if len(tokens) == 0 {
			fmt.Fprintln(c.ErrOrStderr(),
				"warning: the module has no token: check the connection to the HSM, or to the server of the module")
		}
		rows := make([][]string, len(tokens))
		for i, t := range tokens {
			rows[i] = []string{fmt.Sprint(t.Slot), fmt.Sprintf("%q", t.Label), tokenFlags(t), string(t.PIN),
				cli.OrDash(t.Sessions), t.URI}
		}
		return cli.PrintTable(c.OutOrStdout(), []string{"SLOT", "TOKEN", "FLAGS", "PIN", "SESSIONS", "URI"}, rows)
	}
	return c
}

func tokenFlags(t key.Token) string {
	var flags []string
	for _, f := range []struct {
		set  bool
		name string
	}{{!t.Initialized, "not initialised"}, {t.LoginRequired, "login required"}, {t.PINPad, "PIN pad"},
		{t.WriteProtect, "read-only"}} {
		if f.set {
			flags = append(flags, f.name)
		}
	}
	return cli.OrDash(strings.Join(flags, ", "))
}
