package nethsm

import (
	"context"
	"slices"
)

// login is a user of one cluster. What it holds is shared by all stores of a backend, also by those that name a part of
// the instances alone.
type login struct {
	backend *Backend
	names   []string // the user at each instance, as keys of Backend.rejected
	// turns are of capacity 1, one for each name. All are held while a passphrase is read, or sent before it was accepted
	// once.
	turns []chan struct{}
}

// rejected is a user whose credentials a NetHSM rejected.
type rejected struct {
	err     error
	changed bool // the passphrase had been accepted before, so it was changed
}

// login returns the login of a user at the instances.
func (b *Backend) login(user string, instances []string) *login {
	l := &login{backend: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, instance := range slices.Sorted(slices.Values(instances)) { // so that no two logins wait for each other
		name := user + " " + instance
		if slices.Contains(l.names, name) {
			continue
		}
		turn, ok := b.turns[name]
		if !ok {
			turn = make(chan struct{}, 1)
			b.turns[name] = turn
		}
		l.names, l.turns = append(l.names, name), append(l.turns, turn)
	}
	return l
}

// acquire waits for the turn, until the context ends.
func (l *login) acquire(ctx context.Context) error {
	for i, turn := range l.turns {
		select {
		case turn <- struct{}{}:
		case <-ctx.Done():
			for _, held := range l.turns[:i] {
				<-held
			}
			return ctx.Err()
		}
	}
	return nil
}

func (l *login) release() {
	for _, turn := range l.turns {
		<-turn
	}
}

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
