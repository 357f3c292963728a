package pin

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// helpers are what the tests run in a process of its own.
var helpers = map[string]func() error{"locked": locked, "copies": copies, "prompt": prompt}

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

// help starts a helper, as a user without privileges when this is root.
func help(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), "PIN_HELPER="+name), env...)
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	return cmd
}

// TestLocked has a user without privileges read a PIN: its memory is locked all the same.
func TestLocked(t *testing.T) {
	if out, err := help(t, "locked", "TEST_PIN="+number).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func locked() error {
	s, err := Read(context.Background(), "env:TEST_PIN", "")
	if err != nil {
		return err
	}
	if n, err := lockedMemory(); err != nil || n == 0 {
		return fmt.Errorf("%d kB are locked: %w", n, err)
	}
	s.Clear()
	if n, err := lockedMemory(); err != nil || n != 0 {
		return fmt.Errorf("after use %d kB are locked: %w", n, err)
	}
	return nil
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

// TestCopies searches all memory of a process that reads a PIN. There is one copy until Clear, and none afterwards.
func TestCopies(t *testing.T) {
	file := place(t, "pin", number+"\n", 0o600)
	for _, source := range []string{"file:" + file, "exec:" + script(t, "exec cat "+file)} {
		cmd := help(t, "copies", "TEST_SOURCE="+source, "TEST_MASKED="+string(masked([]byte(number))))
		cmd.SysProcAttr = nil // root or not, it is the owner of the file
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", source, err, out)
		}
	}
}

// masked hides a PIN, so that the search for it is no copy.
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

// count counts a masked text in all memory of this process that can be written to, but for the buffer of the search.
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
		if !strings.HasPrefix(mode, "rw") || to-from > 1<<28 { // so large are the race detector's own alone
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

// TestPrompt types a PIN at a terminal, which does not show it; and interrupts another question, after which the
// terminal shows again what is typed.
func TestPrompt(t *testing.T) {
	for _, c := range []struct{ typed, want string }{{number + "\n", "it is " + number[:3]}, {"\n", "none was typed"},
		{"1\x03", "interrupted"}} {
		t.Run(c.want, func(t *testing.T) {
			master, slave := terminal(t)
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
				t.Errorf("the terminal shows no more what is typed: %v", err)
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

func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}
