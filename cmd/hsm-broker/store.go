package main

import (
	"context"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/postgres"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
)

// openStore opens the store that a config file names, and makes its tables if it is new. The caller closes it.
func openStore(ctx context.Context, f *brokerfile.File) (store.Store, error) {
	if !f.Shared() {
		return sqlite.Open(ctx, f.StorePath())
	}
	pool, err := postgres.Connect(ctx, f.Store, f.StorePassword)
	if err != nil {
		return nil, err
	}
	s, err := postgres.Open(ctx, pool)
	if err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

// replicaOf returns what a broker is among those that share its store, and nil if none does.
func replicaOf(f *brokerfile.File, s store.Store) (*broker.Replica, error) {
	shared, is := s.(store.Shared)
	if !is {
		return nil, nil
	}
	key, err := f.ReplicasKey()
	if err != nil {
		return nil, err
	}
	return &broker.Replica{Store: shared, Key: key, Name: f.ReplicaName(), Version: version}, nil
}

// refuseShared fails for a store on PostgreSQL: its own tools copy it.
func refuseShared(f *brokerfile.File, do string) error {
	if !f.Shared() {
		return nil
	}
	return failure.New(failure.Unsupported, "cannot %s the store: it is on PostgreSQL", do).
		WithHint("use pg_dump and pg_restore, or pg_basebackup: see 'Backup and restore' in the page on replicas")
}

// keepOf returns the time before which requests are not kept any more, at a time; nil if they are kept for ever.
func keepOf(f *brokerfile.File) func(now time.Time) time.Time {
	if f.Keep == (brokerfile.Period{}) {
		return nil
	}
	return f.Keep.Before
}
