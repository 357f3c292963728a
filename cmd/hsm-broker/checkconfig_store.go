package main

import (
	"context"
	"os"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/store/postgres"
)

// shared looks at the files that a replica needs.
func (f *findings) shared(c *brokerfile.File) {
	if err := ownership.Check(c.Folder(), os.Geteuid()); err != nil && !failure.Is(err, failure.NotFound) {
		f.failed(f.file+": log.checkpoint-file", err)
	}
	if _, err := c.ReplicasKey(); err != nil {
		f.failed(f.file+": replicas.key", err)
	}
	if path := c.PasswordFile(); path != "" {
		if _, err := ownership.ReadSecret(path); err != nil {
			f.failed(f.file+": store-password", err)
		}
	}
}

// database connects to the database of replicas, and reports whether it could. It makes no tables. It returns true for
// SQLite.
func (f *findings) database(ctx context.Context, c *brokerfile.File) bool {
	if !c.Shared() {
		return true
	}
	where := f.file + ": store"
	pool, err := postgres.Connect(ctx, c.Store, c.StorePassword)
	if err != nil {
		f.failed(where, err)
		return false
	}
	defer pool.Close()
	found, err := postgres.Inspect(ctx, pool)
	if err != nil {
		f.failed(where, err)
		return false
	}
	if skew := time.Since(found.Now); skew.Abs() > broker.MaxClockSkew {
		f.mistake(where, "set the clocks of both machines right",
			"the clock of this machine differs from the database's by %s",
			skew.Round(time.Second))
	}
	if !found.Usable {
		f.mistake(where, "make the role the owner of the database", "its role cannot make tables")
	}
	if lacks := broker.LacksStandby(found.Standby); lacks != "" {
		f.warn(where, "%s", lacks)
	}
	return true
}
