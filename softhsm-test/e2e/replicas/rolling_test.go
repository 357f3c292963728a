package replicas

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// change is what a later version has otherwise: texts that replace others in a file, and files that are new.
type change struct {
	file     string
	old, new string
}

// expands is the version after this one: it renames a column. Its migration keeps the old name as well, so that this
// version still works; it adds columns to other tables, too.
var expands = []change{
	{"migrate.go", "var least = []int{1}", "var least = []int{1, 1}"},
	{"replicas.go", "(name, version, knows, seen)", "(name, program, knows, seen)"},
	{"members.go", "SELECT number, name, version, able", "SELECT number, name, program, able"},
	{"migrations/2.sql", "", `
ALTER TABLE replicas ADD COLUMN program text, ALTER COLUMN version DROP NOT NULL;
UPDATE replicas SET program = version;
CREATE FUNCTION both_names() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	NEW.program := coalesce(NEW.program, NEW.version);
	NEW.version := coalesce(NEW.version, NEW.program);
	RETURN NEW;
END $$;
CREATE TRIGGER both_names BEFORE INSERT ON replicas FOR EACH ROW EXECUTE FUNCTION both_names();
ALTER TABLE head ADD COLUMN note text NOT NULL DEFAULT '';
ALTER TABLE entries ADD COLUMN note text NOT NULL DEFAULT '';
ALTER TABLE requests ADD COLUMN note text NOT NULL DEFAULT '';
ALTER TABLE meta ADD COLUMN note text NOT NULL DEFAULT '';
CREATE TABLE later (x integer);
`},
}

// contracts is the version after that one: its migration drops the old name, so that this version does not work any
// more.
var contracts = append(slices.Clone(expands[1:]),
	change{"migrate.go", "var least = []int{1}", "var least = []int{1, 1, 2}"},
	change{"migrations/3.sql", "", `
DROP TRIGGER both_names ON replicas;
DROP FUNCTION both_names;
ALTER TABLE replicas DROP COLUMN version;
`})

// build builds the broker with changes of its engine for PostgreSQL, and returns the path of the program.
func build(t testing.TB, name string, changes []change) string {
	t.Helper()
	dir, engine := t.TempDir(), filepath.Join(softhsmtest.Root(), "internal", "store", "postgres")
	replaced := map[string]string{}
	for i, c := range changes {
		text, path := c.new, filepath.Join(engine, c.file)
		if c.old != "" {
			before := softhsmtest.Read(t, path)
			if text = strings.Replace(before, c.old, c.new, 1); text == before {
				t.Fatalf("%s has no %q", c.file, c.old)
			}
		}
		replaced[path] = filepath.Join(dir, fmt.Sprint(i))
		softhsmtest.Write(t, replaced[path], text)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, filepath.Join(dir, "overlay"), string(overlay))
	program := filepath.Join(dir, name)
	cmd := softhsmtest.Go(softhsmtest.Root(), slices.Concat([]string{"build", "-overlay", filepath.Join(dir, "overlay"),
		"-tags", softhsmtest.Tags}, softhsmtest.Hardened, []string{"-o", program, "./cmd/hsm-broker"})...)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build %s: %v\n%s", name, err, output)
	}
	return program
}

// caller signs one image after the other, until end is called: at another replica when one fails.
type caller struct {
	end    chan struct{}
	ended  chan struct{}
	images []string // that were signed
}

// call starts a caller.
func (s *site) call() *caller {
	c := &caller{end: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		for n := 0; ; n++ {
			select {
			case <-c.end:
				return
			default:
			}
			image, signed := s.image(fmt.Sprintf("release %d", n)), false
			for try := 0; !signed && try < 30; try++ {
				var output string
				if output, signed = s.sign((n+try)%len(s.replicas), branch, image); !signed && try > len(s.replicas) {
					s.t.Logf("attempt %d to sign image %d fails:\n%s", try, n, output)
				}
			}
			if !signed {
				s.t.Errorf("no replica signs image %d", n)
				return
			}
			c.images = append(c.images, image)
		}
	}()
	return c
}

// replace stops a replica in order, and tries to start it with another program.
func (s *site) replace(replica int, program string) (output string, ok bool) {
	s.t.Helper()
	b := s.replicas[replica]
	b.Stop()
	b.Program = program
	return b.TryStart()
}

// upgrade replaces the program of a replica, which then signs.
func (s *site) upgrade(replica int, program string) {
	s.t.Helper()
	if output, ok := s.replace(replica, program); !ok {
		s.t.Fatalf("replica %d does not start with %s:\n%s", replica, filepath.Base(program), output)
	}
	s.signs(replica, branch, s.image(fmt.Sprintf("replica %d with %s", replica, program)))
}

// schema fails the test unless the tables have a version.
func (s *site) schema(version string) {
	s.t.Helper()
	if got := s.server.SQL(s.t, s.database(), "SELECT version FROM schema"); got != version {
		s.t.Fatalf("the schema has version %s instead of %s", got, version)
	}
}

// TestRollingUpgrade replaces replicas one after the other by two later versions, of which one expands the tables and
// the other contracts them. Versions that follow one another work at once. Callers always get their signatures, and
// nothing is lost.
func TestRollingUpgrade(t *testing.T) {
	softhsmtest.Parallel(t)
	next, last := build(t, "next", expands), build(t, "last", contracts)
	s := start(t, 3)
	first := s.replicas[0].Program
	image := s.image("approved by two versions")
	made := s.create(0, image)
	s.approve(0, "alice", made.ID)
	busy := s.call()

	s.upgrade(0, next)
	s.schema("2")
	s.upgrade(1, first) // the old one starts with the new tables
	s.signs(2, branch, s.image("the old version on new tables"))
	detail, _ := s.detail(2, "replica")
	if n := strings.Count(detail, "(broker-"); n != 3 {
		t.Errorf("the old version knows %d replicas: %s", n, detail)
	}
	s.approve(0, "bob", made.ID)
	if state := s.state(2, tag, made.ID); state != brokerapi.Approved {
		t.Errorf("the old version shows the request as %s", state)
	}
	if output, ok := s.replace(0, last); ok || !strings.Contains(output, "2 replicas of an older version run") {
		t.Fatalf("the tables are contracted while an old version runs: %v\n%s", ok, output)
	}
	s.schema("2")
	s.upgrade(0, next)
	s.upgrade(1, next)
	s.upgrade(2, next)

	s.upgrade(0, last)
	s.schema("3")
	s.signs(1, branch, s.image("the version before on contracted tables"))
	s.upgrade(1, last)
	if output, ok := s.replace(2, first); ok || !strings.Contains(output,
		"its schema of version 3 needs a program that knows version 2") {
		t.Fatalf("a version that is too old starts: %v\n%s", ok, output)
	}
	s.upgrade(2, last)

	close(busy.end)
	<-busy.ended
	s.signs(1, tag, image)
	for _, image := range busy.images {
		softhsmtest.Run(t, s.notation.Program, "verify", "--insecure-registry", image)
	}
	s.sameLog(0, 1, 2)
	s.audit(0)
	t.Logf("a caller got %d signatures", len(busy.images))
}
