package main

import (
	"crypto/rand"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// database is that of brokers on a server of PostgreSQL with the defaults: what is committed is on the disk.
type database struct {
	f      fixture
	server *softhsmtest.PostgresServer
	url    string
	name   string
}

func newDatabase(f fixture) *database {
	d := &database{f: f, server: softhsmtest.NewPostgres(f, softhsmtest.PostgresOptions{})}
	d.url = d.server.Database(f)
	u, err := url.Parse(d.url)
	check(f, err)
	d.name = strings.TrimPrefix(u.Path, "/")
	return d
}

// count returns the number that a SELECT finds.
func (d *database) count(query string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(d.server.SQL(d.f, d.name, query)), 10, 64)
	check(d.f, err)
	return n
}

// growth is the bytes of the write-ahead log and of tables with their indexes, and the signatures.
type growth struct {
	bytes      map[string]int64
	signatures int64
}

// growth returns what there is.
func (d *database) growth() growth {
	g := growth{map[string]int64{"write-ahead log": d.count("SELECT pg_current_wal_lsn() - '0/0'")},
		d.count("SELECT size / 2 FROM head")}
	for _, table := range []string{"entries", "tiles", "requests"} {
		g.bytes[table] = d.count(fmt.Sprintf(`SELECT pg_total_relation_size('%[1]s') + coalesce(sum(
			pg_total_relation_size(inhrelid)), 0) FROM pg_inherits WHERE inhparent = '%[1]s'::regclass`, table))
	}
	return g
}

func (g growth) minus(other growth) growth {
	left := growth{map[string]int64{}, g.signatures - other.signatures}
	maps.Copy(left.bytes, g.bytes)
	for name, n := range other.bytes {
		left.bytes[name] -= n
	}
	return left
}

func (g growth) plus(other growth) growth {
	return other.minus(growth{map[string]int64{}, 0}.minus(g))
}

// perSignature returns the bytes of a signature, by name.
func (g growth) perSignature() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(g.bytes)) {
		all = append(all, fmt.Sprintf("%s %d", name, g.bytes[name]/max(g.signatures, 1)))
	}
	return strings.Join(all, ", ")
}

// transaction is a turn of a broker: it locks the head of the log, and then writes COUNT entries, the tile that they
// change, and as many rows of requests: half of them are new, and the others those that were new in the turn before.
const transaction = `
\startpipeline
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SELECT set_config('lock_timeout', '5000', true), set_config('statement_timeout', '10000', true),
  set_config('idle_in_transaction_session_timeout', '3000', true), set_config('synchronous_commit', 'on', true);
SELECT size, seal, version FROM head FOR UPDATE;
DELETE FROM replicas WHERE seen <= clock_timestamp() - make_interval(secs => 5::float8);
SELECT clock_timestamp(), array(SELECT number FROM replicas ORDER BY number);
\endpipeline
\startpipeline
INSERT INTO entries SELECT size + n, entries[1 + n % 2] FROM head, sample, generate_series(0, COUNT - 1) n;
INSERT INTO tiles SELECT 0, (size + COUNT) / 256,
  decode(repeat(md5(size::text), 2 * ((size + COUNT) % 256)::integer), 'hex') FROM head
  ON CONFLICT (level, idx) DO UPDATE SET hashes = excluded.hashes;
INSERT INTO requests SELECT
  left(id, 12) || left(md5('COUNT RUN ' || ((size / COUNT - of.old) * COUNT / 2 + n)), 20),
  created, changed, key, (array['signing', 'signed'])[1 + of.old], md5(n::text), rule,
  'sha256:' || md5(n::text) || md5(size::text), repository, body, CASE of.old WHEN 1 THEN signature END
  FROM head, sample, (VALUES (0), (1)) AS of(old), generate_series(0, COUNT / 2 - 1) n
  ON CONFLICT (id) DO UPDATE SET changed = excluded.changed, state = excluded.state, rule = excluded.rule,
    body = excluded.body, signature = excluded.signature;
UPDATE head SET size = size + COUNT, seal = sha256('seal'), version = version + 0;
SELECT pg_notify('hsm_broker_log', '');
COMMIT;
\endpipeline
`

var perSecond = regexp.MustCompile(`tps = ([0-9.]+)`)

// copied is the database that pgbench writes to: brokers trust no log but their own.
const copied = "copied"

// copy copies the database while no broker runs.
func (d *database) copy() {
	d.server.SQL(d.f, "postgres", "CREATE DATABASE "+copied+" TEMPLATE "+d.name)
	d.server.SQL(d.f, copied, `CREATE TABLE sample AS SELECT requests.*, array(SELECT entry FROM entries
		ORDER BY idx DESC LIMIT 2) AS entries FROM requests WHERE state = 'signed' LIMIT 1`)
}

// alone returns how many turns of so many entries, an even number, the server commits a second without a broker.
func (d *database) alone(entries int) float64 {
	script := filepath.Join(d.f.TempDir(), "transaction.sql")
	write(d.f, script, strings.NewReplacer("COUNT", strconv.Itoa(entries), "RUN", rand.Text()).Replace(transaction))
	output := softhsmtest.Run(d.f, filepath.Join(softhsmtest.PostgresPrograms(), "pgbench"), "--no-vacuum",
		"--protocol=extended", "--client=4", "--time=4", "--file="+script, "--host="+d.server.Dir,
		fmt.Sprintf("--port=%d", d.server.Port), "--username=postgres", copied)
	found := perSecond.FindStringSubmatch(output)
	if found == nil {
		d.f.Fatal(output)
	}
	n, err := strconv.ParseFloat(found[1], 64)
	check(d.f, err)
	return n
}
