package sign

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// holding starts the plugin, which hangs in a call with the PIN in its hands, and returns once it does.
func holding(t *testing.T, program, request, call string, as *syscall.Credential) *exec.Cmd {
	t.Helper()
	log := filepath.Join(softhsmtest.Getenv(t, "SHIM_LOCK_DIR"), "calls")
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	softhsmtest.Setenv(t, "SHIM_FAULT", call+":hang")
	cmd := softhsmtest.Command(t, program, "generate-signature")
	cmd.Stdin = strings.NewReader(request)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	for softhsmtest.Count(softhsmtest.Calls(t, log), call) == 0 {
		select {
		case <-ended:
			t.Fatalf("it has ended before %s: %s", call, out.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return cmd
}

// TestHardened looks at the plugin while it holds a PIN, and after: all its threads gain no privileges, it leaves no
// core file, and a user's other processes cannot read its memory.
func TestHardened(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SHIM_LOCK_DIR", token.Dir)
	secret := filepath.Join(token.Dir, "pin")
	softhsmtest.Write(t, secret, softhsmtest.PIN)
	body := softhsmtest.Request(uri, softhsmtest.PluginConfig("certificate-chain", pem, "timeout", "10m", "pin-source",
		"file:"+secret))

	program := filepath.Join(token.Dir, "notation-hsm") // where another user can run it
	softhsmtest.Run(t, "cp", n.Plugin, program)
	var as *syscall.Credential
	if os.Getuid() == 0 {
		as = &syscall.Credential{Uid: 65534, Gid: 65534}
		for _, file := range []string{token.Dir, softhsmtest.Getenv(t, "NOTATION_HSM_MODULE_PATH"), pem,
			softhsmtest.Getenv(t, "XDG_CONFIG_HOME")} {
			giveAway(t, file, 65534)
		}
	}
	for _, call := range []string{"C_Login", "C_Sign"} {
		t.Run(call, func(t *testing.T) {
			_ = os.Remove(filepath.Join(token.Dir, "calls"))
			pid := holding(t, program, body, call, as).Process.Pid
			tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
			if err != nil || len(tasks) < 2 {
				t.Fatalf("%v, %v", tasks, err)
			}
			for _, task := range tasks {
				if status, err := os.ReadFile(task); err != nil || !strings.Contains(string(status), "NoNewPrivs:\t1\n") {
					t.Errorf("%s: %v: %s", task, err, status)
				}
			}
			limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
			if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "),
				"Max core file size 0 0 bytes") {
				t.Errorf("%v: %s", err, limits)
			}
			info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", pid)) // root's own while the process is not dumpable
			if err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
				t.Errorf("%v: others of the user can read its memory", err)
			}
		})
	}
}

// giveAway gives a file or folder to a user, who can reach it.
func giveAway(t *testing.T, path string, uid int) {
	t.Helper()
	err := filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, uid)
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(path); strings.HasPrefix(dir, filepath.Join(os.TempDir(), "Test")); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCrashAfterLogin has the module crash in a process that is closed: the error still names the module.
func TestCrashAfterLogin(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	for _, how := range []string{"crash", "abort"} {
		softhsmtest.Setenv(t, "SHIM_FAULT", "C_Sign:"+how)
		softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request(uri,
			softhsmtest.PluginConfig("certificate-chain", pem))).Expect(t, "ERROR", "shim.so crashed")
	}
}
