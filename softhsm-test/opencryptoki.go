package softhsmtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// openCryptoki has one folder, one daemon and one software token for the whole system, all named at its build.
// PKCS_APP_STORE, which should move the token elsewhere, has version 3.8 write into the root folder instead. So the
// system's token is used, when it is nobody's.
const (
	openCryptokiToken = "/var/lib/opencryptoki/swtok"
	openCryptokiLocks = "/var/lock/opencryptoki"
	openCryptokiState = "/dev/shm/var.lib.opencryptoki." // what a token's users share in memory; the token's name follows
	openCryptokiSlot  = "3"
	openCryptokiLabel = "notation-hsm-test" // by it a token that a killed test has left is known from somebody's own
)

// OpenCryptoki makes openCryptoki's software token and starts the daemon it needs, unless that runs already. Tests that
// use it wait for each other. A token that somebody else has made is not touched; afterwards there is none again. It
// takes root, or a running daemon and membership of the group pkcs11.
func OpenCryptoki(t testing.TB) *Token {
	t.Helper()
	token := &Token{Dir: openCryptokiToken, Label: openCryptokiLabel, Module: library(t,
		"/usr/lib/*/pkcs11/libopencryptoki.so", "/usr/lib/*/opencryptoki/libopencryptoki.so",
		"/usr/lib64/opencryptoki/libopencryptoki.so")}
	lockOpenCryptoki(t)
	tool := Program(t, "pkcs11-tool")
	var slots []byte
	answers := func() (ok bool) {
		var err error
		slots, err = Command(t, tool, "--module", token.Module, "--list-slots").Output()
		return err == nil
	}
	if !answers() {
		startOpenCryptoki(t, answers)
	}
	// Every slot begins with "Slot 0 (0x3): ..."; with a token in it, indented lines follow.
	_, slot, _ := strings.Cut(string(slots), "(0x"+openCryptokiSlot+")")
	slot, _, _ = strings.Cut(slot, "\nSlot ")
	if !strings.Contains(slot, "uninitialized") && !strings.Contains(slot, openCryptokiLabel) {
		Missing(t, "a software token in slot "+openCryptokiSlot+" of openCryptoki that nobody uses")
	}
	wipeOpenCryptoki()
	t.Cleanup(wipeOpenCryptoki)

	// Whoever has a token whose PINs are still those of its delivery cannot do anything but change them.
	const delivered, soPIN = "12345678", "76543210"
	do := func(args ...string) {
		Run(t, tool, append([]string{"--module", token.Module, "--slot", openCryptokiSlot}, args...)...)
	}
	do("--init-token", "--label", token.Label, "--so-pin", SOPIN) // which happens to be the delivered one
	do("--login", "--login-type", "so", "--so-pin", SOPIN, "--change-pin", "--new-pin", soPIN)
	do("--login", "--login-type", "so", "--so-pin", soPIN, "--init-pin", "--new-pin", delivered)
	do("--login", "--pin", delivered, "--change-pin", "--new-pin", PIN)
	return token
}

// lockOpenCryptoki waits until no other test, of whatever package, uses the token.
func lockOpenCryptoki(t testing.TB) {
	t.Helper()
	dir, err := os.Open(openCryptokiToken)
	if err != nil {
		Missing(t, "the right to use openCryptoki (root has it, and the group pkcs11)")
	}
	t.Cleanup(func() { dir.Close() })
	for { // the system drops the lock when the test that holds it is killed
		if err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		t.Fatalf("locking openCryptoki's token: %v", err)
	}
}

// startOpenCryptoki starts the daemon. Its empty lock files stay, as they do after any use: removing one that is in use
// breaks the lock.
func startOpenCryptoki(t testing.TB, answers func() bool) {
	t.Helper()
	if os.Getuid() != 0 {
		Missing(t, "the right to start pkcsslotd (root has it; others need it running, and to be in the group pkcs11)")
	}
	// The folder of the locks is in memory, and it is the system's start that makes it, which containers do not have.
	if _, err := os.Stat(openCryptokiLocks); err != nil {
		if err := os.MkdirAll(filepath.Join(openCryptokiLocks, "swtok"), 0o770); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(openCryptokiLocks) })
	}
	t.Cleanup(func() { // what the daemon leaves, and with it the other slots
		os.Remove("/var/run/pkcsslotd.pid")
		remove(openCryptokiState + "*")
	})
	if daemon := Start(t, Program(t, "pkcsslotd"), "-f"); !daemon.Ready(answers) {
		t.Fatalf("pkcsslotd did not start: %s", daemon.Stop())
	}
}

func wipeOpenCryptoki() {
	for _, name := range []string{"NVTOK.DAT", "MK_SO", "MK_USER", "TOK_OBJ/*"} {
		remove(filepath.Join(openCryptokiToken, name))
	}
	remove(openCryptokiState + "swtok") // it counts the objects that are gone
}

func remove(pattern string) {
	found, _ := filepath.Glob(pattern)
	for _, path := range found {
		os.Remove(path)
	}
}
