package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// What systemd-logind offers on the system bus (org.freedesktop.login1(5)).
const (
	logindName     = "org.freedesktop.login1"
	logindPath     = "/org/freedesktop/login1"
	logindManager  = logindName + ".Manager"
	logindSession  = logindName + ".Session"
	busName        = "org.freedesktop.DBus"
	propertiesName = busName + ".Properties"
)

// busTimeout is how long the agent waits for an answer on the bus.
const busTimeout = 3 * time.Second

// busPause is how long the agent waits before it connects to the bus again.
const busPause = time.Minute

// followLogins locks the agent when a session of this user is locked, and before the machine is suspended, until ctx
// ends. Without a system bus, or without logind, nothing locks it so.
func (a *Agent) followLogins(ctx context.Context) {
	for known := ""; ctx.Err() == nil; {
		err := a.followBus(ctx)
		if err != nil && err.Error() != known {
			known = err.Error()
			slog.Warn("the agent is not locked with the session, nor before a suspend", "error", err)
		}
		select {
		case <-time.After(busPause):
		case <-ctx.Done():
		}
	}
}

// followBus does so until the connection to the bus ends.
func (a *Agent) followBus(ctx context.Context) error {
	signals := newSignals()
	conn, err := connectBus(ctx, signals)
	if err != nil {
		return err
	}
	defer conn.Close()
	sessions := dbus.WithMatchPathNamespace(logindPath + "/session")
	sender := dbus.WithMatchSender(logindName)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(busName), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, logindName)},
		{sender, dbus.WithMatchInterface(logindManager), dbus.WithMatchMember("PrepareForSleep")},
		{sender, sessions, dbus.WithMatchInterface(logindSession), dbus.WithMatchMember("Lock")},
		{sender, sessions, dbus.WithMatchInterface(propertiesName), dbus.WithMatchMember("PropertiesChanged")},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return err
		}
	}
	l := &logind{conn: conn, lock: a.lockFor}
	func() {
		ctx, cancel := context.WithTimeout(ctx, busTimeout)
		defer cancel()
		l.delaySleep(ctx) // this starts logind, if it does not run
		signals.findOwner(ctx, conn)
	}()
	defer l.allowSleep()
	for {
		select {
		case s := <-signals.received:
			l.receive(ctx, s)
		case <-signals.lost:
			l.lock("signals that were not handled in time")
		case <-signals.ended:
			return errors.New("the connection to the system bus ended")
		case <-ctx.Done():
			return nil
		}
	}
}

// logind is systemd-logind as the agent follows it.
type logind struct {
	conn  *dbus.Conn
	lock  func(reason string)
	delay *os.File // keeps the machine from being suspended while it is open, for a few seconds
}

// receive handles a signal of logind.
func (l *logind) receive(ctx context.Context, s *dbus.Signal) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	switch s.Name {
	case logindManager + ".PrepareForSleep":
		var begins bool
		if dbus.Store(s.Body, &begins) != nil {
			return
		}
		if !begins {
			l.delaySleep(ctx)
			return
		}
		l.lock("a suspend")
		l.allowSleep()
	case logindSession + ".Lock":
		if l.isOwn(ctx, s.Path) {
			l.lock("the lock of a session")
		}
	case propertiesName + ".PropertiesChanged": // of a desktop that locks itself
		var of string
		var changed map[string]dbus.Variant
		var invalidated []string
		if dbus.Store(s.Body, &of, &changed, &invalidated) != nil || of != logindSession {
			return
		}
		if locked, ok := changed["LockedHint"].Value().(bool); ok && locked && l.isOwn(ctx, s.Path) {
			l.lock("the lock of a session")
		}
	}
}

// isOwn reports whether a session belongs to this user. One that cannot be asked counts as the user's.
func (l *logind) isOwn(ctx context.Context, session dbus.ObjectPath) bool {
	var value dbus.Variant
	err := l.conn.Object(logindName, session).CallWithContext(ctx, propertiesName+".Get", 0, logindSession, "User").
		Store(&value)
	user, ok := value.Value().([]any)
	if err != nil || !ok || len(user) == 0 {
		slog.Warn("cannot read whose session was locked", "session", session, "error", err)
		return true
	}
	uid, ok := user[0].(uint32)
	return !ok || int(uid) == os.Getuid()
}

// delaySleep has logind wait before the next suspend until the agent is locked.
func (l *logind) delaySleep(ctx context.Context) {
	l.allowSleep()
	// A connection of its own, for a moment: l.conn takes no descriptors.
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		slog.Warn("cannot delay a suspend until the PIN is forgotten", "error", err)
		return
	}
	defer conn.Close()
	var fd dbus.UnixFD
	err = conn.Object(logindName, logindPath).CallWithContext(ctx, logindManager+".Inhibit", 0,
		"sleep", "hsm-broker agent", "It forgets its PIN.", "delay").Store(&fd)
	if err != nil {
		slog.Warn("cannot delay a suspend until the PIN is forgotten", "error", err)
		return
	}
	syscall.CloseOnExec(int(fd))
	l.delay = os.NewFile(uintptr(fd), "inhibitor") //nolint:gosec // a descriptor fits
}

// allowSleep ends the delay.
func (l *logind) allowSleep() {
	if l.delay != nil {
		l.delay.Close()
		l.delay = nil
	}
}
