package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// inMemory returns an agent whose token is in memory.
func inMemory(t *testing.T) *Agent {
	t.Helper()
	module := keystoretest.New("signing")
	a := New(Options{
		Formats: []payload.Format{payload.Notation}, Token: "pkcs11:token=signing", Idle: time.Hour,
		Open: func() (*keystore.Keystore, *keystore.Reference, error) {
			token := module.Reference("signing", "")
			return token.Keystore(), token, nil
		},
	})
	t.Cleanup(func() { a.Close() })
	return a
}

// until waits for a condition, however long: a test that hangs is found by the -timeout of 'go test'.
func until(condition func() bool) {
	for !condition() {
		time.Sleep(time.Millisecond)
	}
}

// fakeLogind is systemd-logind on a bus of its own.
type fakeLogind struct {
	t    *testing.T
	conn *dbus.Conn
	bus  *exec.Cmd

	mu         sync.Mutex
	inhibitors []*os.File // the ends that can be read to their end when the agent lets go
	sent       []int      // the agent's ends, which it has got copies of
}

// startLogind starts a bus, and sets DBUS_SYSTEM_BUS_ADDRESS.
func startLogind(t *testing.T) *fakeLogind {
	t.Helper()
	program := softhsmtest.Program(t, "dbus-daemon")
	dir := shortDir(t)
	config := filepath.Join(dir, "bus.conf")
	text := fmt.Sprintf(`<busconfig><type>system</type><listen>unix:path=%s/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/>
<allow send_type="signal"/></policy></busconfig>`, dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l := &fakeLogind{t: t, bus: exec.Command(program, "--config-file="+config, "--print-address", "--nofork")}
	out, err := l.bus.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.bus.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.stop)
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", strings.TrimSpace(address))
	l.conn = l.connect()
	if err := l.conn.Export(l, logindPath, logindManager); err != nil {
		t.Fatal(err)
	}
	for name, uid := range map[string]int{"own": os.Getuid(), "other": os.Getuid() + 1} {
		properties := sessionProperties{uint32(uid)} //nolint:gosec // a user's id fits
		if err := l.conn.Export(properties, dbus.ObjectPath(logindPath+"/session/"+name), propertiesName); err != nil {
			t.Fatal(err)
		}
	}
	if reply, err := l.conn.RequestName(logindName, 0); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	return l
}

func (l *fakeLogind) connect() *dbus.Conn {
	l.t.Helper()
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	return conn
}

// stop ends the bus.
func (l *fakeLogind) stop() {
	_ = l.bus.Process.Kill()
	_ = l.bus.Wait()
}

// sessionProperties are the properties of a session of a user.
type sessionProperties struct{ uid uint32 }

func (p sessionProperties) Get(string, string) (dbus.Variant, *dbus.Error) {
	return dbus.MakeVariant(struct {
		UID  uint32
		Path dbus.ObjectPath
	}{p.uid, "/user"}), nil
}

// Inhibit gives the agent the end of a pipe.
func (l *fakeLogind) Inhibit(what, _, _, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "sleep" || mode != "delay" {
		return 0, dbus.MakeFailedError(fmt.Errorf("%s, %s", what, mode))
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inhibitors = append(l.inhibitors, r)
	fd, err := unix.Dup(int(w.Fd()))
	w.Close()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.sent = append(l.sent, fd) // the library sends it after this function has returned
	return dbus.UnixFD(fd), nil //nolint:gosec // a descriptor fits
}

// taken returns how many inhibitors the agent has asked for.
func (l *fakeLogind) taken() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.inhibitors)
}

// passes waits until the agent has handled all signals that the bus has had.
func (l *fakeLogind) passes(t *testing.T) {
	t.Helper()
	before := l.taken()
	emit(t, l.conn, "", logindManager+".PrepareForSleep", false)
	until(func() bool { return l.taken() > before })
}

// other returns the name of the one connection that is not this test's: the agent's, when its inhibitor's has ended.
func (l *fakeLogind) other(t *testing.T) (found string) {
	t.Helper()
	own := l.conn.Names()
	until(func() bool {
		var names []string
		if err := l.conn.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
			t.Fatal(err)
		}
		names = slices.DeleteFunc(names, func(name string) bool {
			return !strings.HasPrefix(name, ":") || slices.Contains(own, name)
		})
		if len(names) == 1 {
			found = names[0]
		}
		return len(names) == 1
	})
	return found
}

// emit sends a signal by a connection.
func emit(t *testing.T, conn *dbus.Conn, session, name string, values ...any) {
	t.Helper()
	path := dbus.ObjectPath(logindPath)
	if session != "" {
		path += dbus.ObjectPath("/session/" + session)
	}
	if err := conn.Emit(path, name, values...); err != nil {
		t.Fatal(err)
	}
}

// sendDescriptor verifies that the agent keeps no descriptor that somebody sends it with a signal.
func sendDescriptor(t *testing.T, from *dbus.Conn, agent string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	signal := &dbus.Message{Type: dbus.TypeSignal, Body: []any{dbus.UnixFD(w.Fd())}}
	signal.Headers = map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(agent), dbus.FieldInterface: dbus.MakeVariant(logindSession),
		dbus.FieldMember: dbus.MakeVariant("Lock"), dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath(logindPath)),
		dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(dbus.UnixFD(0))),
	}
	if call := from.Send(signal, nil); call != nil && call.Err != nil {
		t.Fatal(call.Err)
	}
	if err := from.BusObject().Call(busName+".GetId", 0).Err; err != nil { // the bus has had the signal before
		t.Fatal(err)
	}
	w.Close()
	_ = r.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the agent keeps a descriptor of a stranger: %v", err)
	}
}

// TestSignals drops the signals of others than logind, whoever that is, and loses none of logind unnoticed.
func TestSignals(t *testing.T) {
	t.Parallel()
	s := newSignals()
	deliver := func(from, name string, values ...any) {
		s.DeliverSignal("", "", &dbus.Signal{Sender: from, Name: name, Body: values})
	}
	owner := func(by, name, is string) { deliver(by, busName+".NameOwnerChanged", name, "", is) }
	lock := func(from string) { deliver(from, logindSession+".Lock") }
	lock("")
	owner(":1.7", logindName, ":1.7")
	lock(":1.7")
	owner(busName, "org.example", ":1.7")
	lock(":1.7")
	if len(s.received) != 0 {
		t.Error("a stranger's signal is received")
	}
	owner(busName, logindName, ":1.5")
	for range 10_000 {
		lock(":1.7")
	}
	if len(s.received) != 0 || len(s.lost) != 0 {
		t.Error("a stranger's signals are kept")
	}
	for range cap(s.received) {
		lock(":1.5")
	}
	if len(s.received) != cap(s.received) || len(s.lost) != 0 {
		t.Error("a signal of logind is missing")
	}
	if lock(":1.5"); len(s.lost) != 1 {
		t.Error("a signal of logind is lost unnoticed")
	}
	owner(busName, logindName, "")
	<-s.received
	if lock(":1.5"); len(s.received) != cap(s.received)-1 {
		t.Error("a signal of what was logind is received")
	}
}

// TestBusSocket reads addresses of a bus.
func TestBusSocket(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"": "/var/run/dbus/system_bus_socket", "unix:path=/run/a%20bus": "/run/a bus",
		"unix:guid=1,path=/run/bus;tcp:host=x": "/run/bus", "unix:abstract=/bus": "@/bus",
		"tcp:host=localhost,path=/x": "", "unix:path=%zz": "",
	} {
		if got, err := busSocket(address); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", address, got, err)
		}
	}
}

// TestLogind locks the agent with a session of this user and before a suspend, whatever else is on the bus, and goes on
// without a bus.
func TestLogind(t *testing.T) {
	l := startLogind(t)
	a := inMemory(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.followLogins(ctx)
	}()
	defer func() { cancel(); <-ended }()
	until(func() bool { return l.taken() == 1 })
	locked := func() bool { return a.status().Locked }
	unlock := func() {
		t.Helper()
		if err := a.Unlock(t.Context()); err != nil || locked() {
			t.Fatal("it is locked", err)
		}
	}
	hint := func(locked bool) []any {
		return []any{logindSession, map[string]dbus.Variant{"LockedHint": dbus.MakeVariant(locked)}, []string{}}
	}
	changed := propertiesName + ".PropertiesChanged"
	agent := l.other(t)
	stranger := l.connect()
	for _, c := range []struct {
		name    string
		conn    *dbus.Conn
		session string
		signal  string
		values  []any
		locks   bool
	}{
		{"the session", l.conn, "own", logindSession + ".Lock", nil, true},
		{"another user's session", l.conn, "other", logindSession + ".Lock", nil, false},
		{"the end of a lock", l.conn, "own", logindSession + ".Unlock", nil, false},
		{"the hint of a desktop", l.conn, "own", changed, hint(true), true},
		{"the hint of another user's", l.conn, "other", changed, hint(true), false},
		{"the hint of an end", l.conn, "own", changed, hint(false), false},
		{"other values", l.conn, "own", changed, []any{uint32(7)}, false},
		{"the end of a suspend", l.conn, "", logindManager + ".PrepareForSleep", []any{false}, false},
		{"another value", l.conn, "", logindManager + ".PrepareForSleep", []any{"true"}, false},
		{"a suspend", l.conn, "", logindManager + ".PrepareForSleep", []any{true}, true},
	} {
		unlock()
		emit(t, c.conn, c.session, c.signal, c.values...)
		if c.locks {
			until(locked)
			continue
		}
		// Signals of one connection arrive in order: after a second one that locks, the first one has been handled.
		l.passes(t)
		if locked() {
			t.Errorf("%s locks the agent", c.name)
		}
	}
	// Whoever is on the bus may send a signal to the agent alone, whatever it subscribed to.
	forged := &dbus.Message{Type: dbus.TypeSignal, Flags: dbus.FlagNoReplyExpected,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(agent), dbus.FieldInterface: dbus.MakeVariant(logindSession),
			dbus.FieldMember: dbus.MakeVariant("Lock"),
			dbus.FieldPath:   dbus.MakeVariant(dbus.ObjectPath(logindPath + "/session/own")),
		}}
	for _, from := range []*dbus.Conn{stranger, l.conn} {
		unlock()
		if call := from.Send(forged, nil); call != nil && call.Err != nil {
			t.Fatal(call.Err)
		}
		if from == l.conn {
			until(locked)
			continue
		}
		if err := from.BusObject().Call("org.freedesktop.DBus.GetId",
			0).Err; err != nil { // the bus has had the signal before
			t.Fatal(err)
		}
		if l.passes(t); locked() {
			t.Error("a stranger locks the agent")
		}
	}
	sendDescriptor(t, stranger, agent)
	unlock()
	emit(t, l.conn, "", logindManager+".PrepareForSleep", true)
	until(locked)
	l.mu.Lock()
	for _, fd := range l.sent {
		unix.Close(fd)
	}
	for i, inhibitor := range l.inhibitors {
		_ = inhibitor.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := inhibitor.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("inhibitor %d of %d still delays the suspend: %v", i, len(l.inhibitors), err)
		}
	}
	l.mu.Unlock()
	unlock()
	l.stop()
	if err := a.followBus(t.Context()); err == nil {
		t.Error("there is a bus")
	}
	if locked() {
		t.Error("the end of the bus locks the agent")
	}
}

// TestAgentRequests shows, locks and stops the agent.
func TestAgentRequests(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
	a := inMemory(t)
	listener := listen(t, filepath.Join(shortDir(t), "socket"))
	ended := make(chan error, 1)
	go func() { ended <- a.Run(t.Context(), listener) }()
	do := func(method, path string) (int, string) {
		w := httptest.NewRecorder()
		a.Handler().ServeHTTP(w, httptest.NewRequest(method, path, http.NoBody))
		return w.Code, w.Body.String()
	}
	if code, body := do("GET", brokerapi.AgentPath); code != 200 || !strings.Contains(body, `"locked":true`) ||
		!strings.Contains(body, `"token":"pkcs11:token=signing"`) || strings.Contains(body, "unlocked") {
		t.Error(code, body)
	}
	if err := a.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, body := do("GET", brokerapi.AgentPath); code != 200 || !strings.Contains(body, `"locked":false`) ||
		!strings.Contains(body, `"label":"signing"`) || !strings.Contains(body, `"idle_left":3`) {
		t.Error(code, body)
	}
	if code, body := do("POST", brokerapi.AgentLockPath); code != 200 || !strings.Contains(body, `"locked":true`) {
		t.Error(code, body)
	}
	for _, wrong := range []string{brokerapi.AgentLockPath, brokerapi.AgentStopPath} {
		if code, _ := do("GET", wrong); code != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d", wrong, code)
		}
	}
	until(func() bool {
		code, _ := do("POST", brokerapi.AgentStopPath)
		select {
		case err := <-ended:
			return code == 202 && err == nil
		default:
			return false
		}
	})
}
