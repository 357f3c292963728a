package cli

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/term"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// AskPassphrase asks for the passphrase of a file on the terminal, without echo. The caller clears it after use.
func AskPassphrase(ctx context.Context, path string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, failure.New(failure.Denied, "cannot ask for the passphrase of %s: %w", path, err).
			WithHint("run it in a terminal")
	}
	defer tty.Close()
	return askPassphraseOn(ctx, tty, path)
}

// askPassphraseOn is AskPassphrase on a terminal.
func askPassphraseOn(ctx context.Context, tty *os.File, path string) ([]byte, error) {
	state, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return nil, failure.New(failure.Denied, "cannot ask for the passphrase of %s: %w", path, err).
			WithHint("run it in a terminal")
	}
	fmt.Fprintf(tty, "passphrase of %s: ", printable(path, ""))
	type answer struct {
		passphrase []byte
		err        error
	}
	answered := make(chan answer, 1)
	go func() {
		passphrase, err := term.ReadPassword(int(tty.Fd()))
		answered <- answer{passphrase, err}
	}()
	select {
	case a := <-answered:
		fmt.Fprintln(tty)
		if a.err != nil || len(a.passphrase) == 0 {
			return nil, failure.New(failure.Denied, "no passphrase of %s was entered", path).
				WithHint("type the passphrase when asked")
		}
		return a.passphrase, nil
	case <-ctx.Done():
		_ = term.Restore(int(tty.Fd()), state) // echo was off
		fmt.Fprintln(tty)
		return nil, errInterrupted()
	}
}
