package sandbox_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/sandbox"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// A process can't leave its sandbox, so each test runs its part in a process of its own: this test program, with the
// part's name in the environment.
const part = "SANDBOX_TEST_PART"

func TestMain(m *testing.M) {
	if name := os.Getenv(part); name != "" {
		parts[name]()
		fmt.Println("done")
		_, _ = io.Copy(io.Discard, os.Stdin) // until it was looked at from outside
		return
	}
	os.Exit(m.Run())
}

var parts = map[string]func(){"large": large, "restrict": restrict, "connect": connect, "memory": memory,
	"processor": processor, "output": output, "user": become}

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// child is a process that has done its part.
type child struct {
	*exec.Cmd
	said  []string
	stdin io.Closer
}

// run runs a part to its end, or until it waits.
func run(t *testing.T, name string, args ...string) *child {
	t.Helper()
	c := &child{Cmd: exec.CommandContext(t.Context(), os.Args[0], args...)}
	c.Env = append(os.Environ(), part+"="+name, "GOTRACEBACK=none")
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	c.stdin = stdin
	for lines := bufio.NewScanner(stdout); lines.Scan() && lines.Text() != "done"; {
		c.said = append(c.said, lines.Text())
	}
	return c
}

func (c *child) end() error {
	c.stdin.Close()
	return c.Wait()
}

// status returns a field of each thread of a process, from outside.
func (c *child) status(t *testing.T, field string) (values []string) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", c.Process.Pid))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		_, after, _ := strings.Cut(string(data), "\n"+field+":")
		line, _, _ := strings.Cut(after, "\n")
		values = append(values, strings.Join(strings.Fields(line), " "))
	}
	return values
}

func all(t *testing.T, c *child, field, want string) {
	t.Helper()
	for _, value := range c.status(t, field) {
		if value != want {
			t.Errorf("a thread has %s %q, not %q", field, value, want)
		}
	}
}

// restrict tries what it can still do, on threads that were there before and on new ones.
func restrict() {
	read, write, other, run := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	tries := func() string {
		var b strings.Builder
		say := func(what string, err error) { fmt.Fprintf(&b, "%s: %v\n", what, denied(err)) }
		_, err := os.ReadFile(filepath.Join(read, "file"))
		say("read", err)
		_, err = os.ReadDir(read)
		say("list", err)
		say("write what may be read", os.WriteFile(filepath.Join(read, "new"), nil, 0o600))
		say("write", os.WriteFile(filepath.Join(write, "new"), []byte("new"), 0o600))
		say("rename", os.Rename(filepath.Join(write, "new"), filepath.Join(write, "newer")))
		_, err = os.ReadFile(filepath.Join(other, "file"))
		say("read elsewhere", err)
		say("write elsewhere", os.WriteFile(filepath.Join(other, "new"), nil, 0o600))
		say("run", exec.Command(filepath.Join(run, "program")).Run())
		say("run elsewhere", exec.Command("/bin/true").Run())
		// Go's would be Multipath TCP
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
			unix.Close(fd)
		}
		say("listen", err)
		return b.String()
	}
	start, results := make(chan bool), make(chan string)
	for range 8 {
		go func() {
			runtime.LockOSThread()
			results <- ""
			<-start
			results <- tries()
		}()
		<-results
	}
	must(sandbox.Files{Read: []string{read, "/nonexistent"}, Write: []string{write, os.DevNull},
		Run: []string{run, "/usr", "/lib", "/lib64"}}.Restrict())
	first := tries()
	for range 8 {
		start <- true
		if result := <-results; result != first {
			first += "another thread:\n" + result
		}
	}
	fmt.Print(first)
}

func denied(err error) string {
	switch {
	case err == nil:
		return "yes"
	case errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM):
		return "no"
	}
	return err.Error()
}

func TestRestrict(t *testing.T) {
	read, write, other, run1 := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	for _, file := range []string{filepath.Join(read, "file"), filepath.Join(other, "file")} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(run1, "program"), program, 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	c := run(t, "restrict", read, write, other, run1)
	all(t, c, "NoNewPrivs", "1")
	if err := c.end(); err != nil {
		t.Fatalf("%v: %s", err, c.said)
	}
	if sandbox.ABI() == 0 {
		t.Skip("this kernel has no Landlock: only no_new_privs was looked at")
	}
	want := []string{"read: yes", "list: yes", "write what may be read: no", "write: yes", "rename: yes",
		"read elsewhere: no", "write elsewhere: no",
		"run: yes", "run elsewhere: yes", "listen: no"} // /bin is below /usr
	if info, err := os.Lstat("/bin"); err == nil && info.Mode()&os.ModeSymlink == 0 {
		want[8] = "run elsewhere: no"
	}
	if sandbox.ABI() < 4 {
		want[9] = "listen: yes"
	}
	if got := strings.Join(c.said, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("it can\n%s\nwanted\n%s", got, strings.Join(want, "\n"))
	}
}

// connect tries to reach a port, and to run a program where none is named.
func connect() {
	must(sandbox.Files{Connect: os.Args[2] == "true"}.Restrict())
	c, err := net.DialTimeout("tcp", os.Args[1], time.Minute)
	if err == nil {
		c.Close()
	}
	fmt.Println(denied(err), denied(exec.Command("/bin/true").Run()))
}

func TestRestrictConnect(t *testing.T) {
	if sandbox.ABI() < 4 {
		t.Skipf("this kernel's Landlock has version %d, and restricts connections from 4", sandbox.ABI())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not wait
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for allowed, want := range map[string]string{"true": "yes no", "false": "no no"} {
		c := run(t, "connect", l.Addr().String(), allowed)
		if err := c.end(); err != nil || len(c.said) != 1 || c.said[0] != want {
			t.Errorf("allowed %s: %v %q, wanted %q", allowed, err, c.said, want)
		}
	}
}

var kept [][]byte

func memory() {
	must(sandbox.Limits{Memory: 256 << 20}.Set())
	for range 32 {
		b := make([]byte, 32<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
}

// large does what needs little memory on a machine with many processors: each takes part in collecting garbage.
func large() {
	must(sandbox.Limits{Memory: 512 << 20}.Set())
	results := make(chan int)
	for range 1000 {
		go func() {
			n := 0
			for range 100 {
				n += len(make([]byte, 1000))
			}
			runtime.GC()
			results <- n
		}()
	}
	for range 1000 {
		<-results
	}
	fmt.Println(runtime.GOMAXPROCS(0))
}

func processor() {
	must(sandbox.Limits{CPU: 1}.Set())
	for {
		runtime.Gosched()
	}
}

func output() {
	must(sandbox.Limits{Output: 1 << 20, Files: 20}.Set())
	file, err := os.Create(os.Args[1])
	must(err)
	n, err := file.Write(make([]byte, 2<<20))
	fmt.Println(n, errors.Is(err, syscall.EFBIG))
	for range 20 {
		if _, err = os.Open(os.DevNull); err != nil {
			break
		}
	}
	fmt.Println(errors.Is(err, syscall.EMFILE))
}

// TestLimits ends what takes too much.
func TestLimits(t *testing.T) {
	if c := run(t, "memory"); c.end() == nil {
		t.Error("1 GiB was allocated within 256 MiB")
	}
	t.Setenv("GOMAXPROCS", "200")
	c := run(t, "large")
	if err := c.end(); err != nil || len(c.said) != 1 || c.said[0] != "4" {
		t.Errorf("on a large machine: %v %q", err, c.said)
	}
	c = run(t, "processor")
	var exit *exec.ExitError
	if err := c.end(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("a process that takes all the time it can get ended with %v", err)
	}
	c = run(t, "output", filepath.Join(t.TempDir(), "file"))
	if err := c.end(); err != nil || strings.Join(c.said, " ") != "1048576 true true" {
		t.Errorf("%v %q", err, c.said)
	}
}

func become() {
	for range 8 {
		go func() {
			runtime.LockOSThread()
			select {}
		}()
	}
	must(sandbox.User{Name: "test", ID: 4242, Group: 4343, Groups: []int{4343, 4444}}.Become())
	fmt.Println(syscall.Setuid(0), syscall.Setgid(0), syscall.Setgroups(nil))
	_, err := os.ReadFile(os.Args[1])
	fmt.Println(denied(err))
}

// TestBecome gives up all that is root's, with every thread.
func TestBecome(t *testing.T) {
	softhsmtest.NeedRoot(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := run(t, "user", secret)
	for field, want := range map[string]string{"Uid": "4242 4242 4242 4242", "Gid": "4343 4343 4343 4343",
		"Groups": "4343 4444",
		"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000"} {
		all(t, c, field, want)
	}
	if err := c.end(); err != nil || len(c.said) != 2 || strings.Count(c.said[0], "operation not permitted") != 3 ||
		c.said[1] != "no" {
		t.Errorf("%v %q", err, c.said)
	}
}

func TestLookUp(t *testing.T) {
	u, err := sandbox.LookUp("root")
	if err != nil || u.ID != 0 || u.Group != 0 {
		t.Errorf("%+v %v", u, err)
	}
	if _, err := sandbox.LookUp("nobody-has-this-name"); err == nil {
		t.Error("there is such a user")
	}
}
