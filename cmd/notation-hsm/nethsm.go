package main

import (
	"cmp"
	"errors"
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
	c := cli.Group("nethsm", "Set up and look after a NetHSM", nethsmStatusCommand(ks), nethsmSetupCommand(ks),
		nethsmBackupCommand(ks), nethsmConfigCommand(ks))
	c.Long = `A NetHSM is named in the section nethsm of the config file (or by NOTATION_HSM_NETHSM_INSTANCES and so on). Its keys are named
nethsm:KEYID wherever a key is; "--token nethsm:" names it where a token is.`
	return c
}

// resolveNetHSM finds the settings of the NetHSM, or of a key on it.
func resolveNetHSM(ks *keystore.Keystore, id string, given map[string]string) (*keystore.Reference, error) {
	return ks.Resolve(config.NetHSMScheme+strings.TrimPrefix(id, config.NetHSMScheme), given, config.Flags)
}

// hush keeps warnings about the NetHSM out of the plugin protocol; they are in the log.
func hush() { nethsm.Warnings = io.Discard }

func nethsmStatusCommand(ks *keystore.Keystore) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the state of each instance, and the cluster's members",
		Long: "Show the state of each instance. Versions and the cluster's members are told to an administrator alone. " +
			"It fails unless an instance is operational.",
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
		return failure.New(failure.Internal, "no instance is operational").
			WithHint("a Locked one wants its unlock passphrase, an Unprovisioned one to be set up")
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
		Short: "Make what a signing pipeline needs, and no more",
		Long: `Make what is not there yet: the namespace and administrator that the config file names, the operator with a tag, a key that only users
with this tag can use, and with --subject a self-signed certificate. So nobody but this operator can sign with the key. The operator itself can also use the keys of its other
tags and those that have no tag; it can make, change and delete nothing. The plan is shown first, with those keys. It can be run again: what is there stays.

The users, and where their passphrases come from, stand in the section nethsm of the config file: user, pin-source, administrator and
administrator-pin-source. An administrator outside of any namespace is needed once, to make a namespace and its administrator.`,
		Example: `  notation-hsm nethsm setup --key release --tag release --root-administrator admin --root-pin-source prompt`,
		Args:    cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.Timeout)
	c.Flags().StringVar(&id, "key", "", "the key ID (required)")
	c.Flags().StringVar(&o.Tag, "tag", "", "the tag that lets the operator use the key (default: the key ID)")
	c.Flags().StringVar(&o.Spec, "spec", "",
		"RSA-2048, RSA-3072, RSA-4096, EC-256, EC-384 or EC-521 (default: EC-256; RSA-3072 to decrypt)")
	c.Flags().StringVar(&o.Usage, "usage", "sign", "sign, or decrypt for the key of a recipient")
	c.Flags().StringVar(&o.Subject, "subject", "",
		`make a self-signed certificate, as in "CN=release,O=Example,C=CH,ST=Zurich"`)
	c.Flags().IntVar(&o.Days, "days", 365, "how long that certificate is valid")
	c.Flags().StringVar(&o.Root, "root-administrator", "",
		"an administrator outside of any namespace, to make the namespace")
	c.Flags().StringVar(&o.RootPINSource, "root-pin-source", "",
		"where the passphrase of --root-administrator comes from, as --pin-source elsewhere")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if id == "" {
			return cli.Usage(c, errors.New("setup needs --key"))
		}
		s, err := resolveNetHSM(ks, id, given())
		if err != nil {
			return err
		}
		if o.Tag == "" {
			o.Tag = s.Key.Object
		}
		if o.Spec == "" && o.Usage == string(key.Decrypt) {
			o.Spec = "RSA-3072" // a NetHSM's EC keys open nothing
		}
		o.Spec = cmp.Or(o.Spec, "EC-256")
		out := c.ErrOrStderr()
		confirm := func(plan []nethsm.Step) error {
			for _, step := range plan {
				mark := "make "
				if step.Done {
					mark = "there"
				}
				fmt.Fprintf(out, "  %s  %s\n", mark, step.What)
			}
			if yes {
				return nil
			}
			return cli.Ask(c.Context(), "type the key ID to go on", s.Key.Object)
		}
		if err := custody.SetUpNetHSM(c.Context(), s, o, confirm,
			func(what string) { fmt.Fprintf(out, "making %s\n", what) }); err != nil {
			return err
		}
		if o.Subject == "" && o.Usage == "sign" {
			fmt.Fprintf(out,
				"next: notation-hsm cert csr %s --subject ...; and with the answer: notation-hsm cert import %s FILE\n", s.Key,
				s.Key)
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
		Long: `Write a backup of the whole NetHSM, with all its keys and users, to a file. The NetHSM encrypts it under its backup passphrase, which an
administrator has to have set. The config file names backup-user and backup-pin-source. Size and SHA-256 of the file are printed.`,
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
		Long: `Print p11nethsm.conf, the configuration of Nitrokey's PKCS#11 module, for the NetHSM of the section nethsm of the config file. It holds no
passphrase: that comes with the login. The module finds the file by P11NETHSM_CONFIG_FILE, which stands under env of the token.`,
		Example: "  notation-hsm nethsm config > p11nethsm.conf",
		Args:    cli.Exactly(0),
	}
	given := cli.AddSettings(c, config.Timeout)
	c.Flags().StringVar(&label, "label", "nethsm", "the label of the token")
	c.Flags().StringVar(&log, "log-file", os.DevNull, "where the module writes its log")
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
				"note: the module takes a CA from its environment alone: write SSL_CERT_FILE: %s under env of the token as well\n",
				s.NetHSM.CAFile)
		}
		_, err = c.OutOrStdout().Write(conf)
		return err
	}
	return c
}
