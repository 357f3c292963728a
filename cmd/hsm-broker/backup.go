package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/logflags"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// addConfig gives a command the flag --config.
func addConfig(c *cobra.Command, file *string) {
	c.Flags().StringVar(file, "config", defaultConfig, "the broker's config file")
}

func backupCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a copy of the broker's database to a new file, while the broker runs",
		Long: `Write a copy of the broker's database to a new file, while the broker runs. The copy has no key and no
PIN. Keep the checkpoint file (log.checkpoint-file) as it is: it is newer than every backup, and tells
what a restored database lacks.`,
		Example: "  hsm-broker backup /backup/broker-2030-01-31.db",
		Args:    cli.Exactly(1),
	}
	addConfig(c, &file)
	c.RunE = func(c *cobra.Command, args []string) error {
		f, err := brokerfile.Read(file)
		if err != nil {
			return err
		}
		to, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		if err := refuseShared(f, "back up"); err != nil {
			return err
		}
		if err := sqlite.Backup(c.Context(), f.StorePath(), to); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "the backup is in %s\n", to)
		return nil
	}
	return c
}

func restoreCommand() *cobra.Command {
	var file, ca string
	c := &cobra.Command{
		Use:   "restore FILE [LOG]",
		Short: "Make the database of a stopped broker of a backup, and replay what a copy of the log has besides",
		Long: `Make the database of a stopped broker of a backup. LOG is a folder with a copy of the log ('hsm-broker
log export'), or a URL that serves one: entries that are newer than the backup are replayed. Without
them, the broker signs nothing until a new epoch of its log begins ('hsm-broker log new-epoch'), since
nobody knows any more what was signed meanwhile.`,
		Example: "  hsm-broker restore /backup/broker-2030-01-31.db /backup/log",
		Args:    cobra.RangeArgs(1, 2),
	}
	addConfig(c, &file)
	c.Flags().StringVar(&ca, "ca", "",
		"PEM file of the certificate authorities of the server of LOG (default: the system's)")
	c.RunE = func(c *cobra.Command, args []string) error {
		f, err := brokerfile.Read(file)
		if err != nil {
			return err
		}
		if err := refuseShared(f, "restore"); err != nil {
			return err
		}
		var files translog.Files
		var verifier *translog.Verifier
		if len(args) == 2 { // before anything is restored
			if files, verifier, err = logCopy(c.Context(), f, args[1], ca); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(filepath.Dir(f.StorePath()), 0o700); err != nil {
			return failure.New(failure.FileKind(err), "cannot make the folder of the store: %w", err).
				WithHint("run it as the user of the broker")
		}
		if err := sqlite.Restore(c.Context(), args[0], f.StorePath()); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "the database is restored in %s\n", f.StorePath())
		if len(args) == 1 {
			return nil
		}
		n, err := replay(c.Context(), f, files, verifier)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%d entries of the log are replayed\n", n)
		return nil
	}
	return c
}

// logCopy returns the files of a copy of a broker's log, and their verifier: the key in the config file's module, under
// the name that the log has in the epoch of the copy.
func logCopy(ctx context.Context, f *brokerfile.File, from, ca string) (translog.Files, *translog.Verifier, error) {
	flags := &logflags.Flags{CA: ca}
	files, err := flags.Files(from)
	if err != nil {
		return nil, nil, err
	}
	checkpoint, err := files(ctx, translog.CheckpointPath)
	if err != nil {
		return nil, nil, err
	}
	origin, err := originIn(f, checkpoint)
	if err != nil {
		return nil, nil, err
	}
	verifier, err := logVerifier(ctx, f, origin)
	if err != nil {
		return nil, nil, err
	}
	_, err = translog.Open(checkpoint, []*translog.Verifier{verifier})
	return files, verifier, err
}

// replay replays the entries of a copy of the log.
func replay(ctx context.Context, f *brokerfile.File, files translog.Files, verifier *translog.Verifier) (int64, error) {
	var documents [][]byte
	if text, err := bound.ReadFile(f.Policy, policy.MaxFile); err == nil {
		documents = append(documents, text)
	}
	if decisive, err := f.Decisive(); err == nil {
		documents = append(documents, decisive)
	}
	s, err := openStore(ctx, f)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	return broker.Replay(ctx, s, files, []*translog.Verifier{verifier}, documents...)
}

func pinCommand() *cobra.Command {
	var file string
	clearing := &cobra.Command{
		Use:   "clear [TOKEN]",
		Short: "Let a PIN be tried again that a token has refused",
		Long: `Let a PIN be tried again that a token has refused. Most tokens lock after few wrong PINs, so put the right
PIN into its source first. TOKEN is the label of the token or its URI; it is needed when several tokens
have refused a PIN. For replicas of a broker it is run once, at any of them.`,
		Args: cli.AtMost(1),
	}
	addConfig(clearing, &file)
	clearing.RunE = func(c *cobra.Command, args []string) error {
		f, err := brokerfile.Read(file)
		if err != nil {
			return err
		}
		refused, err := openRefusals(c.Context(), f)
		if err != nil {
			return err
		}
		defer refused.Close()
		all, err := refused.List(c.Context())
		if err != nil {
			return err
		}
		chosen, err := choose(c, all, args)
		if err != nil || chosen == nil {
			return err
		}
		if err := refused.Clear(c.Context(), *chosen); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "the PIN of token %q can be tried again\n", chosen.Name)
		return nil
	}
	return cli.Group("pin", "See to PINs that tokens have refused", clearing)
}
