package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

const (
	maxQuestions   = 16              // that wait, with the one that is asked
	answerTime     = 2 * time.Minute // for one question
	maxShown       = 200             // bytes of one value
	maxShownValues = 20              // annotations
)

// Confirmation asks a person before a key is used, one question at a time.
type Confirmation struct {
	ask   func(ctx context.Context, question string) (yes bool, err error)
	queue chan struct{} // a place for each question
	turn  chan struct{} // held by the one that is asked
}

// NewConfirmation returns a Confirmation that asks on the terminal of the process or, as ssh-agent does, by the program
// that SSH_ASKPASS names: where there is no terminal, or if SSH_ASKPASS_REQUIRE is prefer or force. It fails if there
// is neither.
//
// environ is the environment of that program.
func NewConfirmation(environ []string) (*Confirmation, error) {
	ask, err := chooseAsker(environ)
	if err != nil {
		return nil, err
	}
	return newConfirmation(ask), nil
}

func newConfirmation(ask func(context.Context, string) (bool, error)) *Confirmation {
	return &Confirmation{ask: ask, queue: make(chan struct{}, maxQuestions), turn: make(chan struct{}, 1)}
}

// Confirm asks whether a key may be used for an artifact. It fails with Denied unless the answer is yes, with Timeout
// without an answer, and with Throttled when too many questions wait.
func (c *Confirmation) Confirm(ctx context.Context, key string, a *payload.Artifact) error {
	select {
	case c.queue <- struct{}{}:
		defer func() { <-c.queue }()
	default:
		return failure.New(failure.Throttled, "%d uses of keys wait for a confirmation", maxQuestions).
			WithHint("answer those first")
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return unconfirmed(ctx)
	}
	asking, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	yes, err := c.ask(asking, question(key, a, peerIn(ctx)))
	switch {
	case asking.Err() != nil:
		return unconfirmed(ctx)
	case err != nil:
		return failure.New(failure.Unavailable, "cannot ask whether key %q may be used: %w", key, err).
			WithHint("start the agent in a terminal, or set SSH_ASKPASS to a program that asks")
	case !yes:
		return failure.New(failure.Denied, "the use of key %q was not confirmed", key).
			WithHint("answer yes when the agent asks")
	}
	return nil
}

// unconfirmed returns the failure of a question without an answer, of a caller that left if ctx has ended.
func unconfirmed(ctx context.Context) error {
	if ctx.Err() != nil {
		return failure.New(failure.Timeout, "the caller left before the use of the key was confirmed: %w", ctx.Err())
	}
	return failure.New(failure.Timeout, "nobody confirmed the use of the key within %s", answerTime).
		WithHint("answer when the agent asks")
}

// question returns what a person is asked. Everything that a caller chose is quoted, so that it can neither hide nor
// forge a line.
func question(key string, a *payload.Artifact, by peer) string {
	var q strings.Builder
	verb := "Sign"
	if a.Format == payload.LayerKey {
		verb = "Decrypt"
	}
	fmt.Fprintf(&q, "%s with key %s?\n", verb, shown(key))
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&q, "  %-12s %s\n", name, value)
		}
	}
	line("format", strings.TrimSpace(string(a.Format)+" "+a.Encoding))
	line("name", quoted(a.Name))
	line("digest", quoted(a.Digest))
	line("media type", quoted(a.MediaType))
	if a.Format == payload.Notation {
		line("size", fmt.Sprintf("%d bytes", a.Size))
	}
	names := annotationNames(a)
	for i, name := range names {
		if i == maxShownValues {
			line("annotations", fmt.Sprintf("and %d more", len(names)-i))
			break
		}
		line("annotation", shown(name)+" = "+shown(a.Annotations[name]))
	}
	if a.Format == payload.X509 && !a.SigningTime.IsZero() {
		line("valid from", a.SigningTime.Format(time.RFC3339))
	}
	if !a.Expiry.IsZero() {
		line("expires", a.Expiry.Format(time.RFC3339))
	}
	if by.pid != 0 {
		line("asked by", fmt.Sprintf("process %d, program %s (not verified)", by.pid, shown(by.executable)))
	}
	return q.String()
}

// annotationNames returns the names of the annotations of an artifact, sorted. What a caller can add at will comes
// last, else it could add so much that nothing else is shown: unknown extensions of a certificate, whose names are
// object identifiers, and annotations of the subjects of a statement.
func annotationNames(a *payload.Artifact) []string {
	isExtra := func(name string) int {
		if a.Format == payload.X509 && name != "" && '0' <= name[0] && name[0] <= '9' ||
			a.Format == payload.DSSE && strings.Contains(name, "].annotations") {
			return 1
		}
		return 0
	}
	return slices.SortedFunc(maps.Keys(a.Annotations), func(x, y string) int {
		return cmp.Or(isExtra(x)-isExtra(y), strings.Compare(x, y))
	})
}

// quoted is shown, and "" for an empty text.
func quoted(text string) string {
	if text == "" {
		return ""
	}
	return shown(text)
}

// shown returns text in quotes, without control characters, without characters that change the direction of text or
// take no room, and not longer than a person reads.
func shown(text string) string {
	short := text
	if len(text) > maxShown {
		short = text[:maxShown]
		for !utf8.ValidString(short) && len(short) > maxShown-utf8.UTFMax {
			short = short[:len(short)-1]
		}
	}
	if short == text {
		return visible(text)
	}
	return fmt.Sprintf("%s... (%d bytes)", visible(short), len(text))
}

// visible is strconv.Quote, which also escapes characters that take no room or look like a space: two values that look
// the same would differ.
func visible(text string) string {
	for _, c := range text {
		if c > unicode.MaxASCII && (c == blankBraille || unicode.In(c, unicode.Mn, unicode.Me,
			unicode.Other_Default_Ignorable_Code_Point)) {
			return strconv.QuoteToASCII(text)
		}
	}
	return strconv.Quote(text)
}

const blankBraille = '\u2800' // a letter without dots
