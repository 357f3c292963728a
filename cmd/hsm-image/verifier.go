package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"
	"github.com/notation-hsm/notation-hsm/internal/verification"
)

func installVerifierCommand() *cobra.Command {
	var node gate.Node
	var binDir string
	c := &cobra.Command{
		Use:   "install-verifier --bin-dir DIR --trust-dir DIR",
		Short: "Let containerd pull only images whose signatures verify",
		Long: `Write the image verifier that containerd runs before it pulls an image, and print the settings that
containerd needs. An image without a valid signature under the trust policy in --trust-dir is not
pulled. Nothing is pulled when the policy cannot be read, the registry does not answer, or the
decision cannot be logged.

containerd runs every file in --bin-dir: use a folder for the verifier alone. Signatures are fetched
from where containerd pulls: set --hosts-dir to containerd's registry hosts (config_path). Only root
may be able to change this program, the files and folders of these flags, and the folders above
them. The verifier checks this each time that it runs, and otherwise refuses every image.`,
		Example: "  hsm-image install-verifier --bin-dir /opt/containerd/image-verifier/bin \\\n" +
			"    --trust-dir /etc/notation --hosts-dir /etc/containerd/certs.d",
		Args: cli.Exactly(0),
	}
	addNodeFlags(c, &node)
	c.Flags().StringVar(&binDir, "bin-dir", "", "containerd's folder of image verifiers")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if binDir == "" || node.TrustDir == "" {
			return cli.Usage(c, failure.New(failure.Invalid, "--bin-dir and --trust-dir are needed"))
		}
		if err := cli.RefuseEmpty(c, "bin-dir", "trust-dir", "state-dir", "hosts-dir", "auth-file", "user"); err != nil {
			return err
		}
		program, err := ownPath()
		if err != nil {
			return err
		}
		done, err := node.Install(binDir, program)
		if err != nil {
			return err
		}
		printInstallation(c.ErrOrStderr(), done)
		_, err = fmt.Fprint(c.OutOrStdout(), done.Config)
		return err
	}
	return c
}

// ownPath returns the path of this program.
func ownPath() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", failure.New(failure.Internal, "cannot find the path of this program: %w", err)
	}
	return path, nil
}

// printInstallation prints the warnings about an installation, and what was written.
func printInstallation(w io.Writer, done *gate.Installation) {
	for _, name := range done.Skip {
		fmt.Fprintf(w, "warning: statement %s of the trust policy skips verification, which --allow-skip allows\n", name)
	}
	for _, name := range done.AnySigner {
		fmt.Fprintf(w, "warning: statement %s of the trust policy accepts a signature by any signer: it only logs whether "+
			"the signer is trusted\n", name)
	}
	for _, name := range done.Others {
		fmt.Fprintf(w, "warning: containerd will run %s as well, and pull nothing if that fails\n",
			filepath.Join(filepath.Dir(done.Path), name))
	}
	switch {
	case done.Root:
		fmt.Fprintf(w, "warning: the verifier will run as root; make a user for it (useradd --system --shell "+
			"/usr/sbin/nologin %s) and run this again\n", gate.DefaultUser)
	case done.User != "":
		fmt.Fprintf(w, "the verifier will run as user %s\n", done.User)
	}
	if version := sandbox.LandlockVersion(); version > 0 {
		fmt.Fprintf(w, "this kernel confines it to the files that it needs (Landlock, version %d)\n", version)
	} else {
		fmt.Fprintln(w, "warning: this kernel has no Landlock, so the verifier can read all files that its user can read")
	}
	fmt.Fprintf(w, "wrote %s; decisions go to %s\nadd this to containerd's configuration and restart it:\n", done.Path,
		done.Log)
}

func verifierCommand() *cobra.Command {
	var node gate.Node
	var check bool
	c := &cobra.Command{
		Use:    "containerd-verifier --trust-dir DIR -- -name IMAGE -digest DIGEST -stdin-media-type TYPE",
		Short:  "Decide for containerd whether it may pull an image",
		Hidden: true, // containerd runs it with the script that install-verifier writes
		Args:   cobra.ArbitraryArgs,
	}
	addNodeFlags(c, &node)
	c.Flags().BoolVar(&check, "check", false, "only check that the verifier can run")
	c.RunE = func(c *cobra.Command, args []string) error {
		gate.LimitMemory()
		program, err := ownPath()
		if err != nil {
			return err
		}
		fault, err := node.Confine(program)
		if err != nil {
			fmt.Fprintln(c.OutOrStdout(), err)
			return err
		}
		if check {
			return errors.Join(fault, node.CheckAccess())
		}
		var d gate.Decision
		if fault != nil {
			d = node.Refuse(c.Context(), args, fault)
		} else {
			d = node.Verify(c.Context(), args, c.InOrStdin())
		}
		if !d.Passed() {
			fmt.Fprintln(c.OutOrStdout(), d.Reason)
			return failure.New(failure.Denied, "%s is refused: %s", d.Reference, d.Reason)
		}
		reason := d.Reason
		if d.Signature != nil {
			reason = "signed by " + d.Signature.Subject
		}
		if d.Tag != nil {
			reason += ", tag " + d.Tag.String()
		}
		if d.Approvals != nil {
			reason += ", approved by " + strings.Join(d.Approvals.Names(), ", ")
		}
		fmt.Fprintf(c.OutOrStdout(), "%s (policy %s)\n", reason, d.Policy)
		return nil
	}
	return c
}

// addNodeFlags adds the flags of a node's settings.
func addNodeFlags(c *cobra.Command, node *gate.Node) {
	c.Flags().StringVar(&node.TrustDir, "trust-dir", "",
		"folder with trustpolicy.json and truststore, written by 'notation-hsm trust export --to'")
	c.Flags().StringVar(&node.StateDir, "state-dir", "/var/lib/hsm-image",
		"folder for the decision log, the revocation lists and the tag metadata that were seen")
	c.Flags().StringVar(&node.HostsDir, "hosts-dir", "",
		"containerd's folder with a hosts.toml for each registry (certs.d)")
	c.Flags().StringVar(&node.AuthFile, "auth-file", "",
		"registry credentials, in the format of Docker's config.json (default: none)")
	verification.AddPluginFlag(c, &node.Options)
	c.Flags().BoolVar(&node.AllowSkip, "allow-skip", false,
		"let images pass without verification if the trust policy says skip; the decision log has each of them")
	c.Flags().StringVar(&node.User, "user", "",
		"user that the verifier runs as (default: "+gate.DefaultUser+" if the system has this user, else root)")
	c.Flags().DurationVar(&node.Timeout, "timeout", gate.DefaultTimeout,
		"timeout for one image, one second or more; containerd's timeout has to be longer")
}
