package nethsm

import (
	"context"
	"slices"
	"strings"
)

// login is a user of one cluster, shared by all stores of a backend.
type login struct {
	backend *Backend
	names   []string      // the user at each instance, as keys of Backend.rejected
	turn    chan struct{} // of capacity 1; held while a passphrase is read, or sent before it was accepted once
}

// rejected is a user whose credentials a NetHSM rejected.
type rejected struct {
	err     error
	changed bool // the passphrase had been accepted before, so it was changed
}

// login returns the login of a user at the instances.
func (b *Backend) login(user string, instances []string) *login {
	l := &login{backend: b, turn: make(chan struct{}, 1)}
	for _, instance := range slices.Sorted(slices.Values(instances)) {
		l.names = append(l.names, user+" "+instance)
	}
	id := strings.Join(l.names, " ")
	b.mu.Lock()
	defer b.mu.Unlock()
	if known, ok := b.logins[id]; ok {
		return known
	}
	b.logins[id] = l
	return l
}

// acquire waits for the turn, until the context ends.
func (l *login) acquire(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *login) release() { <-l.turn }

// reject records that an instance rejected the user.
func (l *login) reject(err error, changed bool) {
	l.backend.mu.Lock()
	defer l.backend.mu.Unlock()
	for _, name := range l.names {
		l.backend.rejected[name] = rejected{err, changed}
	}
}

// forget removes the record, after the user was created with a new passphrase.
func (l *login) forget() {
	l.backend.mu.Lock()
	defer l.backend.mu.Unlock()
	for _, name := range l.names {
		delete(l.backend.rejected, name)
	}
}

// rejection returns why the passphrase must not be sent, or nil. A passphrase that was accepted is still sent after
// another one was rejected.
func (l *login) rejection(accepted bool) error {
	l.backend.mu.Lock()
	defer l.backend.mu.Unlock()
	for _, name := range l.names {
		if r, ok := l.backend.rejected[name]; ok && (r.changed || !accepted) {
			return r.err
		}
	}
	return nil
}
