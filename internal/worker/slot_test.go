package worker

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// An asking is a process that the test plays itself: it asks for PINs as it likes.
type asking struct {
	*process
	conn net.Conn
	pins *os.File
}

func newAsking(t *testing.T) *asking {
	t.Helper()
	conn, p := pipeProcess(t, New(keystoretest.New()))
	pair, err := socketPair(unix.SOCK_SEQPACKET)
	if err != nil {
		t.Fatal(err)
	}
	p.pins = pair[0]
	t.Cleanup(func() { pair[0].Close(); pair[1].Close() })
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	return &asking{p, conn, pair[1]}
}

// call makes a call and returns its number.
func (a *asking) call(ctx context.Context, t *testing.T, settings *config.Settings) (*call, uint64) {
	t.Helper()
	c := &call{kind: opInfo, ctx: ctx, owner: owner{settings: settings}, result: make(chan callResult, 1)}
	number, err := a.send(c, a.shared.out)
	if err != nil {
		t.Fatal(err)
	}
	a.next(t, number)
	return c, number
}

// next reads what the parent sends next, which belongs to a call, and reports whether it is a PIN.
func (a *asking) next(t *testing.T, number uint64) (got bool) {
	t.Helper()
	f, err := readFrame(a.conn)
	if err != nil || f.call != number {
		t.Fatalf("the parent sent %v: %v", f, err)
	}
	if f.kind != opGivePIN || len(f.body) > 0 {
		return false
	}
	secret, err := pin.Receive(a.pins.Read)
	if err != nil {
		t.Fatal(err)
	}
	secret.Clear()
	return true
}

// ask asks for the PIN of a token.
func (a *asking) ask(t *testing.T, number uint64, token string) {
	t.Helper()
	body := []byte(`{"Token":` + strconv.Quote(token) + `}`)
	if err := a.receive(frame{call: number, kind: msgWantPIN, body: body}); err != nil {
		t.Fatal(err)
	}
}

// logsIn fails unless a new call gets the PIN of a token.
func (a *asking) logsIn(t *testing.T, token string) {
	t.Helper()
	_, number := a.call(t.Context(), t, &config.Settings{PIN: "1234", Timeout: time.Hour})
	a.ask(t, number, token)
	if !a.next(t, number) {
		t.Error("no PIN")
	}
	_ = a.receive(frame{call: number, kind: msgAnswered, body: []byte("{}")})
}

// TestAnsweredWhileAsking has a call end, in each of three ways, while its second PIN is being read. The next login of
// the token is not held up.
func TestAnsweredWhileAsking(t *testing.T) {
	t.Parallel()
	for _, end := range []kind{msgAnswered, msgLoggedIn, opPing} {
		a := newAsking(t)
		a.logsIn(t, "one") // so that a lost login is no reason not to try the PIN again
		ctx, cancel := context.WithCancel(t.Context())
		c, number := a.call(ctx, t, &config.Settings{PIN: "1234", Timeout: time.Hour})
		a.ask(t, number, "one")
		if !a.next(t, number) {
			t.Error("no PIN")
		}
		reading := filepath.Join(t.TempDir(), "reading")
		script := filepath.Join(t.TempDir(), "script")
		text := ": >" + reading + "\nexec sleep 600\n"
		if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.owner.settings = &config.Settings{PINSource: "exec:/bin/sh " + script, Timeout: time.Hour}
		a.ask(t, number, "one")
		until(t, "the reading of the second PIN", func() bool { _, err := os.Stat(reading); return err == nil })
		if end == opPing {
			a.module.backend.pins.died(c)
		} else {
			_ = a.receive(frame{call: number, kind: end})
		}
		cancel()
		if a.next(t, number) {
			t.Error("a second PIN")
		}
		for range 3 {
			a.logsIn(t, "one")
		}
	}
}

// TestTwoTokens has one call ask for the PINs of two tokens. Neither is held up after it.
func TestTwoTokens(t *testing.T) {
	t.Parallel()
	a := newAsking(t)
	_, number := a.call(t.Context(), t, &config.Settings{PIN: "1234", Timeout: time.Hour})
	for _, token := range []string{"one", "two"} {
		a.ask(t, number, token)
		if !a.next(t, number) {
			t.Error("no PIN")
		}
	}
	_ = a.receive(frame{call: number, kind: msgAnswered, body: []byte("{}")})
	for _, token := range []string{"two", "three"} {
		a.logsIn(t, token)
	}
	a.module.backend.pins.mu.Lock()
	defer a.module.backend.pins.mu.Unlock()
	for id, one := range a.module.backend.pins.tokens {
		if len(one.slot) > 0 {
			t.Errorf("the login of %q has not ended", id)
		}
	}
}

// TestAskAgainAtOnce asks for the next PIN as soon as there is one.
func TestAskAgainAtOnce(t *testing.T) {
	t.Parallel()
	a := newAsking(t)
	for range 500 {
		_, number := a.call(t.Context(), t, &config.Settings{PIN: "1234", Timeout: time.Hour})
		for range maxPINs {
			a.ask(t, number, "one")
			if !a.next(t, number) {
				t.Error("no PIN")
			}
		}
		_ = a.receive(frame{call: number, kind: msgAnswered, body: []byte("{}")})
	}
}

// TestUnannouncedPIN ends a process that has a PIN which could not be announced.
func TestUnannouncedPIN(t *testing.T) {
	t.Parallel()
	a := newAsking(t)
	c, number := a.call(t.Context(), t, &config.Settings{PIN: "1234", Timeout: time.Hour})
	for full := error(nil); full == nil; { // nobody reads
		full = a.shared.out.send(0, opPing, make([]byte, frameLimit-headSize))
	}
	a.ask(t, number, "one")
	until(t, "the end of the process", func() bool { return !a.alive.Load() })
	a.module.backend.pins.mu.Lock()
	defer a.module.backend.pins.mu.Unlock()
	if c.login != nil {
		t.Error("the login has not ended")
	}
}

// TestTokenNames refuses a process that names tokens without end.
func TestTokenNames(t *testing.T) {
	t.Parallel()
	a := newAsking(t)
	refused := func(number uint64, body string) bool {
		return errors.Is(a.receive(frame{call: number, kind: msgWantPIN, body: []byte(body)}), errFrame)
	}
	long := strconv.Quote(strings.Repeat("a", maxTokenText+1))
	_, number := a.call(t.Context(), t, &config.Settings{PIN: "1234", Timeout: time.Hour})
	if !refused(number, `{"Token":`+long+`}`) || !refused(number, `{"Name":`+long+`}`) {
		t.Error("a name that is too long")
	}
	for n := range maxTokens {
		a.logsIn(t, strconv.Itoa(n))
	}
	if !refused(number, `{"Token":"another"}`) || len(a.module.backend.pins.tokens) != maxTokens {
		t.Error("one token too many")
	}
	a.logsIn(t, "0")
}

// TestAnswerOnAnotherConnection refuses the answer to a use of a key on the shared connection. Its caller would wait
// for the lane for ever.
func TestAnswerOnAnotherConnection(t *testing.T) {
	t.Parallel()
	a := newAsking(t)
	pair, err := socketPair(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	l, err := newLane(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	a.lanes = []*lane{l}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = a.use(t.Context(), opSign, owner{settings: &config.Settings{Timeout: time.Hour}}, use{}.head())
	}()
	a.next(t, 0) // the lane is started
	f, err := readFrame(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []kind{msgAnswered, msgFailed} {
		if err := a.receive(frame{call: f.call, kind: k}); !errors.Is(err, errFrame) {
			t.Errorf("an answer of kind %d: %v", k, err)
		}
	}
	if _, err := pair[1].Write(appendFrame(nil, f.call, msgAnswered)); err != nil {
		t.Fatal(err)
	}
	<-done
	l.conn.Close()
	pair[1].Close()
}

// TestRenamedToken tries a PIN that was refused never again, whatever the process calls the token then.
func TestRenamedToken(t *testing.T) {
	t.Parallel()
	a := newAsking(t)
	s := config.Settings{Key: config.URI{Token: "signing"}, PIN: "1234", Timeout: time.Hour}
	_, number := a.call(t.Context(), t, &s)
	a.ask(t, number, "serial=1")
	if !a.next(t, number) {
		t.Error("no PIN")
	}
	refusal := failure.New(failure.Denied, "the PIN is wrong")
	refusal.CKR = "CKR_PIN_INCORRECT"
	_ = a.receive(frame{call: number, kind: msgLoggedIn, body: encodeFailure(refusal)})
	_ = a.receive(frame{call: number, kind: msgFailed, body: encodeFailure(refusal)})
	for _, object := range []string{"release", "another"} {
		again := s
		again.Key.Object = object
		_, number = a.call(t.Context(), t, &again)
		a.ask(t, number, "serial=2")
		if a.next(t, number) {
			t.Error("the PIN is tried again")
		}
		_ = a.receive(frame{call: number, kind: msgFailed, body: encodeFailure(refusal)})
	}
	a.logsIn(t, "serial=3") // by other settings
	a.module.backend.pins.forget()
	_, number = a.call(t.Context(), t, &s)
	a.ask(t, number, "serial=2")
	if !a.next(t, number) {
		t.Error("no PIN after the refusal was forgotten")
	}
}

// TestLongLists refuses lists that are short as text and long in memory.
func TestLongLists(t *testing.T) {
	t.Parallel()
	for name, element := range map[string]string{"Keys": "{}", "Tokens": "{}", "Chain": `""`} {
		for _, c := range []struct {
			length int
			ok     bool
		}{{0, true}, {1, true}, {maxListed, true}, {maxListed + 1, false}} {
			text := strings.TrimSuffix(strings.Repeat(element+",", c.length), ",")
			r, err := decode([]byte(`{"` + name + `":[` + text + `]}`))
			if (err == nil) != c.ok || c.ok && len(r.Keys)+len(r.Tokens)+len(r.Chain) != c.length {
				t.Errorf("%d %s: %v", c.length, name, err)
			}
		}
		if _, err := decode([]byte(`{"` + name + `":{}}`)); err == nil {
			t.Errorf("%s: no list", name)
		}
	}
}

// TestForgetRefusal names the module that refused a PIN, of two with one library and one token.
func TestForgetRefusal(t *testing.T) {
	t.Parallel()
	first, second := newAsking(t), newAsking(t)
	second.module.backend = first.module.backend
	first.logsIn(t, "one")
	_, number := second.call(t.Context(), t, &config.Settings{PIN: "1234", Timeout: time.Hour})
	second.ask(t, number, "one")
	if !second.next(t, number) {
		t.Error("no PIN")
	}
	refusal := failure.New(failure.Denied, "the PIN is wrong")
	refusal.CKR = "CKR_PIN_INCORRECT"
	_ = second.receive(frame{call: number, kind: msgFailed, body: encodeFailure(refusal)})
	if refused := first.module.backend.pins.forget(); len(refused) != 1 || !refused[second.module] {
		t.Errorf("%v", refused)
	}
}
