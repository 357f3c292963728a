package softhsmtest

import (
	"path/filepath"
	"strconv"
	"testing"
)

// Standby returns a streaming standby of the server: from then on, the server commits nothing that the standby has not
// written to its disk. It ends with the test.
func (s *PostgresServer) Standby(t testing.TB) *PostgresServer {
	t.Helper()
	standby := &PostgresServer{bin: s.bin, user: s.user, Port: freePort(t)}
	standby.Dir = s.user.temporary(t, "pg")
	removeAtExit(t, s.user, standby.Dir)
	t.Cleanup(standby.remove)
	s.run(t, "pg_basebackup", "--pgdata="+standby.data(), "--checkpoint=fast", "--wal-method=stream",
		"--write-recovery-conf", "--host="+s.Dir, "--port="+strconv.Itoa(s.Port), "--username=postgres")
	settings := Read(t, filepath.Join(standby.data(), "postgresql.auto.conf"))
	standby.write(t, "postgresql.auto.conf",
		settings+"unix_socket_directories = '"+standby.Dir+"'\ncluster_name = 'standby'\n") // the last line counts
	standby.Start(t)
	s.SQL(t, "postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'")
	s.SQL(t, "postgres", "SELECT pg_reload_conf()")
	await(t, "the standby to be synchronous", func() bool {
		return s.SQL(t, "postgres", "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1"
	})
	return standby
}

// Promote has a standby become a server that takes writes. Its primary has to be stopped before.
func (s *PostgresServer) Promote(t testing.TB) {
	t.Helper()
	s.SQL(t, "postgres", "SELECT pg_promote()") // it returns when the server takes writes
}
