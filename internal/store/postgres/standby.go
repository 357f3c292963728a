package postgres

import (
	"context"
	"regexp"
	"strconv"

	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Standby returns whether commits wait for a synchronous standby, and whether it is there.
func (s *Store) Standby(ctx context.Context) (store.Standby, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var names string
	var sees bool
	var connected int
	err := s.pool.QueryRow(ctx, `SELECT current_setting('synchronous_standby_names'),
		pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
		(SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum'))`).
		Scan(&names, &sees, &connected)
	switch {
	case err != nil:
		return store.StandbyUnknown, s.explain("read", err)
	case names == "":
		return store.NoStandby, nil
	case !sees:
		return store.StandbyUnknown, nil
	case connected < wanted(names):
		return store.StandbyMissing, nil
	}
	return store.StandbyThere, nil
}

var count = regexp.MustCompile(`(?i)^\s*(?:(?:FIRST|ANY)\s+)?(\d+)\s*\(`)

// wanted returns for how many standbys commits wait, of a value of synchronous_standby_names.
func wanted(names string) int {
	if found := count.FindStringSubmatch(names); found != nil {
		if n, err := strconv.Atoi(found[1]); err == nil {
			return n
		}
	}
	return 1
}
