package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/custody"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/nethsm"
)

func nethsmCommand(ks *keystore.Keystore) *cobra.Command {
	c := cli.Group("nethsm", "Set up and maintain a NetHSM", nethsmStatusCommand(ks), nethsmSetupCommand(ks),
		nethsmBackupCommand(ks), nethsmConfigCommand(ks))
	c.Long = `Set up and maintain a NetHSM: create its users and keys, show its state, and back it up.

The section nethsm of the config file names a NetHSM and its users, or the variables
NOTATION_HSM_NETHSM_INSTANCES and so on. Where a command takes a key, nethsm:KEYID names one of the
NetHSM; where it takes a token, "--token nethsm:" names the NetHSM.`
	return c
}

// resolveNetHSM returns the NetHSM, or the key of an id on it.
func resolveNetHSM(ks *keystore.Keystore, id string, given map[string]string) (*keystore.Reference, error) {
	return ks.Resolve(config.NetHSMScheme+strings.TrimPrefix(id, config.NetHSMScheme), given, config.Flags)
}

func nethsmStatusCommand(ks *keystore.Keystore) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the state of each instance, and the members of the cluster",
		Long: `Show the state of each instance. Versions and the members of the cluster are shown if the config
file names an administrator. The command fails unless an instance is operational.`,
		Example: "  notation-hsm nethsm status",
		Args:    cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.Timeout)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := resolveNetHSM(ks, "", given())
		if err != nil {
			return err
		}
		status, err := custody.NetHSMStatus(c.Context(), s)
		if err != nil {
			return err
		}
		if asJSON {
			err = cli.PrintJSON(c.OutOrStdout(), status)
		} else {
			err = printStatus(c.OutOrStdout(), c.ErrOrStderr(), status)
		}
		if err != nil {
			return err
		}
		for _, i := range status.Instances {
			if i.State == nethsm.Operational {
				return nil
			}
		}
		return failure.New(failure.Unavailable, "no instance is operational").
			WithHint("see the column ERROR; unlock a Locked instance with its unlock passphrase; set up an Unprovisioned one")
	}
	return c
}

func printStatus(out, remarks io.Writer, status *nethsm.Status) error {
	rows := make([][]string, len(status.Instances))
	for i, instance := range status.Instances {
		rows[i] = []string{instance.URL, string(instance.State), cli.OrDash(instance.Version), cli.OrDash(instance.Product),
			cli.OrDash(instance.Error)}
	}
	if err := cli.PrintTable(out, []string{"INSTANCE", "STATE", "VERSION", "PRODUCT", "ERROR"}, rows); err != nil {
		return err
	}
	if status.Remark != "" {
		fmt.Fprintln(remarks, "note: "+status.Remark)
	}
	if len(status.Members) == 0 {
		return nil
	}
	rows = make([][]string, len(status.Members))
	for i, m := range status.Members {
		role := "member"
		if m.Learner {
			role = "learner"
		}
		rows[i] = []string{fmt.Sprintf("%q", m.Name), m.ID, role, fmt.Sprintf("%q", m.URLs)}
	}
	fmt.Fprintln(out)
	return cli.PrintTable(out, []string{"MEMBER", "ID", "ROLE", "URLS"}, rows)
}

func nethsmSetupCommand(ks *keystore.Keystore) *cobra.Command {
	var id string
	var o custody.NetHSMSetup
	var yes bool
	c := &cobra.Command{
		Use:   "setup",
		Short: "Create the users and the key that a signing pipeline needs",
		Long: `Create what does not exist yet: the namespace and the administrator that the config file names, the
operator with a tag, a key that only users with this tag can use, and with --subject a self-signed
certificate. So only this operator can sign with the key. The operator can also use the keys of its
other tags and keys without a tag; it can create, change and delete nothing. The command prints the
plan first, with those keys, and asks for confirmation. It can be run again: what exists already is
not changed.

The section nethsm of the config file has the users and the sources of their passphrases: user,
pin-source, administrator and administrator-pin-source. To create a namespace and its administrator,
an administrator outside any namespace is needed.`,
		Example: `  notation-hsm nethsm setup --key release --tag release \
    --root-administrator admin --root-pin-source prompt`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.Timeout)
	c.Flags().StringVar(&id, "key", "", "key ID (required)")
	c.Flags().StringVar(&o.Tag, "tag", "", "tag that lets the operator use the key (default: the key ID)")
	c.Flags().StringVar(&o.Spec, "spec", "",
		"RSA-2048, RSA-3072, RSA-4096, EC-256, EC-384 or EC-521 (default: EC-256; RSA-3072 to decrypt)")
	c.Flags().StringVar(&o.Usage, "usage", "sign", "sign; or decrypt, for a recipient of encrypted images")
	c.Flags().StringVar(&o.Subject, "subject", "",
		"subject of a self-signed certificate, as in "+subjectExample+" (default: no certificate)")
	c.Flags().IntVar(&o.Days, "days", 365, "how many days that certificate is valid")
	c.Flags().StringVar(&o.Root, "root-administrator", "",
		"administrator outside any namespace, who creates the namespace")
	c.Flags().StringVar(&o.RootPINSource, "root-pin-source", "",
		"where the passphrase of --root-administrator comes from, in the format of --pin-source")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if id == "" {
			return cli.Required(c, "key", "release")
		}
		if o.Subject != "" && o.Usage == string(key.Decrypt) {
			return cli.Usage(c, failure.New(failure.Invalid, "--subject needs --usage sign"))
		}
		s, err := resolveNetHSM(ks, id, given())
		if err != nil {
			return err
		}
		if o.Tag == "" {
			o.Tag = s.Key.Object
		}
		if o.Spec == "" && o.Usage == string(key.Decrypt) {
			o.Spec = "RSA-3072" // a NetHSM has no ECDH
		}
		o.Spec = cmp.Or(o.Spec, "EC-256")
		out := c.ErrOrStderr()
		confirm := func(plan []nethsm.Step) error {
			for _, step := range plan {
				state := "create"
				if step.Done {
					state = "exists"
				}
				fmt.Fprintf(out, "  %s  %s\n", state, step.What)
			}
			if yes {
				return nil
			}
			return cli.Ask(c.Context(), "type the key ID to continue", s.Key.Object)
		}
		if err := custody.SetUpNetHSM(c.Context(), s, o, confirm,
			func(step string) { fmt.Fprintf(out, "creating %s\n", step) }); err != nil {
			return err
		}
		if o.Subject == "" && o.Usage == "sign" {
			fmt.Fprintf(out,
				"next: notation-hsm cert csr %s --subject ...; then, with the CA's certificate: notation-hsm cert import %s FILE\n",
				s.Key, s.Key)
		}
		fmt.Fprintln(c.OutOrStdout(), s.Key)
		return nil
	}
	return c
}

func nethsmBackupCommand(ks *keystore.Keystore) *cobra.Command {
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a backup of the whole NetHSM to a file",
		Long: `Write a backup of the whole NetHSM, with all its keys and users, to a file. The NetHSM encrypts it
under its backup passphrase, which an administrator must have set. The section nethsm of the config
file needs backup-user and backup-pin-source. The command prints the size and the SHA-256 of the
file.`,
		Example: "  notation-hsm nethsm backup nethsm-backup.bin",
		Args:    cli.Exactly(1),
	}
	given := cli.AddSettings(c, config.Timeout)
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := resolveNetHSM(ks, "", given())
		if err != nil {
			return err
		}
		size, digest, err := custody.BackUpNetHSM(c.Context(), s, args[0])
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%d bytes, sha256:%s\n", size, digest)
		return nil
	}
	return c
}

func nethsmConfigCommand(ks *keystore.Keystore) *cobra.Command {
	var label, log string
	c := &cobra.Command{
		Use:   "config",
		Short: "Print the configuration of Nitrokey's PKCS#11 module",
		Long: `Print p11nethsm.conf, the configuration of Nitrokey's PKCS#11 module, for the NetHSM in the section
nethsm of the config file. It has no passphrase: that is given at the login. The module reads the
file that P11NETHSM_CONFIG_FILE names; set this variable under env of the token in the config file.`,
		Example: "  notation-hsm nethsm config > p11nethsm.conf",
		Args:    cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.Timeout)
	c.Flags().StringVar(&label, "label", "nethsm", "label of the token")
	c.Flags().StringVar(&log, "log-file", os.DevNull, "file for the log of the module")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := resolveNetHSM(ks, "", given())
		if err != nil {
			return err
		}
		conf, err := custody.NetHSMModule(s, label, log)
		if err != nil {
			return err
		}
		if s.NetHSM.CAFile != "" && len(s.NetHSM.Fingerprints) == 0 && !s.NetHSM.Insecure {
			fmt.Fprintf(c.ErrOrStderr(),
				"note: the module finds a CA only by its environment: also set SSL_CERT_FILE: %s under env of the token\n",
				s.NetHSM.CAFile)
		}
		_, err = c.OutOrStdout().Write(conf)
		return err
	}
	return c
}
