package sandbox_test

import (
	"bufio"
	"errors"
	"flag"
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
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/sandbox"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// A process cannot leave its sandbox, so each test runs its part in a process of its own: this test program, with the
// name of the part in an environment variable.
const part = "SANDBOX_TEST_PART"

// coverage names the folder for counters of test coverage, which a part has to be able to write to.
const coverage = "GOCOVERDIR"

func TestMain(m *testing.M) {
	if name := os.Getenv(part); name != "" {
		parts[name]()
		fmt.Println("done")
		_, _ = io.Copy(io.Discard, os.Stdin) // waits until the test has inspected the process
		return
	}
	os.Exit(m.Run())
}

var parts = map[string]func(){"large": large, "restrict": restrict, "connect": connect, "signal": signal,
	"unreadable": unreadable, "no landlock": noLandlock, "memory": memory, "processor": processor,
	"output": output, "lower": lower, "user": become}

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// child is a process that has run its part and waits for end.
type child struct {
	*exec.Cmd
	lines []string // that it printed
	stdin io.Closer
}

// start runs a part until it waits or has ended. More variables of its environment may be set with env.
func start(t *testing.T, env []string, name string, args ...string) *child {
	t.Helper()
	c := &child{Cmd: exec.CommandContext(t.Context(), os.Args[0], args...)}
	c.Env = append(append(os.Environ(), part+"="+name, "GOTRACEBACK=none"), env...)
	if f := flag.Lookup("test.gocoverdir"); f != nil && f.Value.String() != "" {
		c.Env = append(c.Env, coverage+"="+f.Value.String())
	}
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
		c.lines = append(c.lines, lines.Text())
	}
	return c
}

func (c *child) end() error {
	c.stdin.Close()
	return c.Wait()
}

// expect ends the child and compares what it printed.
func (c *child) expect(t *testing.T, want ...string) {
	t.Helper()
	if err := c.end(); err != nil || strings.Join(c.lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("%v, and it printed\n%s\nwant\n%s", err, strings.Join(c.lines, "\n"), strings.Join(want, "\n"))
	}
}

// expectStatus compares a field of /proc/PID/status of each thread.
func (c *child) expectStatus(t *testing.T, field, want string) {
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
		if got := strings.Join(strings.Fields(line), " "); got != want {
			t.Errorf("a thread has %s %q, want %q", field, got, want)
		}
	}
}

// needLandlock skips a test on kernels without a version of Landlock. On CI it fails if the kernel has Landlock on and
// the sandbox does not see it.
func needLandlock(t *testing.T, version int) {
	t.Helper()
	modules, _ := os.ReadFile("/sys/kernel/security/lsm")
	if sandbox.LandlockVersion() == 0 && os.Getenv("CI") != "" && strings.Contains(string(modules), "landlock") {
		t.Fatalf("the kernel has Landlock (%s), and the sandbox does not see it", modules)
	}
	if got := sandbox.LandlockVersion(); got < version {
		t.Skipf("this kernel has version %d of Landlock, and the test needs %d", got, version)
	}
}

// permitted prints whether an operation was permitted.
func permitted(err error) string {
	switch {
	case err == nil:
		return "yes"
	case errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM):
		return "no"
	}
	return err.Error()
}

// writable is what a part may write to.
func writable(paths ...string) []string {
	if folder := os.Getenv(coverage); folder != "" {
		paths = append(paths, folder)
	}
	return paths
}

// restrict tries what it can still do, on threads that were there before and on new ones.
func restrict() {
	read, write, other, run := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	try := func() string {
		var b strings.Builder
		say := func(what string, err error) { fmt.Fprintf(&b, "%s: %v\n", what, permitted(err)) }
		_, err := os.ReadFile(filepath.Join(read, "file"))
		say("read", err)
		_, err = os.ReadDir(read)
		say("list", err)
		say("write what may be read", os.WriteFile(filepath.Join(read, "new"), nil, 0o600))
		say("write", os.WriteFile(filepath.Join(write, "new"), []byte("new"), 0o600))
		say("rename", os.Rename(filepath.Join(write, "new"), filepath.Join(write, "newer")))
		say("remove", os.Remove(filepath.Join(write, "newer")))
		_, err = os.ReadFile(filepath.Join(other, "file"))
		say("read elsewhere", err)
		say("write elsewhere", os.WriteFile(filepath.Join(other, "new"), nil, 0o600))
		say("run", exec.Command(filepath.Join(run, "program")).Run())
		say("run what may be read", exec.Command(filepath.Join(read, "program")).Run())
		// net.Listen would use Multipath TCP
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
			results <- try()
		}()
		<-results
	}
	must(sandbox.Files{Read: []string{read, "/nonexistent"}, Write: writable(write, os.DevNull),
		Run: []string{run, "/usr", "/lib", "/lib64"}}.Restrict())
	first := try()
	for range 8 {
		start <- true
		if result := <-results; result != first {
			first += "another thread:\n" + result
		}
	}
	fmt.Print(first)
}

// TestRestrict verifies that all threads can do what the files allow, and nothing else.
func TestRestrict(t *testing.T) {
	t.Parallel()
	read, write, other, run := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.WriteFile(filepath.Join(read, "file"), nil, 0o600),
		os.WriteFile(filepath.Join(other, "file"), nil, 0o600),
		os.WriteFile(filepath.Join(read, "program"), program, 0o700), //nolint:gosec // it is a program
		os.WriteFile(filepath.Join(run, "program"), program, 0o700),  //nolint:gosec // so is this
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, nil, "restrict", read, write, other, run)
	c.expectStatus(t, "NoNewPrivs", "1") // also without Landlock
	if sandbox.LandlockVersion() == 0 {
		if err := c.end(); err != nil {
			t.Fatalf("%v: %s", err, c.lines)
		}
	}
	needLandlock(t, 1)
	listen := "listen: no"
	if sandbox.LandlockVersion() < 4 {
		listen = "listen: yes"
	}
	c.expect(t, "read: yes", "list: yes", "write what may be read: no", "write: yes", "rename: yes", "remove: yes",
		"read elsewhere: no", "write elsewhere: no", "run: yes", "run what may be read: no", listen)
}

// connect tries to reach a port, and to run a program when none is allowed.
func connect() {
	must(sandbox.Files{Write: writable(), Connect: os.Args[2] == "true"}.Restrict())
	c, err := net.DialTimeout("tcp", os.Args[1], time.Minute)
	if err == nil {
		c.Close()
	}
	fmt.Println(permitted(err), permitted(exec.Command("/bin/true").Run()))
}

// TestRestrictConnect verifies that connections are possible only when they are allowed.
func TestRestrictConnect(t *testing.T) {
	t.Parallel()
	needLandlock(t, 4)
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not wait
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for allowed, want := range map[string]string{"true": "yes no", "false": "no no"} {
		start(t, nil, "connect", l.Addr().String(), allowed).expect(t, want)
	}
}

// signal tries to signal the process that started it.
func signal() {
	must(sandbox.Files{Write: writable()}.Restrict())
	fmt.Println(permitted(syscall.Kill(os.Getppid(), 0)))
}

// TestRestrictSignal verifies that processes outside cannot be signalled.
func TestRestrictSignal(t *testing.T) {
	t.Parallel()
	needLandlock(t, 6)
	start(t, nil, "signal").expect(t, "no")
}

// noLandlock has the kernel answer as one without Landlock, and looks what is left.
func noLandlock() {
	instructions := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_LANDLOCK_CREATE_RULESET, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]} //nolint:gosec // there are four
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&program))) //nolint:gosec // a system call takes a pointer
	if errno != 0 {
		must(errno)
	}
	must(sandbox.Files{}.Restrict())
	_, err := os.ReadFile(os.Args[1])
	fmt.Println(sandbox.LandlockVersion(), permitted(err))
}

// TestNoLandlock verifies that a kernel without Landlock is no error, that LandlockVersion reports it, and that the
// process still gains no privileges.
func TestNoLandlock(t *testing.T) {
	t.Parallel()
	softhsmtest.NeedRoot(t) // who sets a filter without no_new_privs
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, nil, "no landlock", file)
	c.expectStatus(t, "NoNewPrivs", "1")
	c.expect(t, "0 yes")
}

// unreadable names a file below a file.
func unreadable() {
	fmt.Println(sandbox.Files{Read: []string{"/dev/null/file"}, Write: writable()}.Restrict())
}

// TestRestrictFails verifies that a path that cannot be looked at is an error, and not left out.
func TestRestrictFails(t *testing.T) {
	t.Parallel()
	start(t, nil, "unreadable").expect(t, "cannot access /dev/null/file: stat /dev/null/file: not a directory")
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
	for used := (syscall.Rusage{}); used.Utime.Sec+used.Stime.Sec < 10; { // without the limit, the test fails
		runtime.Gosched()
		must(syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	}
}

func output() {
	must(sandbox.Limits{Output: 1 << 20, Files: 20}.Set())
	file, err := os.Create(os.Args[1])
	must(err)
	n, err := file.Write(make([]byte, 2<<20))
	fmt.Println(n, errors.Is(err, syscall.EFBIG))
	var open []*os.File
	for range 20 {
		if file, err = os.Open(os.DevNull); err != nil {
			break
		}
		open = append(open, file)
	}
	fmt.Println(errors.Is(err, syscall.EMFILE))
	for _, file := range open {
		file.Close()
	}
}

// lower sets limits that are higher than those that it has.
func lower() {
	must(sandbox.Limits{Files: 64}.Set())
	must(sandbox.Limits{Files: 128}.Set())
	var files unix.Rlimit
	must(unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	fmt.Println(files.Cur, files.Max)
}

// TestLimits verifies that a process that exceeds a limit is ended or gets an error, that a limit is not raised, and
// that a process on a large machine stays within the memory of a small one.
func TestLimits(t *testing.T) {
	t.Parallel()
	if c := start(t, nil, "memory"); c.end() == nil {
		t.Error("1 GiB was allocated within 256 MiB")
	}
	start(t, []string{"GOMAXPROCS=200"}, "large").expect(t, "4")
	var exit *exec.ExitError
	if err := start(t, nil, "processor").end(); !errors.As(err, &exit) ||
		exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("a process that takes all the time it can get ended with %v", err)
	}
	start(t, nil, "output", filepath.Join(t.TempDir(), "file")).expect(t, "1048576 true", "true")
	start(t, nil, "lower").expect(t, "64 64")
}

func become() {
	for range 8 {
		go func() {
			runtime.LockOSThread()
			select {}
		}()
	}
	if folder := os.Getenv(coverage); folder != "" { // the folders above it are root's
		must(os.Chmod(folder, 0o777)) //nolint:gosec // until the test ends
		must(errors.Join(os.Chdir(folder), os.Setenv(coverage, ".")))
	}
	must(sandbox.User{Name: "test", ID: 4242, Group: 4343, Groups: []int{4343, 4444}}.Become())
	fmt.Println(permitted(syscall.Setuid(0)), permitted(syscall.Setgid(0)), permitted(syscall.Setgroups(nil)))
	_, err := os.ReadFile(os.Args[1])
	fmt.Println(permitted(err))
}

// TestBecome verifies that every thread gives up all that is root's.
func TestBecome(t *testing.T) {
	t.Parallel()
	softhsmtest.NeedRoot(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, nil, "user", secret)
	for field, want := range map[string]string{"Uid": "4242 4242 4242 4242", "Gid": "4343 4343 4343 4343",
		"Groups": "4343 4444",
		"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000"} {
		c.expectStatus(t, field, want)
	}
	c.expect(t, "no no no", "no")
}

// TestBecomeSelf verifies that a process can stay the user that it is.
func TestBecomeSelf(t *testing.T) {
	t.Parallel()
	if err := (sandbox.User{Name: "self", ID: os.Geteuid(), Group: 4242}).Become(); err != nil {
		t.Error(err)
	}
	if got := os.Getegid(); got == 4242 {
		t.Error("the group was changed")
	}
}

func TestLookUp(t *testing.T) {
	t.Parallel()
	u, err := sandbox.LookUp("root")
	if err != nil || u.ID != 0 || u.Group != 0 || len(u.Groups) == 0 {
		t.Errorf("%+v %v", u, err)
	}
	if _, err := sandbox.LookUp("nobody-has-this-name"); err == nil {
		t.Error("there is such a user")
	}
}
