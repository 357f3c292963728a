package agent

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// image is an artifact whose signer tries to hide and to forge what a person reads.
var image = &payload.Artifact{
	Format: payload.Notation, Encoding: "JWS", MediaType: "application/vnd.oci.image.manifest.v1+json",
	Digest: "sha256:" + strings.Repeat("a", 64), Size: 525,
	Expiry: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
	Annotations: map[string]string{
		"line":      "7\n  digest       sha256:b",
		"\x1b[2J":   "\u202egpj.exe\u200b",
		"long":      strings.Repeat("é", 1000),
		"invalid":   "\xff\x00",
		"printable": "ünicode",
		"unseen":    "v1\u3164\u034f\u2800\ufe0f",
	},
}

// TestQuestion shows what a caller chose on one line, in quotes and in full length or with its length.
func TestQuestion(t *testing.T) {
	t.Parallel()
	want := `Sign with key "release\n"?
  format       notation JWS
  digest       "sha256:` + strings.Repeat("a", 64) + `"
  media type   "application/vnd.oci.image.manifest.v1+json"
  size         525 bytes
  annotation   "\x1b[2J" = "\u202egpj.exe\u200b"
  annotation   "invalid" = "\xff\x00"
  annotation   "line" = "7\n  digest       sha256:b"
  annotation   "long" = "` + strings.Repeat("é", 100) + `"... (2000 bytes)
  annotation   "printable" = "ünicode"
  annotation   "unseen" = "v1\u3164\u034f\u2800\ufe0f"
  expires      2030-01-02T03:04:05Z
  asked by     process 7, program "/usr/bin/notation" (not verified)
`
	if got := question("release\n", image, peer{pid: 7, executable: "/usr/bin/notation"}); got != want {
		t.Errorf("%s", got)
	}
	many := &payload.Artifact{Format: payload.LayerKey, Annotations: map[string]string{}}
	for i := range 100 {
		many.Annotations[fmt.Sprint(i)] = "x"
	}
	got := question("x", many, peer{})
	if !strings.HasPrefix(got, "Decrypt with key") || strings.Count(got, "\n") != 23 ||
		!strings.Contains(got, "and 80 more") {
		t.Errorf("%s", got)
	}
	if got := shown(strings.Repeat("x", maxShown-1) + "é"); got != `"`+strings.Repeat("x", maxShown-1)+`"... (201 bytes)` {
		t.Errorf("%s", got)
	}
}

// TestQuestionExtras shows what a certificate and a statement are for, whatever a caller adds to them, and no size.
func TestQuestionExtras(t *testing.T) {
	t.Parallel()
	certificate := &payload.Artifact{Format: payload.X509, Encoding: "certificate", Name: "CN=release",
		SigningTime: time.Date(2001, 1, 2, 3, 4, 5, 0, time.UTC),
		Annotations: map[string]string{"basicConstraints": "critical, CA", "subjectAltName": "dns:\"a\""}}
	for i := range maxShownValues {
		certificate.Annotations[fmt.Sprintf("1.2.%d", i)] = "0500"
	}
	got := question("ca", certificate, peer{})
	for _, want := range []string{`"basicConstraints" = "critical, CA"`, `"subjectAltName" = "dns:\"a\""`, `"1.2.0" = `,
		"and 2 more\n", "  valid from   2001-01-02T03:04:05Z\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s does not show %s", got, want)
		}
	}
	statement := &payload.Artifact{Format: payload.DSSE, Digest: "sha256:" + strings.Repeat("a", 64),
		Annotations: map[string]string{"subject[1].digest.sha256": "b"}}
	for i := range maxShownValues {
		statement.Annotations[fmt.Sprintf("subject[0].annotations.%d", i)] = "x"
	}
	got = question("release", statement, peer{})
	if !strings.Contains(got, `"subject[1].digest.sha256" = "b"`) || strings.Contains(got, "size") {
		t.Errorf("another subject is not shown, or a size is: %s", got)
	}
}

// TestConfirm asks one question at a time, and refuses more than it has places for.
func TestConfirm(t *testing.T) {
	t.Parallel()
	asked, answers := make(chan string), make(chan bool)
	c := newConfirmation(func(ctx context.Context, question string) (bool, error) {
		select {
		case asked <- question:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		select {
		case yes := <-answers:
			return yes, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	})
	results := make(chan error)
	confirm := func(ctx context.Context) { results <- c.Confirm(ctx, "release", image) }

	for _, yes := range []bool{true, false} {
		go confirm(t.Context())
		<-asked
		answers <- yes
		if err := <-results; (err == nil) != yes || !yes && !failure.Is(err, failure.Denied) {
			t.Errorf("%v: %v", yes, err)
		}
	}

	leaving, leave := context.WithCancel(t.Context())
	go confirm(leaving)
	<-asked
	for range maxQuestions - 1 {
		go confirm(t.Context())
	}
	for len(c.queue) < maxQuestions {
		time.Sleep(time.Millisecond)
	}
	if err := c.Confirm(t.Context(), "release", image); !failure.Is(err, failure.Throttled) {
		t.Errorf("a question too many: %v", err)
	}
	leave() // and the next is asked
	if err := <-results; !failure.Is(err, failure.Timeout) {
		t.Errorf("a caller that left: %v", err)
	}
	for range maxQuestions - 1 {
		<-asked
		answers <- true
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if len(c.queue) != 0 || len(c.turn) != 0 {
		t.Errorf("%d and %d places are taken", len(c.queue), len(c.turn))
	}

	broken := newConfirmation(func(context.Context, string) (bool, error) { return true, os.ErrNotExist })
	if err := broken.Confirm(t.Context(), "release", image); !failure.Is(err, failure.Unavailable) {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	yes := newConfirmation(func(context.Context, string) (bool, error) { return true, nil })
	if err := yes.Confirm(gone, "release", image); !failure.Is(err, failure.Timeout) {
		t.Errorf("a yes that came too late: %v", err)
	}
}

// TestSignConfirmed signs nothing that was not confirmed.
func TestSignConfirmed(t *testing.T) {
	t.Parallel()
	var questions []string
	answer := false
	c := newConfirmation(func(_ context.Context, question string) (bool, error) {
		questions = append(questions, question)
		return answer, nil
	})
	s := newServer(t, func(o *Options) { o.Confirm = c.Confirm })
	if p := s.want(403, sign("release")); !strings.Contains(p.Detail, "not confirmed") || s.module.Calls("Sign") != 0 {
		t.Errorf("%+v, %d calls", p, s.module.Calls("Sign"))
	}
	answer = true
	s.want(201, sign("release"))
	s.want(403, post("/v1/keys/release/signatures", `{"payload":"","algorithm":"ECDSA-SHA-256"}`))
	if len(questions) != 2 || !strings.Contains(questions[0], `"io.example.build" = "7"`) {
		t.Errorf("%q", questions)
	}
}

// pseudoTerminal returns the two ends of a pseudo-terminal: the person's and the program's.
func pseudoTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, program = softhsmtest.PseudoTerminal(t)
	t.Cleanup(func() { person.Close(); program.Close() })
	return person, program
}

// TestAskOn takes a line with yes for a yes, if it was typed after the question.
func TestAskOn(t *testing.T) {
	t.Parallel()
	for typed, want := range map[string]bool{"yes\n": true, " yes \n": true, "y\n": false, "Yes\n": false, "\n": false,
		"no\nyes\n": false, "\x04": false, strings.Repeat("yes ", 500) + "\n": false} {
		person, program := pseudoTerminal(t)
		before, err := person.WriteString("yes\n") // typed ahead
		if err != nil || before != 4 {
			t.Fatal(err)
		}
		go func() {
			seen := bufio.NewReader(person)
			for text := ""; !strings.HasSuffix(text, "Type yes to allow it: "); {
				c, err := seen.ReadByte()
				if err != nil {
					return
				}
				text += string(c)
			}
			_, _ = person.WriteString(typed)
		}()
		if yes, err := askOn(t.Context(), program, "Sign?\n"); yes != want || err != nil {
			t.Errorf("%q: %v, %v", typed, yes, err)
		}
	}
}

// TestAskOnLeft ends the question when the caller leaves.
func TestAskOnLeft(t *testing.T) {
	t.Parallel()
	person, program := pseudoTerminal(t)
	ctx, cancel := context.WithCancel(t.Context())
	shownAll := make(chan string)
	go func() {
		seen := bufio.NewReader(person)
		text, _ := seen.ReadString(':')
		cancel()
		for !strings.Contains(text, "No longer asked.") {
			line, err := seen.ReadString('\n')
			if err != nil {
				break
			}
			text += line
		}
		shownAll <- text
	}()
	if yes, err := askOn(ctx, program, "Sign?\n"); yes || err == nil {
		t.Errorf("%v, %v", yes, err)
	}
	if text := <-shownAll; !strings.Contains(text, "Sign?") {
		t.Errorf("%q", text)
	}
}

// TestAskProgram runs a program as ssh-agent does. The exit status is the answer.
func TestAskProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, "askpass")
	script := `#!/bin/sh
[ "$SSH_ASKPASS_PROMPT" = confirm ] && [ $# = 1 ] || exit 2
case "$1" in
*allow*) exit 0 ;;
*hang*) exec sleep 1000 ;;
esac
exit 1
`
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	for question, want := range map[string]bool{"allow\n": true, "deny\n": false} {
		if yes, err := askProgram(t.Context(), program, question, os.Environ()); yes != want || err != nil {
			t.Errorf("%q: %v, %v", question, yes, err)
		}
	}
	if yes, err := askProgram(t.Context(), filepath.Join(dir, "missing"), "allow", nil); yes || err == nil {
		t.Errorf("%v, %v", yes, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan bool)
	go func() {
		yes, _ := askProgram(ctx, program, "hang", os.Environ())
		ended <- yes
	}()
	cancel()
	if <-ended {
		t.Error("a program that was stopped said yes")
	}
}

// TestChooseAsker prefers the terminal unless the environment asks for the program, and fails with neither.
func TestChooseAsker(t *testing.T) {
	t.Setenv(askpassVariable, "")
	t.Setenv(requireVariable, "force")
	if _, err := NewConfirmation(os.Environ()); !failure.Is(err, failure.Invalid) {
		t.Errorf("no program to force: %v", err)
	}
	for _, require := range []string{"force", "prefer"} {
		t.Setenv(askpassVariable, "/bin/true")
		t.Setenv(requireVariable, require)
		c, err := NewConfirmation(os.Environ())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Confirm(t.Context(), "release", image); err != nil {
			t.Errorf("%s: %v", require, err)
		}
	}
	if onTerminal() {
		return // of who runs the tests
	}
	t.Setenv(requireVariable, "")
	if _, err := NewConfirmation(os.Environ()); err != nil {
		t.Error(err)
	}
	t.Setenv(requireVariable, "never")
	if _, err := NewConfirmation(os.Environ()); !failure.Is(err, failure.Unavailable) {
		t.Errorf("neither: %v", err)
	}
}
