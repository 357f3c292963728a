package cli

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Ask has a person type an answer on the terminal, which is there even when standard input is a pipe, and fails unless
// it is the one that is wanted.
func Ask(ctx context.Context, question, want string) error {
	const hint = "run it in a terminal, or add --yes"
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return failure.New(failure.Denied, "there is no terminal to ask on: %w", err).WithHint(hint)
	}
	defer tty.Close()
	fmt.Fprintf(tty, "%s: ", question)
	answered := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(tty).ReadString('\n') // an end of input is no answer
		answered <- strings.TrimSpace(line)
	}()
	select {
	case answer := <-answered:
		if answer != want {
			return failure.New(failure.Denied, "nothing was done: the answer was not %q", want)
		}
		return nil
	case <-ctx.Done():
		fmt.Fprintln(tty)
		return failure.New(failure.Denied, "interrupted; nothing was done")
	}
}
