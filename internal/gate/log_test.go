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
)

const writers, decisionsEach = 10, 20

// TestMain is a writer of the log when it is told to be one.
func TestMain(m *testing.M) {
	if name := os.Getenv("GATE_TEST_WRITER"); name != "" {
		if err := writeDecisions(os.Getenv("GATE_TEST_LOG"), name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func smallLog(path string) *Log { return &Log{path: path, maxSize: 4096, keep: 200} }

func writeDecisions(path, writer string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := range decisionsEach {
		if err := smallLog(path).Append(ctx, Decision{Reference: fmt.Sprintf("%s-%d", writer, i), Verdict: Refuse,
			Reason: strings.Repeat("x", 100)}); err != nil {
			return err
		}
	}
	return nil
}

// TestLogWriters has processes and goroutines write at the same time, while files are put away. Each line is there,
// once, and whole.
func TestLogWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), fmt.Sprintf("GATE_TEST_WRITER=process-%d", w), "GATE_TEST_LOG="+path)
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
		t.Fatalf("the log was not put away: %v %v", files, err)
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

// TestLogKeeps no more old files than it should, and always the latest decisions.
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

// TestLogLeavesOthersAlone refuses a file that is not a log and leaves it as it is. Next to a log nothing else is made.
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

// TestLogLocked waits for another writer no longer than it may.
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

// TestLogPutAway does not write to a file that was put away while it waited for it, and not into nothing.
func TestLogPutAway(t *testing.T) {
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

// TestLogHalfALine takes away what a power failure has left of a line, and writes behind the last whole one.
func TestLogHalfALine(t *testing.T) {
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
