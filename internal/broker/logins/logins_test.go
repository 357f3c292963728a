package logins

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/pin"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/postgres"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

func TestMain(m *testing.M) {
	backends.ServeWorker()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	if url := os.Getenv(loginVariable); url != "" {
		fmt.Println(loginFor(url))
		return
	}
	os.Exit(m.Run())
}

var (
	signing = pin.Login{Module: "/lib/module.so", Token: "pkcs11:token=signing;manufacturer=m;model=1;serial=1",
		Name: "signing", Source: "env:PIN"}
	wrong = func() *failure.Error {
		f := failure.New(failure.Denied, "cannot log in to token %q", "signing")
		f.CKR = "CKR_PIN_INCORRECT"
		return f
	}()
)

// open opens a database.
func open(ctx context.Context, url string) (*postgres.Store, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return postgres.Open(ctx, pool)
}

// replica returns the refusals of a replica on a database.
func replica(t *testing.T, url, name string) *Refusals {
	t.Helper()
	s, err := open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r := New(s, name)
	t.Cleanup(func() { r.Close() })
	return r
}

// until waits until a condition holds.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 3000 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: not within 30 s", what)
}

// log in to a token: with the right PIN, or with a wrong one.
func (r *Refusals) try(ctx context.Context, l pin.Login, refusal *failure.Error) error {
	ended, err := r.Guard(ctx, l)
	if err != nil {
		return err
	}
	ended(refusal)
	r.group.Wait()
	return nil
}

// TestRefused has a wrong PIN that one replica has met stop all of them until it is cleared, whatever path the module
// has, and no login to another token.
func TestRefused(t *testing.T) {
	t.Parallel()
	url := softhsmtest.Postgres(t).Database(t)
	first, second := replica(t, url, "broker-1"), replica(t, url, "broker-2")
	if err := first.try(t.Context(), signing, nil); err != nil {
		t.Fatal(err)
	}
	if all, err := second.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("after a right PIN: %+v, %v", all, err)
	}
	if err := first.try(t.Context(), signing, wrong); err != nil {
		t.Fatal(err)
	}
	elsewhere := pin.Login{Module: "/opt/vendor/module.so", Token: "pkcs11:token=signing;manufacturer=m;model=2;serial=1",
		Name: "renamed", Source: "file:/pin"}
	for _, r := range []*Refusals{first, second, replica(t, url, "broker-3")} {
		for _, l := range []pin.Login{signing, elsewhere} {
			err := r.try(t.Context(), l, nil)
			if f := failure.From(err); !failure.Is(err, failure.Denied) || f.CKR != "CKR_PIN_INCORRECT" ||
				!strings.Contains(f.What, "on broker-1") || !strings.Contains(f.Hint, "pin clear") {
				t.Errorf("%+v: %v", l, err)
			}
		}
	}
	for _, token := range []string{"pkcs11:token=signing;manufacturer=m;serial=2",
		"pkcs11:token=other;manufacturer=m;serial=1",
		"pkcs11:token=signing;manufacturer=n;serial=1", "pkcs11:token=signing;manufacturer=m"} {
		if err := second.try(t.Context(), pin.Login{Token: token}, nil); err != nil {
			t.Errorf("another token %s: %v", token, err)
		}
	}
	all, err := second.List(t.Context())
	if err != nil || len(all) != 1 || all[0].Name != "signing" || all[0].Token != signing.Token || all[0].Time.IsZero() {
		t.Fatalf("%+v, %v", all, err)
	}
	for range 2 {
		if err := second.Clear(t.Context(), all[0]); err != nil {
			t.Error(err)
		}
	}
	for _, r := range []*Refusals{first, second} {
		if err := r.try(t.Context(), signing, nil); err != nil {
			t.Errorf("after it was cleared: %v", err)
		}
	}
	if err := first.Add(t.Context(), all[0]); err != nil {
		t.Fatal(err)
	}
	if err := second.try(t.Context(), signing, nil); !failure.Is(err, failure.Denied) {
		t.Errorf("a PIN that was refused elsewhere: %v", err)
	}
}

// TestOneInFlight lets one login of a token be in flight, and has the others wait.
func TestOneInFlight(t *testing.T) {
	t.Parallel()
	url := softhsmtest.Postgres(t).Database(t)
	var inFlight, most, made atomic.Int32
	var group sync.WaitGroup
	for i := range 4 {
		r := replica(t, url, fmt.Sprint("broker-", i))
		for range 2 {
			group.Go(func() {
				for range 3 {
					ended, err := r.Guard(t.Context(), signing)
					if err != nil {
						t.Error(err)
						return
					}
					now := inFlight.Add(1)
					most.Store(max(most.Load(), now))
					made.Add(1)
					time.Sleep(time.Millisecond)
					inFlight.Add(-1)
					ended(nil)
				}
			})
		}
	}
	if group.Wait(); most.Load() != 1 || made.Load() != 24 {
		t.Errorf("%d logins, %d at once", made.Load(), most.Load())
	}
	holder, waiting := replica(t, url, "broker-1"), replica(t, url, "broker-2")
	ended, err := holder.Guard(t.Context(), signing)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := waiting.Guard(ctx, signing); !failure.Is(err, failure.Timeout) {
		t.Errorf("while a login is in flight: %v", err)
	}
	all, err := waiting.List(t.Context())
	if err != nil || len(all) != 0 {
		t.Errorf("while a login is in flight: %+v, %v", all, err)
	}
	if err := waiting.Clear(t.Context(), recordOf(signing)); !failure.Is(err, failure.Conflict) {
		t.Errorf("cleared while a login is in flight: %v", err)
	}
	ended(wrong)
	until(t, "the refusal", func() bool { return failure.Is(waiting.try(t.Context(), signing, nil), failure.Denied) })
}

// TestKept keeps a login in flight for as long as it takes.
func TestKept(t *testing.T) {
	t.Parallel()
	url := softhsmtest.Postgres(t).Database(t)
	holder := replica(t, url, "broker-1")
	ended, err := holder.Guard(t.Context(), signing)
	if err != nil {
		t.Fatal(err)
	}
	defer ended(nil)
	db, err := open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	left := func() (seconds float64) { return untilOf(t, url) }
	first := left()
	until(t, "a later end of the lease", func() bool { return left() > first })
}

// recordOf returns what is kept of a login.
func recordOf(l pin.Login) brokerapi.RefusedPIN {
	return brokerapi.RefusedPIN{Module: l.Module, Token: l.Token, Name: l.Name}
}

// untilOf returns until when the only login of a database is in flight, in Unix time.
func untilOf(t *testing.T, url string) (seconds float64) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	if err := c.QueryRow(t.Context(), "SELECT extract(epoch FROM until)::float8 FROM logins").Scan(&seconds); err != nil {
		t.Fatal(err)
	}
	return seconds
}

// loginVariable names a database for a process that begins a login and waits to be killed.
const loginVariable = "LOGIN_WITH_DATABASE"

func loginFor(url string) error {
	s, err := open(context.Background(), url)
	if err == nil {
		_, err = New(s, "broker-1").Guard(context.Background(), signing)
	}
	if err == nil {
		fmt.Println("begun")
		select {}
	}
	return err
}

// TestKilled takes a login whose process was killed for one that was refused, since nobody knows, and waits until it is
// known to be gone.
func TestKilled(t *testing.T) {
	t.Parallel()
	url := softhsmtest.Postgres(t).Database(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), loginVariable+"="+url)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said string
	if _, err := fmt.Fscanln(out, &said); err != nil || said != "begun" {
		t.Fatalf("%q, %v", said, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	other := replica(t, url, "broker-2")
	if err := other.try(t.Context(), signing, nil); !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(),
		unfinished) {
		t.Errorf("after the process was killed: %v", err)
	}
	if err := other.Clear(t.Context(), recordOf(signing)); err != nil {
		t.Error(err)
	}
	if err := other.try(t.Context(), signing, nil); err != nil {
		t.Errorf("after it was cleared: %v", err)
	}
}

// away is a store that is not reached while it is told so.
type away struct {
	kept
	is atomic.Bool
}

type kept = store.Logins

var errAway = failure.New(failure.Unavailable, "cannot write to the database").WithHint("check the database")

func (a *away) BeginLogin(ctx context.Context, l store.Login) (*store.Login, error) {
	before, err := a.kept.BeginLogin(ctx, l) // whose answer gets lost
	if a.is.Load() {
		return nil, errAway
	}
	return before, err
}

func (a *away) EndLogin(ctx context.Context, l store.Login) error {
	if a.is.Load() {
		return errAway
	}
	return a.kept.EndLogin(ctx, l)
}

// TestAway logs in to no token while the database is not reached, and goes on when it is: nobody has to clear anything.
func TestAway(t *testing.T) {
	t.Parallel()
	url := softhsmtest.Postgres(t).Database(t)
	r := replica(t, url, "broker-1")
	cut := &away{kept: r.store}
	r.store = cut
	ended, err := r.Guard(t.Context(), signing)
	if err != nil {
		t.Fatal(err)
	}
	cut.is.Store(true)
	ended(nil)
	other := signing
	other.Token = "pkcs11:token=other;serial=7"
	for _, l := range []pin.Login{signing, other} {
		for range 10 {
			var err error
			until(t, "an answer", func() bool { // the first try to complete the record has ended
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				_, err = r.Guard(ctx, l)
				return !failure.Is(err, failure.Timeout)
			})
			if f := failure.From(err); !failure.Is(err, failure.Unavailable) || f.Hint != errAway.Hint ||
				!strings.Contains(f.What, "its PIN is not tried") {
				t.Errorf("%s: %v", l.Token, err)
			}
		}
	}
	r.mu.Lock()
	pending := len(r.pending)
	r.mu.Unlock()
	if pending != 2 {
		t.Errorf("%d records are to be completed", pending)
	}
	cut.is.Store(false)
	for _, l := range []pin.Login{signing, other} {
		until(t, "the database is reached again", func() bool { return r.try(t.Context(), l, nil) == nil })
	}
}
