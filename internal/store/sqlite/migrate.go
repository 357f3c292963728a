package sqlite

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// A migration is the SQL that makes a version of the schema from the one before. Migrations go forward only: the first
// makes version 1 of an empty database.
type migration string

//go:embed migrations/*.sql
var files embed.FS

// embedded returns the migrations of this program.
func embedded() (all []migration) {
	for version := 1; ; version++ {
		text, err := files.ReadFile(fmt.Sprintf("migrations/%d.sql", version))
		if errors.Is(err, fs.ErrNotExist) {
			return all
		}
		if err != nil {
			panic(err) // they are in the program
		}
		all = append(all, migration(text))
	}
}

// migrate brings the schema to the newest version, each step in one transaction, after a backup.
func (s *Store) migrate(ctx context.Context, migrations []migration) error {
	var version int
	if err := s.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return s.explain("open", err)
	}
	if s.moved = version&movedBit != 0; s.moved {
		if version&^movedBit != len(migrations) {
			return s.refuseMoved(ctx)
		}
		return nil
	}
	if version > len(migrations) {
		return failure.New(failure.Unsupported, "the database %s is of version %d, and this program knows %d", s.path,
			version, len(migrations)).WithHint("use the program that wrote it, or a newer one")
	}
	if version > 0 && version < len(migrations) {
		backup := fmt.Sprintf("%s.version-%d.%s", s.path, version, time.Now().UTC().Format("20060102T150405.000000000Z"))
		if err := s.backup(ctx, backup); err != nil {
			return err
		}
	}
	for ; version < len(migrations); version++ {
		if err := s.step(ctx, version+1, migrations[version]); err != nil {
			return s.explain(fmt.Sprintf("migrate to version %d", version+1), err)
		}
	}
	return nil
}

func (s *Store) step(ctx context.Context, version int, m migration) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, string(m)); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version)); err != nil {
		return err
	}
	return tx.Commit()
}

// Backup writes a consistent copy to a new file, while the database is used.
func (s *Store) Backup(ctx context.Context, path string) error { return s.backup(ctx, path) }

// Backup writes a consistent copy of a database to a new file, also while another process has it open. It fails with
// NotFound if there is no database.
func Backup(ctx context.Context, database, path string) error {
	if _, err := os.Stat(database); err != nil {
		return failure.New(failure.FileKind(err), "cannot back up the database: %w", err).
			WithHint("check store in the config file")
	}
	return (&Store{path: database}).backup(ctx, path)
}

func (s *Store) backup(ctx context.Context, path string) error {
	const hint = "name a file that does not exist yet, in a folder that the broker may write to"
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.part") // with mode 0600
	if err != nil {
		return failure.New(failure.FileKind(err), "cannot write the backup: %w", err).WithHint(hint)
	}
	part := file.Name()
	defer os.Remove(part)
	defer file.Close()
	db, err := database(s.path) // of its own: it reads for long, and writes a file
	if err != nil {
		return s.explain("back up", err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", part); err != nil {
		return s.explain("back up", err)
	}
	err = file.Sync()
	if err == nil {
		err = os.Link(part, path) // which replaces nothing
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return failure.New(failure.FileKind(err), "cannot write the backup: %w", err).WithHint(hint)
	}
	return nil
}

// syncFolder has the names in a folder on the disk.
func syncFolder(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

// Restore makes a database of a backup: of a file that Backup wrote. It fails with Conflict if there is a database, and
// with Internal for a backup that is damaged.
func Restore(ctx context.Context, backup, path string) error {
	if _, err := os.Lstat(path); err == nil {
		return failure.New(failure.Conflict, "cannot restore the database: %s exists", path).
			WithHint("stop the broker, and move the database away with its files -wal and -shm")
	}
	if _, err := os.Stat(backup); err != nil { // or SQLite would make it
		return failure.New(failure.FileKind(err), "cannot read the backup: %w", err).
			WithHint("name a file that 'hsm-broker backup' has written")
	}
	source := &Store{path: backup}
	db, err := database(backup, "query_only(1)")
	if err != nil {
		return source.explain("read", err)
	}
	defer db.Close()
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&verdict); err != nil {
		return source.explain("read", err)
	}
	var version int
	var count, size int64
	err = db.QueryRowContext(ctx, "SELECT count(*), coalesce(max(idx) + 1, 0) FROM entries").Scan(&count, &size)
	if err == nil {
		err = db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version)
	}
	switch {
	case err != nil:
		return source.explain("read", err)
	case verdict != "ok" || count != size || count == 0:
		return failure.New(failure.Internal, "the backup %s is damaged: %s, %d of %d entries", backup, verdict, count, size).
			WithHint("use another backup")
	case version > len(embedded()):
		return failure.New(failure.Unsupported, "the backup %s is of version %d, and this program knows %d", backup, version,
			len(embedded())).WithHint("use the program that wrote it, or a newer one")
	}
	held, err := lock(path)
	if err != nil {
		return err
	}
	defer held.Close()
	copied := &Store{path: backup}
	return copied.backup(ctx, path)
}
