package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Ask asks a question on the terminal, which exists even if standard input is a pipe. It fails with kind Denied unless
// the answer is the wanted one.
func Ask(ctx context.Context, question, want string) error {
	const hint = "run it in a terminal, or add --yes"
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return failure.New(failure.Denied, "cannot ask for confirmation: %w", err).WithHint(hint)
	}
	defer tty.Close()
	return askOn(ctx, tty, question, want)
}

// askOn is Ask on a terminal.
func askOn(ctx context.Context, tty io.ReadWriter, question, want string) error {
	fmt.Fprintf(tty, "%s: ", question)
	answered := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(tty).ReadString('\n') // the end of input is an empty answer
		answered <- strings.TrimSpace(line)
	}()
	select {
	case answer := <-answered:
		if answer != want {
			return failure.New(failure.Denied, "not confirmed: the answer was not %q", want).
				WithHint("nothing was changed; run this again to confirm")
		}
		return nil
	case <-ctx.Done():
		fmt.Fprintln(tty)
		return errInterrupted()
	}
}

func errInterrupted() error {
	return failure.New(failure.Denied, "interrupted before the confirmation: nothing was changed")
}
