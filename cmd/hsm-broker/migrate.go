package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/broker/logins"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// maxCheckpoint is the size of the largest checkpoint that is read, in bytes.
const maxCheckpoint = 1 << 20

func migrateCommand() *cobra.Command {
	var file, from, to string
	c := &cobra.Command{
		Use:   "migrate --from sqlite:FILE --to postgres://USER@HOST/DATABASE",
		Short: "Move a stopped broker from SQLite to PostgreSQL, the log included",
		Long: `Move a stopped broker from SQLite to PostgreSQL, the log included, and verify what has arrived. The
config file is that of the replicas: its store is the URL of --to, to the letter, and log.checkpoint-file
is the file of the broker until now. The database of --to is empty.

All rows are moved in one transaction. Then no broker starts with the SQLite database any more, which is
kept: two brokers would sign by one approval. A move that was interrupted is run again.`,
		Example: `  hsm-broker migrate --from sqlite:/var/lib/hsm-broker/broker.db \
    --to 'postgres://broker@db.example.com/broker?sslmode=verify-full&sslrootcert=/etc/hsm-broker/db-ca.pem'`,
		Args: cli.Exactly(0),
	}
	addConfig(c, &file)
	c.Flags().StringVar(&from, "from", "", "the SQLite database: the store of the broker until now")
	c.Flags().StringVar(&to, "to", "", "the database of PostgreSQL: the store in the config file")
	for _, name := range []string{"from", "to"} {
		_ = c.MarkFlagRequired(name) // it exists
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		path, isSQLite := strings.CutPrefix(from, "sqlite:")
		f, err := brokerfile.Read(file)
		switch {
		case err != nil:
			return err
		case !isSQLite || path == "":
			return failure.New(failure.Invalid, "cannot move the store %q: it is no SQLite database", from).
				WithHint("write --from sqlite:FILE, as the broker's config had it")
		case !f.Shared() || to != f.Store:
			return failure.New(failure.Invalid, "the store in %s is not the database of --to", file).
				WithHint("give --to the URL that store has there, with all parameters")
		}
		return migrate(c.Context(), c.OutOrStdout(), f, path)
	}
	return c
}

// migrate moves the SQLite database at a path to the store of a config.
func migrate(ctx context.Context, out io.Writer, f *brokerfile.File, path string) (err error) {
	source, err := sqlite.OpenToMove(ctx, path) // which nobody else has open
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	s, err := openStore(ctx, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	target, is := s.(store.Target)
	replica, err := replicaOf(f, s)
	if err != nil || !is {
		return err
	}
	if err := moveRefusals(ctx, f, s, path); err != nil {
		return err
	}
	checkpoint, err := outside(ctx, f)
	if err != nil {
		return err
	}
	moved, err := (&broker.Move{From: source, To: target, Name: shownStore(f), Key: replica.Key, Origin: f.Log.Origin,
		Checkpoint: checkpoint}).Run(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, `moved %d entries of the log, %d requests, %d documents and %d notices to %s
verified: the log is that of the checkpoint file, and all rows are the same
no broker starts with %s any more; keep it until the database has a backup

start the replicas with this config: the first on this machine, the others with a copy of
%s
`, moved.Entries, moved.Requests, moved.Documents, moved.Notices, shownStore(f), path, f.Log.CheckpointFile)
	return nil
}

// moveRefusals keeps in the store that replicas share which PINs tokens have refused.
func moveRefusals(ctx context.Context, f *brokerfile.File, s store.Store, path string) (err error) {
	shared, is := s.(store.Logins)
	if !is {
		return nil
	}
	all, err := refusalsBeside(path).List(ctx)
	if err != nil {
		return err
	}
	kept := logins.New(shared, f.ReplicaName())
	defer func() { err = errors.Join(err, kept.Close()) }()
	for _, refused := range all {
		if err := kept.Add(ctx, refused); err != nil {
			return err
		}
	}
	return nil
}

// outside returns the checkpoint in the checkpoint file, verified by the log's key in its module.
func outside(ctx context.Context, f *brokerfile.File) (c translog.Checkpoint, err error) {
	note, err := bound.ReadFile(f.Log.CheckpointFile, maxCheckpoint)
	if err != nil {
		return c, failure.New(failure.FileKind(err), "cannot read the checkpoint file: %w", err).
			WithHint("set log.checkpoint-file to the one of the broker until now")
	}
	origin, err := originIn(f, note)
	if err != nil {
		return c, err
	}
	verifier, err := logVerifier(ctx, f, origin)
	if err != nil {
		return c, err
	}
	return translog.Open(note, []*translog.Verifier{verifier})
}

// shownStore returns the store of a config for people: without its parameters.
func shownStore(f *brokerfile.File) string {
	if u, err := url.Parse(f.Store); err == nil {
		u.RawQuery = ""
		return u.Redacted()
	}
	shown, _, _ := strings.Cut(f.Store, "?")
	return shown
}
