package pin

import (
	"context"
)

type asker struct{}

// WithAsker returns a context in which Read calls ask, with the token's name, instead of reading the source. The
// process of a module gets PINs from its parent in this way, and never learns the source.
func WithAsker(ctx context.Context, ask func(ctx context.Context, token string) (*Secret, error)) context.Context {
	return context.WithValue(ctx, asker{}, ask)
}

// Receive returns the PIN that one call of read writes into the memory that it is given, such as a packet of a socket.
// It fails when read does, and for an empty PIN or one that is too long.
func Receive(read func([]byte) (int, error)) (*Secret, error) {
	return fill(func(s *Secret) error {
		dropPrivileges()
		n, err := read(s.memory)
		if err != nil {
			return unreadable("%w", err)
		}
		if n <= 0 || n > limit {
			return unreadable("%d bytes were sent", n)
		}
		s.length = n
		return nil
	})
}
