package broker

import (
	"strings"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestStandbyMissing acknowledges nothing while commits wait for a standby that is away: PostgreSQL shows what it has
// not confirmed as soon as the session that waited has ended.
func TestStandbyMissing(t *testing.T) {
	t.Parallel()
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{})
	f := newFixture(t)
	s := openPostgres(t, server.Database(t))
	f.store = s
	o := f.options(s)
	o.Replica, o.Clock = &Replica{Store: s, Key: replicasKey}, Clock{}
	var err error
	if f.Broker, err = Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.stop)
	f.publishAll()
	configure := func(statement string) {
		t.Helper()
		server.SQL(t, "postgres", statement)
		server.SQL(t, "postgres", "SELECT pg_reload_conf()")
	}
	configure("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'")
	for strings.TrimSpace(server.SQL(t, "postgres", "SHOW synchronous_standby_names")) == "" {
		time.Sleep(10 * time.Millisecond)
	}
	size := f.durable.Load()
	answered := make(chan error)
	go func() {
		_, err := f.Create(t.Context(), caller("ci"), newTarget(1))
		answered <- err
	}()
	for ended := false; !ended; { // as a restart of the server does
		server.SQL(t, "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
		select {
		case err := <-answered:
			if ended = true; err == nil {
				t.Error("it was acknowledged")
			}
		case <-time.After(10 * time.Millisecond):
		}
	}
	if n, err := f.store.Size(t.Context()); err != nil || n == size {
		t.Errorf("the database shows nothing that it has not confirmed: %d entries, %v", n, err)
	}
	configure("ALTER SYSTEM RESET synchronous_standby_names")
	for {
		if _, err := f.Create(t.Context(), caller("ci"), newTarget(2)); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
}
