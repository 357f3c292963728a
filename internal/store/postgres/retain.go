package postgres

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/notation-hsm/notation-hsm/internal/store"
)

// partitioned are the tables with a partition for each month, by an ID that begins with the time of a request.
var partitioned = []partitionedTable{{"requests", "id"}, {"request_documents", "request"}}

type partitionedTable struct{ name, key string }

// The partitions of a table have its name and the month of their first ID: requests_202611. Each ends where the next
// one begins. The first one has the month 000000 and all IDs before the second. The last one, the tail, has all IDs of
// the future: an insert always finds a partition. IDs that do not begin with a time are in requests_other.
const (
	firstMonth = "000000"
	afterHex   = "g" // greater than every ID
)

// monthsAhead is how many months have a partition before they begin.
const monthsAhead = 3

// Retain deletes the requests and their documents of the months that ended before a time. It makes the partitions of
// the months ahead. It locks the tables for a moment.
func (s *Store) Retain(ctx context.Context, before time.Time) error {
	err := s.retain(ctx, before)
	for _, p := range partitioned {
		for deleted := int64(maxDeleted); err == nil && deleted == maxDeleted; {
			deleted, err = s.deleteFirst(ctx, p, before)
		}
	}
	if err != nil {
		return s.explain("delete old requests from", err)
	}
	return nil
}

// retain makes and drops partitions.
func (s *Store) retain(ctx context.Context, before time.Time) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	return pgx.BeginTxFunc(ctx, s.pool, readCommitted, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT set_config('lock_timeout', $1, true)", milliseconds(s.limits.lock)); err != nil {
			return err
		}
		now, err := clock(ctx, tx)
		if err == nil {
			err = extend(ctx, tx, now)
		}
		if err != nil {
			return err
		}
		return drop(ctx, tx, before)
	})
}

// maxDeleted is the largest number of rows that are deleted at once.
const maxDeleted = 10_000

// deleteFirst deletes rows of the first partition, which has requests that are older than the database: those of a
// database that was migrated. It returns their number.
func (s *Store) deleteFirst(ctx context.Context, p partitionedTable, before time.Time) (int64, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	tag, err := s.pool.Exec(ctx, fmt.Sprintf(`DELETE FROM %[1]s_%[2]s WHERE ctid = ANY (array(
		SELECT ctid FROM %[1]s_%[2]s WHERE %[3]s < $1 LIMIT $2::integer))`, p.name, firstMonth, p.key),
		store.FirstID(before), maxDeleted)
	if codeOf(err) == undefinedTable { // it was dropped
		return 0, nil
	}
	return tag.RowsAffected(), err
}

// months returns the months of the partitions of a table, in order.
func months(ctx context.Context, tx pgx.Tx, table string) ([]string, error) {
	rows, err := tx.Query(ctx, `SELECT substr(relname, length($1) + 2) FROM pg_inherits JOIN pg_class ON oid = inhrelid
		WHERE inhparent = $1::regclass AND relname ~ '_[0-9]{6}$' ORDER BY relname COLLATE "C"`, table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// monthOf returns the month of a time, and boundOf the smallest ID of a month.
func monthOf(at time.Time) string { return at.UTC().Format("200601") }

func boundOf(month string) (string, error) {
	if month == firstMonth {
		return "MINVALUE", nil
	}
	begin, err := time.Parse("200601", month)
	if err != nil {
		return "", err
	}
	return "'" + store.FirstID(begin) + "'", nil
}

// next returns the month after another one.
func next(month string) (string, error) {
	begin, err := time.Parse("200601", month)
	if err != nil {
		return "", err
	}
	return monthOf(begin.AddDate(0, 1, 0)), nil
}

// clock returns the time of the server.
func clock(ctx context.Context, tx pgx.Tx) (now time.Time, err error) {
	return now, tx.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&now)
}

// monthAfter returns the month after the one in which a request was made, by its ID, and whether it is known and before
// the year 10000.
func monthAfter(id string) (string, bool) {
	at, err := strconv.ParseInt(id[:min(12, len(id))], 16, 64)
	if err != nil {
		return "", false
	}
	month, err := next(monthOf(time.UnixMilli(at)))
	return month, err == nil
}

// extend makes the partitions of the months ahead of a time.
func extend(ctx context.Context, tx pgx.Tx, now time.Time) error {
	this := monthOf(now)
	year, month, _ := now.UTC().Date()
	wanted := monthOf(time.Date(year, month+monthsAhead, 1, 0, 0, 0, 0, time.UTC))
	for _, p := range partitioned {
		existing, err := months(ctx, tx, p.name)
		if err != nil {
			return err
		}
		if len(existing) == 0 {
			if err := found(ctx, tx, p.name); err != nil {
				return err
			}
			existing = []string{firstMonth}
		}
		for tail := existing[len(existing)-1]; tail < wanted; {
			if tail, err = splitTail(ctx, tx, p, tail, this); err != nil || tail == "" {
				return err
			}
		}
	}
	return nil
}

// found makes the first partitions of a table.
func found(ctx context.Context, tx pgx.Tx, table string) error {
	for _, of := range []struct{ name, from, to string }{
		{firstMonth, "MINVALUE", "'" + afterHex + "'"}, {"other", "'" + afterHex + "'", "MAXVALUE"},
	} {
		_, err := tx.Exec(ctx, fmt.Sprintf("CREATE TABLE %[1]s_%[2]s PARTITION OF %[1]s FOR VALUES FROM (%[3]s) TO (%[4]s)",
			table, of.name, of.from, of.to))
		if err != nil {
			return err
		}
	}
	return nil
}

// splitTail ends the last partition of a table at a month, and makes another one from there. No row is moved: the month
// is one after those of all rows. It returns the month, or "" if a row has a time that makes no sense.
func splitTail(ctx context.Context, tx pgx.Tx, p partitionedTable, tail, this string) (string, error) {
	table := p.name
	if _, err := tx.Exec(ctx, "LOCK TABLE "+table+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		return "", err
	}
	var newest *string
	err := tx.QueryRow(ctx, fmt.Sprintf("SELECT max(%s) FROM %s_%s", p.key, table, tail)).Scan(&newest)
	if err != nil {
		return "", err
	}
	end := this // of the first partition, which has what is older than the database
	if tail != firstMonth {
		if end, err = next(tail); err != nil {
			return "", err
		}
	}
	if newest != nil {
		after, known := monthAfter(*newest)
		if !known {
			return "", nil
		}
		end = max(end, after)
	}
	from, err := boundOf(tail)
	if err != nil {
		return "", err
	}
	to, err := boundOf(end)
	if err != nil {
		return "", err
	}
	for _, text := range []string{
		fmt.Sprintf("ALTER TABLE %[1]s DETACH PARTITION %[1]s_%[2]s", table, tail),
		fmt.Sprintf("ALTER TABLE %[1]s ATTACH PARTITION %[1]s_%[2]s FOR VALUES FROM (%[3]s) TO (%[4]s)", table, tail,
			from, to),
		fmt.Sprintf("CREATE TABLE %[1]s_%[2]s PARTITION OF %[1]s FOR VALUES FROM (%[3]s) TO ('%[4]s')", table, end, to,
			afterHex),
	} {
		if _, err := tx.Exec(ctx, text); err != nil {
			return "", err
		}
	}
	return end, nil
}

// drop drops the partitions that end before a time. The tail stays.
func drop(ctx context.Context, tx pgx.Tx, before time.Time) error {
	last := monthOf(before)
	for _, p := range partitioned {
		existing, err := months(ctx, tx, p.name)
		if err != nil {
			return err
		}
		for i, month := range existing {
			if i+1 == len(existing) || existing[i+1] > last {
				break
			}
			if _, err := tx.Exec(ctx, fmt.Sprintf("DROP TABLE %s_%s", p.name, month)); err != nil {
				return err
			}
		}
	}
	return nil
}
