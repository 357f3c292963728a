package postgres

import (
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/store"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestInspect looks at a database before it has tables, after, and with a role that can make none.
func TestInspect(t *testing.T) {
	t.Parallel()
	server := softhsmtest.Postgres(t)
	url := server.Database(t)
	p := pool(t, url)
	defer p.Close()
	inspect := func(usable bool) {
		t.Helper()
		c, err := Inspect(t.Context(), p)
		if err != nil || c.Usable != usable || c.Standby != store.NoStandby || time.Since(c.Now).Abs() > time.Hour {
			t.Errorf("%+v, %v", c, err)
		}
	}
	inspect(true)
	name := p.Config().ConnConfig.Database
	server.SQL(t, name, "REVOKE CREATE ON SCHEMA public FROM pg_database_owner") // by whose rights the owner makes tables
	inspect(false)
}

// TestMembers lists the replicas that are alive.
func TestMembers(t *testing.T) {
	t.Parallel()
	s := open(t, softhsmtest.Postgres(t).Database(t))
	first, err := s.Join(t.Context(), store.Replica{Name: "east", Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Join(t.Context(), store.Replica{Name: "west", Version: "2"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Beat(t.Context(), second, true); err != nil {
		t.Fatal(err)
	}
	all, err := s.Members(t.Context())
	if err != nil || len(all) != 2 || all[0].Number != first || all[0].Name != "east" || all[0].Able ||
		all[1] != (store.Member{Replica: store.Replica{Name: "west", Version: "2"}, Number: second, Able: true}) {
		t.Errorf("%+v, %v", all, err)
	}
	if err := s.Leave(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if all, err = s.Members(t.Context()); err != nil || len(all) != 1 || all[0].Number != second {
		t.Errorf("%+v, %v", all, err)
	}
}
