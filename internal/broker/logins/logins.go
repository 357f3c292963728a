// Package logins keeps in the store of a broker's replicas which tokens have refused a PIN: a wrong PIN that one of
// them has met stops all of them, and one of them at a time logs in to a token.
package logins

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/pin"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Refusals guards the PINs of tokens for one replica. The record of a login is written before it, and removed after one
// that was not refused: so a replica that ends during a login leaves it, too.
type Refusals struct {
	store   store.Logins
	replica string // name, for people
	running context.Context
	stop    context.CancelFunc
	group   sync.WaitGroup // records that are being completed

	mu      sync.Mutex
	pending map[[32]byte]error    // tokens of these records, and why they could not be completed so far
	met     map[[32]byte][16]byte // logins that this process has seen refused, by token
}

// record is what is kept of a login.
type record struct {
	brokerapi.RefusedPIN
	Replica string `json:"replica"`
}

const (
	// unfinished is the reason of a record until its login has ended.
	unfinished = "the broker ended or lost the database during a login"
	clearHint  = "check the PIN with the vendor's tool, put the right one into its source on each machine, then run " +
		"'hsm-broker pin clear'"
	// pause is how long Guard waits between two looks at the login of another. One call of a token waits at a time.
	pause = 200 * time.Millisecond
	// keepEvery is how often a login in flight is kept.
	keepEvery = store.LoginLease / 5
	// lastTries is how long Close tries to complete records.
	lastTries = 10 * time.Second
	// followEvery is how often Follow asks whether a PIN was cleared.
	followEvery = 5 * time.Second
)

// New returns the refusals in a store, for a replica with a name for people.
func New(s store.Logins, replica string) *Refusals {
	running, stop := context.WithCancel(context.Background())
	return &Refusals{store: s, replica: replica, running: running, stop: stop, pending: map[[32]byte]error{},
		met: map[[32]byte][16]byte{}}
}

// Close waits until the records of logins that have ended are complete, 10 s at most.
func (r *Refusals) Close() error {
	timer := time.AfterFunc(lastTries, r.stop)
	r.group.Wait()
	timer.Stop()
	r.stop()
	return nil
}

// name returns the name of a token, which is the same on all machines: by its label, serial number and manufacturer,
// as its module describes it. The path of the module does not count, since the same library has another one on another
// machine, nor the model, which often has the version of a driver. Without a serial number, tokens of one description
// are taken for one: that costs an operator a 'pin clear' at most, and the contrary a token its last tries.
func name(token string) [32]byte {
	described := token
	if u, err := config.ParseURI(token); err == nil && u.Serial != "" {
		described = fmt.Sprintf("%q %q %q", u.Token, u.Serial, u.Manufacturer)
	}
	return sha256.Sum256([]byte("token " + described))
}

// Guard is a pin.Guard. It waits while another login to the token is in flight, and fails with Denied if the token has
// refused a PIN, and with Unavailable if the store is not reached: then nobody logs in.
func (r *Refusals) Guard(ctx context.Context, l pin.Login) (func(*failure.Error), error) {
	kept := record{Replica: r.replica, RefusedPIN: brokerapi.RefusedPIN{Module: l.Module, Token: l.Token, Name: l.Name,
		Time: time.Now().UTC(), Reason: unfinished}}
	login := store.Login{Token: name(l.Token), Record: kept.encode()}
	_, _ = rand.Read(login.ID[:]) // never fails
	for {
		begun, err := r.begin(ctx, login, l.Name)
		if err != nil {
			return nil, err
		}
		if begun {
			return r.keep(login, kept), nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, failure.New(failure.Timeout, "another login to token %q is in flight", l.Name).WithHint("run it again")
		}
	}
}

// begin keeps the record of a login, unless another one is in flight.
func (r *Refusals) begin(ctx context.Context, login store.Login, token string) (begun bool, err error) {
	r.mu.Lock()
	err, pending := r.pending[login.Token]
	r.mu.Unlock()
	if pending { // the record of the last login is still that of before it
		if err != nil {
			err = unrecorded(ctx, token, err)
		}
		return false, err
	}
	before, err := r.store.BeginLogin(ctx, login)
	switch {
	case err != nil:
		r.complete(login, r.store.EndLogin) // it may have been kept
		return false, unrecorded(ctx, token, err)
	case before != nil && !before.InFlight:
		return false, refused(token, before)
	}
	return before == nil, nil
}

// unrecorded returns the failure of a login that could not be recorded.
func unrecorded(ctx context.Context, token string, err error) error {
	if ctx.Err() != nil {
		return failure.New(failure.Timeout, "cannot record the login to token %q in time: %w", token, err).
			WithHint("run it again")
	}
	f := failure.From(err)
	return failure.New(f.Kind, "cannot record the login to token %q, so its PIN is not tried: %w", token, f).
		WithHint(f.Hint)
}

// refused returns the failure of a login to a token of which there is a record.
func refused(token string, before *store.Login) error {
	kept, err := decode(before)
	if err != nil { // what says nothing forbids the PIN, too
		return failure.New(failure.Denied, "the PIN of %q is not tried again: %w", token, err).WithHint(clearHint)
	}
	f := failure.New(failure.Denied, "the PIN of %q is not tried again: %s (on %s, %s)", token, kept.Reason, kept.Replica,
		kept.Time.Local().Format(time.DateTime)).WithHint(clearHint)
	f.CKR = kept.CKR
	return f
}

// keep keeps a login in flight, and returns the function that ends it. That one does not wait for the store.
func (r *Refusals) keep(login store.Login, kept record) func(*failure.Error) {
	ctx, stop := context.WithCancel(r.running)
	go func() {
		tick := time.NewTicker(keepEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := r.store.KeepLogin(ctx, login); err != nil && ctx.Err() == nil {
					slog.Warn("cannot tell other replicas that a login goes on", "token", kept.Name, "error", err)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return func(refusal *failure.Error) {
		stop()
		if refusal == nil {
			r.complete(login, r.store.EndLogin)
			return
		}
		kept.Reason, kept.CKR, kept.Time = refusal.What, refusal.CKR, time.Now().UTC()
		login.Record = kept.encode()
		r.mu.Lock()
		r.met[login.Token] = login.ID
		r.mu.Unlock()
		r.complete(login, r.store.RefuseLogin)
	}
}

// Follow calls cleared whenever a PIN was cleared that a token has refused in this process, which remembers that, too,
// until ctx ends.
func (r *Refusals) Follow(ctx context.Context, cleared func()) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if some, err := r.forget(ctx); err != nil && ctx.Err() == nil {
			slog.Warn("cannot read whether PINs were cleared", "error", err)
		} else if some {
			cleared()
		}
	}
}

// forget forgets refusals of this process that were cleared, and reports whether there were some.
func (r *Refusals) forget(ctx context.Context) (some bool, err error) {
	r.mu.Lock()
	met := maps.Clone(r.met)
	maps.DeleteFunc(met, func(token [32]byte, _ [16]byte) bool { // whose record is that of before the login
		_, pending := r.pending[token]
		return pending
	})
	r.mu.Unlock()
	if len(met) == 0 {
		return false, nil
	}
	kept, err := r.store.Logins(ctx)
	if err != nil {
		return false, err
	}
	for _, l := range kept {
		if met[l.Token] == l.ID {
			delete(met, l.Token)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for token, id := range met {
		if r.met[token] == id {
			delete(r.met, token)
		}
	}
	return len(met) > 0, nil
}

// complete completes the record of a login that has ended, until that succeeds. Until then, the record of before the
// login forbids others to log in.
func (r *Refusals) complete(login store.Login, how func(context.Context, store.Login) error) {
	note := func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.pending[login.Token] = err
	}
	note(nil)
	r.group.Go(func() {
		for wait := 50 * time.Millisecond; ; wait = min(2*wait, store.LoginLease) {
			ctx, cancel := context.WithTimeout(r.running, store.LoginLease)
			err := how(ctx, login)
			cancel()
			if err == nil {
				r.mu.Lock()
				defer r.mu.Unlock()
				delete(r.pending, login.Token)
				return
			}
			note(err)
			slog.Error("cannot keep how a login ended", "error", err)
			select {
			case <-time.After(wait):
			case <-r.running.Done():
				return
			}
		}
	})
}

// List returns all PINs that must not be tried again.
func (r *Refusals) List(ctx context.Context) (all []brokerapi.RefusedPIN, err error) {
	logins, err := r.store.Logins(ctx)
	if err != nil {
		return nil, err
	}
	for i := range logins {
		if logins[i].InFlight {
			continue
		}
		kept, err := decode(&logins[i])
		if err != nil {
			return nil, err
		}
		all = append(all, kept.RefusedPIN)
	}
	return all, nil
}

// Clear lets the PIN of a token be tried again. It fails with Conflict while somebody logs in to the token.
func (r *Refusals) Clear(ctx context.Context, refused brokerapi.RefusedPIN) error {
	return r.store.ClearLogin(ctx, name(refused.Token))
}

// Add keeps a PIN that must not be tried again, which was kept elsewhere.
func (r *Refusals) Add(ctx context.Context, refused brokerapi.RefusedPIN) error {
	login := store.Login{Token: name(refused.Token), Record: record{refused, r.replica}.encode()}
	_, _ = rand.Read(login.ID[:]) // never fails
	return r.store.RefuseLogin(ctx, login)
}

func (k record) encode() []byte {
	data, err := json.Marshal(k)
	if err != nil {
		panic(err) // strings and a time of this century do not fail
	}
	return data
}

func decode(l *store.Login) (kept record, err error) {
	if err := json.Unmarshal(l.Record, &kept); err != nil {
		return kept, failure.New(failure.Internal, "cannot read which PIN was refused: %w", err).
			WithHint("was it written by a newer version?")
	}
	return kept, nil
}
