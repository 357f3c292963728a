package pin

import (
	"context"
	"errors"
	"testing"
)

// TestAsker has Read ask instead of reading the source.
func TestAsker(t *testing.T) {
	t.Setenv("ASKER_PIN", "from the source")
	asked := ""
	ctx := WithAsker(t.Context(), func(_ context.Context, token string) (*Secret, error) {
		asked = token
		return From("asked for")
	})
	s, err := Read(ctx, "env:ASKER_PIN", "signing")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Clear()
	if string(s.Bytes()) != "asked for" || asked != "signing" {
		t.Errorf("%q for token %q", s.Bytes(), asked)
	}
}

// TestReceive takes a PIN of 1 to 4096 bytes.
func TestReceive(t *testing.T) {
	failed := errors.New("failed")
	for _, c := range []struct {
		n   int
		err error
		ok  bool
	}{{4, nil, true}, {limit, nil, true}, {0, nil, false}, {limit + 1, nil, false}, {4, failed, false}} {
		s, err := Receive(func(memory []byte) (int, error) { return copy(memory, make([]byte, c.n)), c.err })
		if (err == nil) != c.ok || c.ok && len(s.Bytes()) != c.n {
			t.Errorf("%d bytes, %v: %v", c.n, c.err, err)
		}
		s.Clear()
	}
}
