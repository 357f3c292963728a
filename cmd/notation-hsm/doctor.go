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
		Short: "Check a key and everything that a signature with it needs",
		Long: `Check a key: the module, the token, the PIN, the login, the key, its certificates, the plugin,
Notation's signing keys and trust policy, and a test signature. The report has one line for each
check. The exit code is 1 if a check fails. The PIN is not tried if a wrong one would lock the
token.

Without KEY, check the module, its tokens, the plugin, and the certificates of Notation's signing
keys, without a login.`,
		Example: `  notation-hsm doctor
  notation-hsm doctor "pkcs11:token=signing;object=release"`,
		Args: cli.AtMost(1),
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
			return failure.New(failure.Invalid, "%d of %d checks failed", failures, len(report)).
				WithHint("follow the hints in the report")
		}
		return nil
	}
	return c
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
