package softhsmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Unprivileged is a user that every system has.
const Unprivileged = "nobody"

// ProcessStatus returns what the kernel says of each thread of a process, by its folder in /proc, and the limits of the
// process.
func ProcessStatus(t testing.TB, process string) (threads []map[string]string, limits string) {
	t.Helper()
	limits = Read(t, filepath.Join(process, "limits"))
	files, err := filepath.Glob(filepath.Join(process, "task", "*", "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(data)) {
			name, value, _ := strings.Cut(line, ":")
			fields[name] = strings.Join(strings.Fields(value), " ")
		}
		threads = append(threads, fields)
	}
	return threads, limits
}

// LimitedTo holds that a limit of a process, soft and hard, is between two values.
func LimitedTo(t testing.TB, limits, name string, least, most int) {
	t.Helper()
	_, after, _ := strings.Cut(limits, "\n"+name)
	var soft, hard int
	if _, err := fmt.Sscan(after, &soft, &hard); err != nil || soft < least || soft > most || hard != soft {
		t.Errorf("%s is %d and %d, not from %d to %d: %v in\n%s", name, soft, hard, least, most, err, limits)
	}
}
