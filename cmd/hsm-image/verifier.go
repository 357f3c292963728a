package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"
)

func installVerifierCommand() *cobra.Command {
	var node gate.Node
	var binDir string
	c := &cobra.Command{
		Use:   "install-verifier --bin-dir DIR --trust-dir DIR",
		Short: "Have containerd pull only images that verify",
		Long: `Write the image verifier that containerd runs before it pulls an image, and print what containerd's configuration needs. An image
whose signature does not verify under the trust policy in --trust-dir is not pulled, nor is any when the policy, the registry or the
decision log fail.

containerd runs every file in --bin-dir, so give it a folder of its own. Signatures are looked up where containerd pulls from: name
its registry hosts (config_path) with --hosts-dir. Whatever decides has to be root's: this program, the files and folders that the flags
name, and the folders above them. The verifier looks again each time that it runs, and refuses every image while others can change one.`,
		Example: `  hsm-image install-verifier --bin-dir /opt/containerd/image-verifier/bin --trust-dir /etc/notation --hosts-dir /etc/containerd/certs.d`,
		Args:    cli.Exactly(0),
	}
	addNodeFlags(c, &node)
	c.Flags().StringVar(&binDir, "bin-dir", "", "containerd's folder of image verifiers")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if binDir == "" || node.TrustDir == "" {
			return cli.Usage(c, failure.New(failure.Invalid, "--bin-dir and --trust-dir are needed"))
		}
		if err := refuseEmpty(c, "bin-dir", "trust-dir", "state-dir", "hosts-dir", "auth-file", "user"); err != nil {
			return err
		}
		program, err := os.Executable()
		if err != nil {
			return failure.New(failure.Internal, "can't tell where this program is: %w", err)
		}
		done, err := node.Install(binDir, program)
		if err != nil {
			return err
		}
		for _, name := range done.Skip {
			fmt.Fprintf(c.ErrOrStderr(),
				"warning: statement %s of the trust policy skips verification, which --allow-skip allows\n", name)
		}
		for _, name := range done.AnySigner {
			fmt.Fprintf(c.ErrOrStderr(),
				"warning: statement %s of the trust policy accepts a signature by any signer: it only logs whether the signer "+
					"is trusted\n", name)
		}
		for _, name := range done.Others {
			fmt.Fprintf(c.ErrOrStderr(), "warning: containerd will run %s as well, and pull nothing if that fails\n",
				filepath.Join(filepath.Dir(done.Path), name))
		}
		switch {
		case done.Root:
			fmt.Fprintf(c.ErrOrStderr(),
				"warning: the verifier will run as root; make it a user (useradd --system --shell /usr/sbin/nologin %s) and run "+
					"this again\n", gate.DefaultUser)
		case done.User != "":
			fmt.Fprintf(c.ErrOrStderr(), "the verifier will run as user %s\n", done.User)
		}
		if version := sandbox.LandlockVersion(); version > 0 {
			fmt.Fprintf(c.ErrOrStderr(), "this kernel confines it to the files that it needs (Landlock, version %d)\n", version)
		} else {
			fmt.Fprintln(c.ErrOrStderr(),
				"warning: this kernel has no Landlock, so nothing but its user confines the verifier to the files that it needs")
		}
		fmt.Fprintf(c.ErrOrStderr(), "wrote %s; decisions go to %s\nadd this to containerd's configuration and restart it:\n",
			done.Path, done.Log)
		_, err = fmt.Fprint(c.OutOrStdout(), done.Config)
		return err
	}
	return c
}

func verifierCommand() *cobra.Command {
	var node gate.Node
	var check bool
	c := &cobra.Command{
		Use:    "containerd-verifier --trust-dir DIR -- -name IMAGE -digest DIGEST -stdin-media-type TYPE",
		Short:  "Answer containerd whether it may pull an image",
		Hidden: true, // containerd runs it through what install-verifier writes
		Args:   cobra.ArbitraryArgs,
	}
	addNodeFlags(c, &node)
	c.Flags().BoolVar(&check, "check", false, "only see whether the verifier can run")
	c.RunE = func(c *cobra.Command, args []string) error {
		gate.LimitMemory()
		program, err := os.Executable()
		if err != nil {
			return failure.New(failure.Internal, "can't tell where this program is: %w", err)
		}
		fault, err := node.Enter(program)
		if err != nil {
			fmt.Fprintln(c.OutOrStdout(), err)
			return err
		}
		if check {
			return errors.Join(fault, node.Check())
		}
		var r gate.Result
		if fault != nil {
			r = node.Refuse(c.Context(), args, fault)
		} else {
			r = node.Judge(c.Context(), args, c.InOrStdin())
		}
		if !r.Passed() {
			fmt.Fprintln(c.OutOrStdout(), r.Reason)
			return failure.New(failure.Denied, "%s is refused: %s", r.Reference, r.Reason)
		}
		by := r.Reason
		if r.Signature != nil {
			by = "signed by " + r.Signature.Subject
		}
		fmt.Fprintf(c.OutOrStdout(), "%s (policy %s)\n", by, r.Policy)
		return nil
	}
	return c
}

func addNodeFlags(c *cobra.Command, node *gate.Node) {
	c.Flags().StringVar(&node.TrustDir, "trust-dir", "",
		"folder with trustpolicy.json and truststore, as 'notation-hsm trust export --to' writes it")
	c.Flags().StringVar(&node.StateDir, "state-dir", "/var/lib/hsm-image",
		"folder for the decision log and revocation lists")
	c.Flags().StringVar(&node.HostsDir, "hosts-dir", "",
		"folder with a hosts.toml for each registry, as containerd has it (certs.d)")
	c.Flags().StringVar(&node.AuthFile, "auth-file", "",
		"registry credentials, in the format of Docker's config.json (default: none)")
	addPluginFlag(c, &node.Options)
	c.Flags().BoolVar(&node.AllowSkip, "allow-skip", false,
		"let images pass unverified where the trust policy says skip; each is in the decision log")
	c.Flags().StringVar(&node.User, "user", "",
		"user whom the verifier runs as (default: "+gate.DefaultUser+" if there is one, else root)")
	c.Flags().DurationVar(&node.Timeout, "timeout", gate.DefaultTimeout,
		"longest wait for one image, one second or more; containerd's has to be longer")
}
