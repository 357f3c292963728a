package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/notation-hsm/notation-hsm/internal/agent"
	"github.com/notation-hsm/notation-hsm/internal/broker/logins"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/pin"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

const clearPIN = "hsm-broker pin clear"

// refusals are the PINs that the tokens of a broker have refused: in files beside a SQLite database, and in the store
// that replicas share.
type refusals interface {
	Guard(ctx context.Context, l pin.Login) (ended func(*failure.Error), err error)
	List(ctx context.Context) ([]brokerapi.RefusedPIN, error)
	Clear(ctx context.Context, refused brokerapi.RefusedPIN) error
	// Follow calls cleared when a PIN was cleared that this process remembers as refused, until ctx ends.
	Follow(ctx context.Context, cleared func())
	Close() error
}

// localRefusals are those of a broker that has its store for itself.
type localRefusals struct{ *agent.Refusals }

func (r localRefusals) List(context.Context) ([]brokerapi.RefusedPIN, error) {
	return r.Refusals.List()
}

func (r localRefusals) Clear(_ context.Context, refused brokerapi.RefusedPIN) error {
	return r.Refusals.Clear(refused)
}

// Follow does nothing: a PIN that was cleared is tried by the next process.
func (localRefusals) Follow(context.Context, func()) {}

func (localRefusals) Close() error { return nil }

// refusalsBeside returns the refusals in the files beside a SQLite database.
func refusalsBeside(database string) localRefusals {
	return localRefusals{agent.RefusalsIn(filepath.Join(filepath.Dir(database), "pins"), clearPIN)}
}

// refusalsIn returns the refusals of a broker whose store is open.
func refusalsIn(f *brokerfile.File, s store.Store) refusals {
	if shared, is := s.(store.Logins); is {
		return logins.New(shared, f.ReplicaName())
	}
	return refusalsBeside(f.StorePath())
}

// openedRefusals are refusals with a store of their own.
type openedRefusals struct {
	refusals
	store store.Store
}

// Close waits until they are complete, and closes the store.
func (r openedRefusals) Close() error { return errors.Join(r.refusals.Close(), r.store.Close()) }

// openRefusals returns the refusals of a broker. It opens a store that replicas share, which the caller closes with
// them.
func openRefusals(ctx context.Context, f *brokerfile.File) (refusals, error) {
	if !f.Shared() {
		return refusalsBeside(f.StorePath()), nil
	}
	s, err := openStore(ctx, f)
	if err != nil {
		return nil, err
	}
	return openedRefusals{refusalsIn(f, s), s}, nil
}
