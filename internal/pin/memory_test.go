package pin

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// helpers are what tests run in another process.
var helpers = map[string]func() error{
	"protected": protected, "copies": copies, "prompt": prompt, "prompts": prompts, "error": printError,
}

func TestMain(m *testing.M) {
	helper := helpers[os.Getenv("PIN_HELPER")]
	if helper == nil {
		os.Exit(m.Run())
	}
	if err := helper(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// help returns the command that runs a helper, as a user without privileges if the test runs as root.
func help(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), "PIN_HELPER="+name), env...)
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	return cmd
}

// TestProtected protects a process that has a PIN, and the memory of the PIN, also for a user without privileges.
// It runs before other tests harden this process, since its children inherit that.
func TestProtected(t *testing.T) {
	for _, source := range []string{"env:TEST_PIN", "exec:/bin/echo " + number} {
		if out, err := help(t, "protected", "TEST_PIN="+number, "TEST_SOURCE="+source).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", source, err, out)
		}
	}
}

func protected() error {
	s, err := Read(context.Background(), os.Getenv("TEST_SOURCE"), "")
	if err != nil {
		return err
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		return fmt.Errorf("others can read the memory of the process: %w", err)
	}
	privileges, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil || privileges != 1 {
		return fmt.Errorf("the process can gain privileges: %w", err)
	}
	if flags, err := memoryFlags(s.memory); !strings.Contains(flags, " lo ") || !strings.Contains(flags, " dd ") {
		return fmt.Errorf("the memory can be written to swap space or to a core file: %q, %w", flags, err)
	}
	s.Clear()
	if n, err := lockedMemory(); err != nil || n != 0 {
		return fmt.Errorf("after Clear %d kB are locked: %w", n, err)
	}
	return nil
}

// memoryFlags returns the flags of memory as proc(5) lists them: lo is locked, dd is left out of core files.
func memoryFlags(memory []byte) (string, error) {
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return "", err
	}
	_, mapping, _ := strings.Cut(string(maps), fmt.Sprintf("\n%x-", uintptr(unsafe.Pointer(&memory[0]))))
	_, flags, _ := strings.Cut(mapping, "\nVmFlags:")
	flags, _, _ = strings.Cut(flags, "\n")
	return flags + " ", nil
}

func lockedMemory() (kilobytes int, err error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(status), "VmLck:")
	_, err = fmt.Sscan(line, &kilobytes)
	return kilobytes, err
}

// TestCopies searches all memory of a process that reads a PIN. There is one copy until Clear, and none afterwards nor
// after a failure.
func TestCopies(t *testing.T) {
	t.Parallel()
	file := place(t, "pin", number+"\n", 0o600)
	for _, source := range []string{"file:" + file, "exec:" + script(t, "exec cat "+file)} {
		cmd := help(t, "copies", "TEST_SOURCE="+source, "TEST_MASKED="+string(masked([]byte(number))),
			"TEST_FAILS=exec:"+script(t, "cat "+file+"; exit 3"))
		cmd.SysProcAttr = nil // the user of the test owns the file
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", source, err, out)
		}
	}
}

// masked changes each byte of a PIN, so that what is searched for is no copy itself.
func masked(pin []byte) []byte {
	out := make([]byte, len(pin))
	for i, c := range pin {
		out[i] = c ^ 1
	}
	return out
}

func copies() error {
	mem, err := os.Open("/proc/self/mem") // while the process is dumpable
	if err != nil {
		return err
	}
	defer mem.Close()
	want := []byte(os.Getenv("TEST_MASKED"))
	if _, err := Read(context.Background(), os.Getenv("TEST_FAILS"), ""); err == nil {
		return errors.New("a command that fails gives a PIN")
	}
	if n, err := count(mem, want); err != nil || n != 0 {
		return fmt.Errorf("after a failure there are %d copies of the PIN: %w", n, err)
	}
	s, err := Read(context.Background(), os.Getenv("TEST_SOURCE"), "")
	if err != nil {
		return err
	}
	if n, err := count(mem, want); err != nil || n != 1 {
		return fmt.Errorf("there are %d copies of the PIN, not 1: %w", n, err)
	}
	s.Clear()
	if n, err := count(mem, want); err != nil || n != 0 {
		return fmt.Errorf("after use there are %d copies of the PIN: %w", n, err)
	}
	return nil
}

// count counts a masked text in all writable memory of this process, without the buffer of the search.
func count(mem *os.File, want []byte) (n int, err error) {
	buffer, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(buffer)) }()
	defer clear(buffer)
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil {
			return 0, err
		}
		if !strings.HasPrefix(mode, "rw") || to-from > 1<<28 { // larger ones are the race detector's
			continue
		}
		for at := from; at < to; at += uint64(len(buffer) - len(want)) {
			clear(buffer)
			length := min(uint64(len(buffer)), to-at)
			got, _ := mem.ReadAt(buffer[:length], int64(at)) //nolint:gosec // the kernel's own is not written to
			for i := 0; i+len(want) <= got; i++ {
				j := 0
				for j < len(want) && buffer[i+j]^1 == want[j] {
					j++
				}
				if j == len(want) {
					n++
				}
			}
			clear(buffer)
		}
	}
	return n, lines.Err()
}

// TestPrompt enters a PIN on a terminal, which does not show it, and interrupts another question. Afterwards the
// terminal shows again what is typed.
func TestPrompt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ typed, want string }{
		{number + "\n", "it is " + number[:3]}, {"\n", "the first line of the answer is empty"}, {"1\x03", "interrupted"}} {
		t.Run(c.want, func(t *testing.T) {
			t.Parallel()
			master, slave := newTerminal(t)
			cmd := help(t, "prompt")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			out := bufio.NewReader(master)
			asked, err := out.ReadString(':')
			if err != nil || !strings.Contains(asked, `PIN for token "signing"`) {
				t.Fatalf("%q, %v", asked, err)
			}
			if _, err := master.WriteString(c.typed); err != nil {
				t.Fatal(err)
			}
			var shown strings.Builder
			for !strings.Contains(shown.String(), "end\r\n") {
				line, err := out.ReadString('\n')
				shown.WriteString(line)
				if err != nil {
					t.Fatalf("%q, %v", shown.String(), err)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			if !strings.Contains(shown.String(), c.want) || strings.Contains(shown.String(), number) {
				t.Errorf("the terminal has %q", shown.String())
			}
			state, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
			if err != nil || state.Lflag&unix.ECHO == 0 {
				t.Errorf("the terminal does not show what is typed: %v", err)
			}
		})
	}
}

func prompt() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT)
	defer stop()
	s, err := Read(ctx, Prompt, "signing")
	if err != nil {
		fmt.Println(err)
	} else {
		fmt.Printf("it is %s and %d more\n", s.Bytes()[:3], len(s.Bytes())-3)
	}
	fmt.Println("end")
	return nil
}

// TestPrompts asks for one PIN after the other. A process that serves others drops what was typed before a question.
func TestPrompts(t *testing.T) {
	t.Parallel()
	master, slave := newTerminal(t)
	cmd := help(t, "prompts")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if _, err := master.WriteString("yes\n"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(master)
	var shown strings.Builder
	for range 2 {
		asked, err := out.ReadString(':')
		if _, typed := master.WriteString(number + "\n"); err != nil || typed != nil {
			t.Fatalf("%q, %v, %v", asked, err, typed)
		}
		shown.WriteString(asked)
	}
	for !strings.Contains(shown.String(), "end\r\n") {
		line, err := out.ReadString('\n')
		shown.WriteString(line)
		if err != nil {
			t.Fatalf("%q, %v", shown.String(), err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if strings.Contains(shown.String(), `": PIN`) || strings.Contains(shown.String(), number) ||
		strings.Count(shown.String(), fmt.Sprint(len(number))+" bytes") != 2 {
		t.Errorf("the terminal has %q", shown.String())
	}
}

// prompts asks for two PINs at once.
func prompts() error {
	signal.Ignore(syscall.SIGTTIN)
	lengths := make(chan string)
	for range 2 {
		go func() {
			s, err := Read(context.Background(), Prompt, "signing")
			lengths <- fmt.Sprintf("%d bytes, %v", len(s.Bytes()), err)
		}()
	}
	fmt.Println(<-lengths, <-lengths)
	fmt.Println("end")
	return nil
}

func newTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, slave = softhsmtest.PseudoTerminal(t)
	t.Cleanup(func() { master.Close(); slave.Close() })
	return master, slave
}

// TestCommandErrors drops what a command prints to standard error, which may be the PIN: it is neither in the error nor
// on the standard error of this process.
func TestCommandErrors(t *testing.T) {
	t.Parallel()
	for _, lines := range []string{"echo " + number + " >&2; exit 1", "echo " + number + " >&2; echo 1"} {
		cmd := help(t, "error", "TEST_SOURCE=exec:"+script(t, lines))
		cmd.SysProcAttr = nil // the user of the test owns the script
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "hunter") {
			t.Errorf("%v: %s", err, out)
		}
	}
}

func printError() error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug})))
	s, err := Read(context.Background(), os.Getenv("TEST_SOURCE"), "")
	defer s.Clear()
	fmt.Printf("%+v\n", err)
	if err != nil {
		fmt.Printf("%+v\n", *failure.From(err))
	}
	return nil
}
