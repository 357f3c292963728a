package softhsmtest

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

// developer is the environment that the tests were started with.
var developer = os.Environ()

// environments holds what Setenv has set for tests that run in parallel, by the names of the tests.
var environments = struct {
	sync.Mutex
	of map[string]map[string]string
}{of: map[string]map[string]string{}}

// Parallel has a test run beside others. From then on, Setenv sets variables of the programs that this test starts, and
// none of the process, which all tests share.
func Parallel(t *testing.T) {
	t.Helper()
	environments.Lock()
	environments.of[t.Name()] = map[string]string{}
	environments.Unlock()
	t.Cleanup(func() { forget(t.Name()) })
	t.Parallel()
}

func forget(test string) {
	environments.Lock()
	defer environments.Unlock()
	delete(environments.of, test)
}

// variables returns what is set for a test that runs in parallel, or for one that it is a part of. It returns false for
// a test that runs alone: its variables are those of the process.
func variables(t testing.TB) (set map[string]string, parallel bool) {
	t.Helper()
	environments.Lock()
	defer environments.Unlock()
	if len(environments.of) == 0 {
		return nil, false
	}
	set = map[string]string{}
	name := t.Name()
	for at := range len(name) + 1 { // from the whole to the part: TestX, TestX/one, TestX/one/two
		if at < len(name) && name[at] != '/' {
			continue
		}
		if of, ok := environments.of[name[:at]]; ok {
			maps.Copy(set, of)
			parallel = true
		}
	}
	return set, parallel
}

// Setenv sets a variable of the programs that a test and its parts start, until the test ends.
func Setenv(t testing.TB, name, value string) {
	t.Helper()
	if _, parallel := variables(t); !parallel {
		t.Setenv(name, value)
		return
	}
	environments.Lock()
	defer environments.Unlock()
	of := environments.of[t.Name()]
	if of == nil {
		of = map[string]string{}
		environments.of[t.Name()] = of
		t.Cleanup(func() { forget(t.Name()) })
	}
	of[name] = value
}

// Getenv returns a variable of the programs that a test starts.
func Getenv(t testing.TB, name string) string {
	t.Helper()
	if set, parallel := variables(t); parallel {
		if value, ok := set[name]; ok {
			return value
		}
		for _, variable := range developer {
			if value, ok := strings.CutPrefix(variable, name+"="); ok {
				return value
			}
		}
		return ""
	}
	return os.Getenv(name)
}

// Environ returns the environment of the programs that a test starts.
func Environ(t testing.TB) []string {
	t.Helper()
	set, parallel := variables(t)
	if !parallel {
		return os.Environ()
	}
	environ := append([]string{}, developer...)
	for name, value := range set {
		environ = append(environ, name+"="+value) // of two, the last counts
	}
	return environ
}

// Command returns a command with the environment of a test.
func Command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = Environ(t)
	return cmd
}

// inProcess is held by the one parallel test that uses a module in this process.
var inProcess sync.Mutex

// InProcess runs a function in this process with the environment of a test, as modules read it: one test at a time.
func InProcess(t testing.TB, do func()) {
	t.Helper()
	set, parallel := variables(t)
	if !parallel {
		do()
		return
	}
	inProcess.Lock()
	defer inProcess.Unlock()
	for name, value := range set {
		before, there := os.LookupEnv(name)
		_ = os.Setenv(name, value)
		defer func() {
			if _ = os.Setenv(name, before); !there {
				_ = os.Unsetenv(name)
			}
		}()
	}
	do()
}

// Go returns a command of go in a folder of the repository, with the environment that the tests were started with:
// the caches of Go are found through it. The modules below tools/ are not in the workspace of go.work.
func Go(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = dir, append(slices.Clip(developer), "GOWORK=off")
	return cmd
}
