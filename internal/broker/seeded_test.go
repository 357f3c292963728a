package broker

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// seed is a mistake that somebody could make in the broker: some text of a file in place of another one.
type seed struct {
	promise         string // that the model finds broken: the beginning of its name
	file            string
	right, mistaken string
}

var seeds = map[string]seed{
	"a policy is not adopted": {promise: "I1:", file: "adopt.go", right: "(current == nil || current.index != s.Index) &&",
		mistaken: "current == nil &&"},
	"a withdrawal takes nothing back": {promise: "I2:", file: "voters.go",
		right: "func(v vote) bool { return v.Person == e.Approver })", mistaken: "func(v vote) bool { return false })"},
	"a decision counts again": {promise: "I2:", file: "approve.go", right: "case slices.Contains(r.Seen, document):",
		mistaken: "case false:"},
	"a removed credential counts": {promise: "I2:", file: "state.go", right: "delete(s.Credentials, e.Credential)",
		mistaken: "_ = e.Credential"},
	"a person counts once for each group": {promise: "I3:", file: "../approval/quorum.go",
		right: "if able[v.Person] == nil {", mistaken: "if v.Person != \"\" {"},
	"a time lock is open": {promise: "I4:", file: "standing.go",
		right:    "return !now.Before(a.notBefore) && now.Before(a.notAfter)",
		mistaken: "return now.Before(a.notAfter)"},
	"a signature can be repeated for hours": {promise: "I5:", file: "grant.go",
		right: "const retryWindow = 15 * time.Minute", mistaken: "const retryWindow = 15 * time.Hour"},
	"a key is blocked while the module signs": {promise: "I6:", file: "sign.go",
		right:    "if _, is := d.Blocked[w.Key]; is && err == nil {",
		mistaken: "if _, is := d.Blocked[w.Key]; is && err != nil {"},
	"an approval is acknowledged too early": {promise: "I7:", file: "approve.go",
		right:    "if err := b.covered(ctx, index); err != nil {",
		mistaken: "if err := b.covered(ctx, min(index, 0)-1); err != nil {"},
	"a rejection ends nothing": {promise: "I8:", file: "voters.go", right: "s.end(r, brokerapi.Rejected)",
		mistaken: "_ = brokerapi.Rejected"},
	"a credential is enrolled without approvals": {promise: "I9:", file: "change.go",
		right: "if err != nil || free {", mistaken: "if err != nil || !free {"},
	"a signature is released without its entry": {promise: "I10:", file: "sign.go", right: "if logged != nil {",
		mistaken: "if logged != nil && w == nil {"},
}

// TestSeeded has the model find each seed: make seeded. Each run of the tests checks that the seeds still fit the code.
func TestSeeded(t *testing.T) {
	t.Parallel()
	all := os.Getenv("SEEDED") != ""
	running := make(chan bool, 2)
	for name, s := range seeds {
		right, err := os.ReadFile(s.file)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(right), s.right); n != 1 {
			t.Errorf("%s has the text %d times: %s", s.file, n, s.right)
			continue
		}
		if !all { // the model acts at random: it finds nearly each of them in each run
			continue
		}
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			running <- true
			defer func() { <-running }()
			s.plant(t, strings.Replace(string(right), s.right, s.mistaken, 1))
		})
	}
}

// plant runs the model with a file that has a mistake, and fails unless the model finds it.
func (s *seed) plant(t *testing.T, mistaken string) {
	t.Helper()
	dir := t.TempDir()
	file, err := filepath.Abs(s.file)
	if err != nil {
		t.Fatal(err)
	}
	planted, overlay := filepath.Join(dir, "planted.go"), filepath.Join(dir, "overlay.json")
	data, err := json.Marshal(map[string]any{"Replace": map[string]string{file: planted}})
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{planted: []byte(mistaken), overlay: data} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-overlay", overlay, "-tags", "containers_image_openpgp",
		"-count=1", "-run", "^TestModel$", ".", "-rapid.checks=2000", "-rapid.shrinktime=0s",
		"-rapid.nofailfile", "-failfast")
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("the model finds nothing: %v\n%s", err, tail(output))
	}
	if !strings.Contains(string(output), s.promise) {
		t.Fatalf("the model does not find that %s does not hold:\n%s", s.promise, tail(output))
	}
}

func tail(output []byte) []byte { return output[max(0, len(output)-8000):] }
