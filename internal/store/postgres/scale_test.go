package postgres

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/storetest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestScale has the calls of a store read as little of many requests as of few: rows and blocks are counted. SCALE is
// how many requests there are.
func TestScale(t *testing.T) {
	t.Parallel()
	count := 200_000
	if many, err := strconv.Atoi(os.Getenv("SCALE")); err == nil {
		count = many
	}
	few, many := newScale(t, 10_000), newScale(t, count)
	for _, c := range calls() {
		a, b := few.call(c), many.call(c)
		t.Logf("%s reads %s of 10000 requests, and %s of %d", c.name, a, b, count)
		if b.rows > c.rows || b.blocks > c.blocks {
			t.Errorf("%s reads %s of %d requests, more than %d rows and %d blocks", c.name, b, count, c.rows, c.blocks)
		}
	}
	lists := []*scale{many}
	if os.Getenv("SCALE") != "" { // to be compared
		lists = []*scale{few, many}
	}
	for _, s := range lists {
		var most cost
		sum := storetest.Scale(t, func(q store.Query) int64 {
			c := s.call(call{name: fmt.Sprintf("%+v", q), do: func(ctx context.Context, s *Store) error {
				_, err := s.Requests(ctx, q)
				return err
			}})
			most.rows, most.blocks = max(most.rows, c.rows), max(most.blocks, c.blocks)
			return c.rows
		}, store.MaxLooked+2*storetest.Months)
		t.Logf("%d lists read %d rows of %d requests, and each %s at most", len(storetest.Lists()), sum, s.count, &most)
		if most.blocks > store.MaxLooked+perPartition*partitions {
			t.Errorf("a list reads %s of %d requests", &most, s.count)
		}
	}
}

const (
	// perPartition is how many blocks it takes to find out that a partition has none of what is looked for.
	perPartition = 8
	// partitions are those of a table: of each month, of what is before them, after them and between no months.
	partitions = storetest.Months + 3
)

// call is one of the store, and how much it may read.
type call struct {
	name         string
	rows, blocks int64
	do           func(context.Context, *Store) error
}

// calls are those that are no lists.
func calls() []call {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	page := func(ctx context.Context, s *Store, channel string) error {
		_, err := s.Notices(ctx, channel, at.AddDate(1, 0, 0), 50)
		return err
	}
	return []call{
		{"Size", 1, 4, func(ctx context.Context, s *Store) error { _, err := s.Size(ctx); return err }},
		{"Head", 16, 16, func(ctx context.Context, s *Store) error { _, err := s.Head(ctx); return err }},
		{"Request", 1, perPartition, func(ctx context.Context, s *Store) error {
			_, err := s.Request(ctx, storetest.ID(at, 1))
			return missing(err)
		}},
		{"Requests of 50 IDs", 50, 50 * perPartition, func(ctx context.Context, s *Store) error {
			q := store.Query{IDs: []string{}}
			for n := range 50 {
				q.IDs = append(q.IDs, storetest.ID(at, n))
			}
			_, err := s.Requests(ctx, q)
			return err
		}},
		{"Entries", pageSize, pageSize / 4, func(ctx context.Context, s *Store) error {
			return s.Entries(ctx, 500, 500+pageSize, func(int64, []byte) error { return nil })
		}},
		{"Tile", 1, perPartition, func(ctx context.Context, s *Store) error {
			_, err := s.Tile(ctx, 0, 3)
			return missing(err)
		}},
		{"Document", 2, perPartition * partitions, func(ctx context.Context, s *Store) error {
			_, err := s.Document(ctx, [32]byte{})
			return missing(err)
		}},
		{"Notices", 51, 51 + perPartition, func(ctx context.Context, s *Store) error { return page(ctx, s, "") }},
		{"Notices of a channel", 51, 51 + perPartition, func(ctx context.Context, s *Store) error {
			return page(ctx, s, "hook")
		}},
		{"Postpone", 1, 64, func(ctx context.Context, s *Store) error {
			return s.Postpone(ctx, "10", at, 1)
		}},
		{"Noticed", 2 * (maxForgotten + 1), 20 * maxForgotten, func(ctx context.Context, s *Store) error {
			return s.Noticed(ctx, "20", at.AddDate(0, 3, 0))
		}},
	}
}

func missing(err error) error {
	if failure.Is(err, failure.NotFound) {
		return nil
	}
	return err
}

// scale is a database with many requests.
type scale struct {
	*testing.T
	s        *Store
	count    int
	recorded recorder
}

// recorder keeps the statements of calls.
type recorder struct {
	queries []string
	args    [][]any
}

func (r *recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	r.queries, r.args = append(r.queries, d.SQL), append(r.args, d.Args)
	return ctx
}

func (*recorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (*recorder) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (r *recorder) TraceBatchQuery(_ context.Context, _ *pgx.Conn, d pgx.TraceBatchQueryData) {
	r.queries, r.args = append(r.queries, d.SQL), append(r.args, d.Args)
}

func (*recorder) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// newScale makes a database with requests of two years, as many entries of the log, and fewer documents and notices.
func newScale(t *testing.T, count int) *scale {
	t.Helper()
	s := &scale{T: t, count: count}
	var err error
	s.s, err = Open(t.Context(), tracedPool(t, softhsmtest.Postgres(t).Database(t), &s.recorded))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.s.Close() })
	s.months()
	of := func(n int) store.Request { return storetest.Row(n, count) }
	s.copy("requests", 1, []string{"id", "created", "changed", "key", "state", "requester", "rule", "digest", "repository",
		"body"}, func(n int) []any {
		r := of(n)
		return []any{r.ID, r.Created.UnixMilli(), r.Changed.UnixMilli(), r.Key, r.State, r.Requester, r.Rule, r.Digest,
			r.Repository, r.Body}
	})
	hash := func(n int) []byte { h := sha256.Sum256([]byte(strconv.Itoa(n))); return h[:] }
	s.copy("entries", 1, []string{"idx", "entry"}, func(n int) []any { return []any{int64(n), []byte("entry")} })
	s.copy("request_documents", 10, []string{"request", "sha256", "data"}, func(n int) []any {
		return []any{of(n).ID, hash(n), []byte("document")}
	})
	s.copy("documents", 100, []string{"sha256", "data"}, func(n int) []any { return []any{hash(n), []byte("document")} })
	s.copy("notices", 10, []string{"id", "channel", "recipient", "created", "due", "done", "attempts", "body"},
		func(n int) []any {
			at := of(n).Created.UnixMilli()
			switch {
			case n > count-1000:
				return []any{strconv.Itoa(n), "hook", "", at, at, nil, 0, []byte("waits")}
			case n < count/2: // of a channel that has not worked for long
				return []any{strconv.Itoa(n), "mail", "", at, at, nil, 0, []byte("waits")}
			}
			return []any{strconv.Itoa(n), "mail", "", at, nil, at, 1, []byte{}}
		})
	s.exec("UPDATE head SET size = $1", count)
	s.exec("ANALYZE")
	return s
}

// months makes the partitions of the months of the requests.
func (s *scale) months() {
	s.Helper()
	err := pgx.BeginTxFunc(s.Context(), s.s.pool, readCommitted, func(tx pgx.Tx) error {
		for _, p := range partitioned {
			existing, err := months(s.Context(), tx, p.name)
			if err != nil {
				return err
			}
			for _, name := range append(existing, "other") {
				if _, err := tx.Exec(s.Context(), "DROP TABLE "+p.name+"_"+name); err != nil {
					return err
				}
			}
		}
		first := storetest.Row(0, 1).Created
		for month := range storetest.Months {
			if err := extend(s.Context(), tx, first.AddDate(0, month, 0)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
}

// exec runs a statement.
func (s *scale) exec(query string, args ...any) {
	s.Helper()
	if _, err := s.s.pool.Exec(s.Context(), query, args...); err != nil {
		s.Fatal(query, err)
	}
}

// copy fills a table with a part of as many rows as there are requests.
func (s *scale) copy(table string, part int, columns []string, row func(n int) []any) {
	s.Helper()
	_, err := s.s.pool.CopyFrom(s.Context(), pgx.Identifier{table}, columns, pgx.CopyFromSlice(s.count/part,
		func(n int) ([]any, error) { return row(n * part), nil }))
	if err != nil {
		s.Fatal(table, err)
	}
}

// call makes a call and returns what its statements read when they are run once more.
func (s *scale) call(c call) *cost {
	s.Helper()
	s.recorded = recorder{}
	if err := c.do(s.Context(), s.s); err != nil {
		s.Fatalf("%s: %v", c.name, err)
	}
	statements, found := s.recorded, &cost{scans: map[string]int{}}
	if len(statements.queries) == 0 {
		s.Errorf("%s makes no statement", c.name)
	}
	err := pgx.BeginTxFunc(s.Context(), s.s.pool, readCommitted, func(tx pgx.Tx) error {
		for i, query := range statements.queries {
			if err := s.explain(tx, query, statements.args[i], found); err != nil {
				return fmt.Errorf("%s: %w", query, err)
			}
		}
		return errUndone
	})
	if !errors.Is(err, errUndone) {
		s.Fatal(err)
	}
	return found
}

// explain runs a statement, and adds what it reads.
func (s *scale) explain(tx pgx.Tx, query string, args []any, to *cost) error {
	var text []byte
	err := tx.QueryRow(s.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+query, args...).Scan(&text)
	if err != nil {
		return err
	}
	var plans []struct{ Plan plan }
	if err := json.Unmarshal(text, &plans); err != nil {
		return err
	}
	for _, p := range plans {
		to.blocks += p.Plan.Hit + p.Plan.Read
		to.add(&p.Plan)
	}
	return nil
}

var errUndone = errors.New("the transaction is undone")

// cost is what statements read.
type cost struct {
	rows, blocks int64
	scans        map[string]int // how often each index or table is looked into
}

func (c *cost) String() string {
	return fmt.Sprintf("%d rows in %d blocks %v", c.rows, c.blocks, c.scans)
}

// plan is a node of a plan, as EXPLAIN has it in JSON.
type plan struct {
	Type    string  `json:"Node Type"`
	Index   string  `json:"Index Name"`
	Table   string  `json:"Relation Name"`
	Rows    float64 `json:"Actual Rows"` // of each loop
	Loops   float64 `json:"Actual Loops"`
	Removed float64 `json:"Rows Removed by Filter"`
	Hit     int64   `json:"Shared Hit Blocks"` // with those of its plans
	Read    int64   `json:"Shared Read Blocks"`
	Plans   []plan  `json:"Plans"`
}

// month is the part of the name of an index or a table by which partitions differ.
var month = regexp.MustCompile(`_([0-9]{6}|other)`)

// add adds the rows that the scans of a plan read.
func (c *cost) add(p *plan) {
	if strings.Contains(p.Type, "Scan") && p.Type != "Subquery Scan" {
		c.rows += int64((p.Rows + p.Removed) * p.Loops)
		if p.Loops > 0 {
			c.scans[month.ReplaceAllString(cmp.Or(p.Index, p.Table), "")]++
		}
	}
	for i := range p.Plans {
		c.add(&p.Plans[i])
	}
}

// tracedPool connects to a database and traces what is sent there.
func tracedPool(t testing.TB, url string, tracer pgx.QueryTracer) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.MaxConns, config.ConnConfig.Tracer = 8, tracer
	p, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
