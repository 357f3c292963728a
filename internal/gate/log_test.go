package gate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const writers, decisionsEach = 10, 20

// writeFromEnvironment writes to the log as the process that TestLogWriters starts.
func writeFromEnvironment() error {
	return writeDecisions(os.Getenv("GATE_TEST_LOG"), os.Getenv("GATE_TEST_WRITER"))
}

func smallLog(path string) *Log { return &Log{path: path, maxSize: 4096, keep: 200} }

func writeDecisions(path, writer string) error {
	for i := range decisionsEach {
		if err := smallLog(path).Append(context.Background(), Decision{Reference: fmt.Sprintf("%s-%d", writer, i), Verdict: Refuse,
			Reason: strings.Repeat("x", 100)}); err != nil {
			return err
		}
	}
	return nil
}

// TestLogWriters verifies that each line is in the log once and complete, when processes and goroutines write at the
// same time and files are rotated.
func TestLogWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), part+"=write decisions",
				fmt.Sprintf("GATE_TEST_WRITER=process-%d", w), "GATE_TEST_LOG="+path)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
		group.Go(func() {
			if err := writeDecisions(path, fmt.Sprintf("goroutine-%d", w)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) < 5 {
		t.Fatalf("the log was not rotated: %v %v", files, err)
	}
	seen := map[string]int{}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil || info.Size() > 4096 || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v", file, info, err)
		}
		for _, d := range readLog(t, file) {
			seen[d.Reference]++
		}
	}
	if len(seen) != 2*writers*decisionsEach {
		t.Errorf("there are %d decisions, not %d", len(seen), 2*writers*decisionsEach)
	}
	for reference, count := range seen {
		if count != 1 {
			t.Errorf("%s stands there %d times", reference, count)
		}
	}
}

func readLog(t *testing.T, path string) (list []entry) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var d entry
		if err := json.Unmarshal(line, &d); err != nil || line[len(line)-1] != '\n' {
			t.Errorf("%s: %q: %v", path, line, err)
		}
		list = append(list, d)
	}
	return list
}

// TestLogKeeps verifies that the number of rotated files is limited, and that the latest decisions are kept.
func TestLogKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	log := &Log{path: path, maxSize: 300, keep: 2}
	for i := range 20 {
		if err := log.Append(context.Background(), Decision{Reference: fmt.Sprint(i), Verdict: Pass}); err != nil {
			t.Fatal(err)
		}
	}
	files, _ := filepath.Glob(path + "*")
	if len(files) != 3 {
		t.Errorf("there are %v", files)
	}
	want := 20
	for _, file := range []string{path, path + ".1", path + ".2"} {
		list := readLog(t, file)
		for i := len(list) - 1; i >= 0; i-- {
			if want--; list[i].Reference != fmt.Sprint(want) {
				t.Errorf("%s has %s where %d should be", file, list[i].Reference, want)
			}
		}
	}
}

// TestLogSize verifies that a log is rotated at 10 MiB.
func TestLogSize(t *testing.T) {
	for size, rotated := range map[int]bool{9 << 20: false, 10 << 20: true} {
		path := filepath.Join(t.TempDir(), "decisions.jsonl")
		text := append([]byte(lineStart), bytes.Repeat([]byte("\n"), size-len(lineStart))...)
		if err := errors.Join(os.WriteFile(path, text, 0o600),
			NewLog(path).Append(t.Context(), Decision{Reference: "image", Verdict: Pass})); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path + ".1"); (err == nil) != rotated {
			t.Errorf("with %d bytes: rotated %v, want %v", size, err == nil, rotated)
		}
	}
}

// TestLogLeavesOthersAlone verifies that a file that is not a log stays as it is, and that no other file is made.
func TestLogLeavesOthersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, text := range []string{"precious", "two\nlines", "whole\nlines\n", `{"time":"2026"}` + "\n" + "a last line",
		lineStart + "x" + lineStart + strings.Repeat("x", maxTornLine-len(lineStart)), "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := NewLog(path).Append(context.Background(), Decision{Reference: "image", Verdict: Pass})
		if err == nil || !strings.Contains(err.Error(), path+": the file is not a decision log") {
			t.Errorf("%.20q: %v", text, err)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != text {
			t.Errorf("%.20q became %.20q, %v", text, data, err)
		}
	}
	for _, torn := range []string{"", "{", lineStart + "2026-"} { // the first line is all there is
		if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := NewLog(path).Append(context.Background(), Decision{Reference: "image", Verdict: Pass}); err != nil {
			t.Errorf("%q: %v", torn, err)
		}
		if list := readLog(t, path); len(list) != 1 {
			t.Errorf("%q: there are %d lines", torn, len(list))
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("there are %v, %v", entries, err)
	}
}

// TestLogLocked verifies that the wait for another writer ends with the context.
func TestLogLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	file, _, err := NewLog(path).open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := NewLog(path).Append(ctx, Decision{Reference: "image", Verdict: Pass}); err == nil ||
		!strings.Contains(err.Error(), "another process keeps it locked") {
		t.Error(err)
	}
}

// TestLogRotatedMeanwhile verifies that a file is not written to that was rotated during the wait for its lock.
func TestLogRotatedMeanwhile(t *testing.T) {
	log := NewLog(filepath.Join(t.TempDir(), "decisions.jsonl"))
	for _, next := range []func() error{
		func() error { return nil },
		func() error {
			return log.Append(context.Background(), Decision{Reference: "another writer's", Verdict: Pass})
		},
	} {
		file, err := os.OpenFile(log.path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := errors.Join(log.rotate(), next()); err != nil {
			t.Fatal(err)
		}
		if _, err := log.lockFile(context.Background(), file); !errors.Is(err, errRotated) {
			t.Error(err)
		}
	}
}

// TestLogTornLine verifies that an incomplete last line is removed, and that the next one follows the last complete
// line.
func TestLogTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	if err := NewLog(path).Append(context.Background(), Decision{Reference: "first", Verdict: Pass}); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(`{"time":"2026-`); err != nil {
		t.Fatal(err)
	}
	file.Close()
	if err := NewLog(path).Append(context.Background(), Decision{Reference: "a\nb\x1b[2J", Verdict: Pass}); err != nil {
		t.Fatal(err)
	}
	if list := readLog(t, path); len(list) != 2 || list[0].Reference != "first" || list[1].Reference != "a b?[2J" {
		t.Errorf("%+v", list)
	}
}

// fillLog limits the size of files so that only a part of the next line fits into the log. The limit is the process's,
// so tests do this in a process of its own.
func fillLog(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	size := uint64(info.Size()) + 10 //nolint:gosec // not negative
	return unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: size})
}

// appendToFull appends to the full log at GATE_TEST_LOG, and succeeds if that fails as promised.
func appendToFull() error {
	path := os.Getenv("GATE_TEST_LOG")
	if err := fillLog(path); err != nil {
		return err
	}
	err := NewLog(path).Append(context.Background(), Decision{Reference: "second", Verdict: Pass})
	if !errors.Is(err, unix.EFBIG) || !failure.Is(err, failure.Unavailable) {
		return fmt.Errorf("error %w, want one of a full file", err)
	}
	return nil
}

// runPart runs a part of a test in a process of its own.
func runPart(t *testing.T, name string, env ...string) (stdout []byte) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), part+"="+name), env...)
	stdout, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%s: %v: %s%s", name, err, stdout, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	return stdout
}

// TestLogFull verifies that a line of which only a part fits is a failure, and leaves the log as it was.
func TestLogFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	log := NewLog(path)
	if err := log.Append(t.Context(), Decision{Reference: "first", Verdict: Pass}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	runPart(t, "append to full log", "GATE_TEST_LOG="+path)
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the log became %q, %v", after, err)
	}
	if err := log.Append(t.Context(), Decision{Reference: "third", Verdict: Pass}); err != nil {
		t.Fatal(err)
	}
	if list := readLog(t, path); len(list) != 2 || list[1].Reference != "third" {
		t.Errorf("the log has %+v", list)
	}
}

// TestLogWrite verifies that a write that fails, or whose file cannot be closed, is a failure.
func TestLogWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path) // which cannot be written to
	if err != nil {
		t.Fatal(err)
	}
	if err := write(file, 0, []byte("line\n")); !errors.Is(err, unix.EBADF) {
		t.Errorf("error %v, want %v", err, unix.EBADF)
	}
	if err := write(file, 0, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v, want %v", err, os.ErrClosed)
	}
}

// TestLogKinds verifies that callers can tell why a decision was not written.
func TestLogKinds(t *testing.T) {
	folder := t.TempDir()
	locked := filepath.Join(folder, "locked")
	file, _, err := NewLog(locked).open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for path, kind := range map[string]failure.Kind{locked: failure.Timeout, folder + "/missing/log": failure.NotFound,
		os.DevNull: failure.Invalid} {
		if err := NewLog(path).Append(ctx, Decision{Reference: "image", Verdict: Pass}); !failure.Is(err, kind) {
			t.Errorf("%s: %v, want kind %d", path, err, kind)
		}
	}
}
