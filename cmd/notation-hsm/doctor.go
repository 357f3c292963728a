package main

import (
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/custody"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func doctorCommand(ks *keystore.Keystore) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor [KEY]",
		Short: "Check everything between a key and an image that verifies",
		Long: `Check a key, one line for each thing that has to be right: the module, the token, the PIN, the login, the key, its certificates, the
plugin, Notation's signing keys and trust policy, and a real signature. It exits with 1 when something fails. A PIN that could be
the last one before the token locks is not tried.

Without KEY it looks at the module, its tokens, the plugin, and Notation's signing keys in short, and logs in nowhere.`,
		Example: `  notation-hsm doctor
  notation-hsm doctor "pkcs11:token=signing;object=release"`,
		Args: atMostOne,
	}
	given := cli.AddSettings(c, config.ModulePath, config.Token, config.SlotID, config.PINSource, config.CertificateChain,
		config.Timeout)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		reference, examine := "", custody.Survey
		if len(args) == 1 {
			reference, examine = args[0], custody.Doctor
		}
		s, err := ks.Resolve(reference, given(), config.Flags)
		if err != nil {
			return err
		}
		report := examine(c.Context(), s)
		if asJSON {
			err = cli.PrintJSON(c.OutOrStdout(), report)
		} else {
			err = printReport(c, report)
		}
		if err != nil {
			return err
		}
		failures := 0
		for _, check := range report {
			if check.Outcome == custody.Failed {
				failures++
			}
		}
		if failures > 0 {
			return failure.New(failure.Invalid, "%d of %d checks failed", failures, len(report))
		}
		return nil
	}
	return c
}

func atMostOne(c *cobra.Command, args []string) error {
	if err := cobra.MaximumNArgs(1)(c, args); err != nil {
		return cli.Usage(c, err)
	}
	return nil
}

func printReport(c *cobra.Command, report []custody.Check) error {
	rows := make([][]string, len(report))
	for i, check := range report {
		rows[i] = []string{string(check.Outcome), check.Name, check.Detail}
		if check.Hint != "" {
			rows[i][2] += " (hint: " + check.Hint + ")"
		}
	}
	return cli.PrintTable(c.OutOrStdout(), []string{"RESULT", "CHECK", "DETAIL"}, rows)
}
