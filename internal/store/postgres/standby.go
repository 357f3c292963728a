package postgres

import (
	"context"
	"regexp"
	"strconv"
)

// Standby says whether what is committed is durable on another server too.
type Standby int

// The states of a synchronous standby.
const (
	NoStandby      Standby = iota // commits wait for none: what was confirmed last may get lost with the server
	StandbyThere                  // commits wait for one, which is connected
	StandbyMissing                // commits wait for one that is not connected
	StandbyUnknown                // commits wait for one; the role may not see whether it is connected
)

// String returns the state as metrics and readiness show it.
func (s Standby) String() string { return []string{"none", "there", "missing", "unknown"}[s] }

// Standby returns whether commits wait for a synchronous standby, and whether it is there.
func (s *Store) Standby(ctx context.Context) (Standby, error) {
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
		return StandbyUnknown, s.explain("read", err)
	case names == "":
		return NoStandby, nil
	case !sees:
		return StandbyUnknown, nil
	case connected < wanted(names):
		return StandbyMissing, nil
	}
	return StandbyThere, nil
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
