package softhsmtest

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"
)

// TPM makes a token of tpm2-pkcs11 in a software TPM of its own. The module finds both through variables, which are set
// for the test.
func TPM(t testing.TB) *Token {
	t.Helper()
	token := &Token{Dir: t.TempDir(), Label: "tpm", Module: library(t,
		"/usr/lib/*/pkcs11/libtpm2_pkcs11.so", "/usr/lib64/pkcs11/libtpm2_pkcs11.so", "/usr/lib/pkcs11/libtpm2_pkcs11.so")}
	Setenv(t, "TPM2_PKCS11_STORE", token.Dir)
	Setenv(t, "TPM2_PKCS11_TCTI", fmt.Sprintf("swtpm:host=127.0.0.1,port=%d", startTPM(t)))
	tool := Program(t, "pkcs11-tool")
	Run(t, tool, "--module", token.Module, "--slot-index", "0", "--init-token", "--label", token.Label, "--so-pin", SOPIN)
	Run(t, tool, "--module", token.Module, "--token-label", token.Label, "--login", "--login-type", "so", "--so-pin",
		SOPIN, "--init-pin", "--new-pin", PIN)
	return token
}

// startTPM starts swtpm and returns the port of its commands; its controls are on the next one, where the module
// expects them.
func startTPM(t testing.TB) int {
	t.Helper()
	program, state := Program(t, "swtpm"), t.TempDir()
	// swtpm cannot pick ports itself, so free ones are looked up first; should someone else take one, others are tried.
	for range 5 {
		port := portPair(t)
		control := fmt.Sprintf("127.0.0.1:%d", port+1)
		tpm := Start(t, program, "socket", "--tpm2", "--flags", "startup-clear", "--tpmstate", "dir="+state,
			"--server", fmt.Sprintf("type=tcp,port=%d", port), "--ctrl", fmt.Sprintf("type=tcp,port=%d", port+1),
			"--log", "file="+filepath.Join(state, "log"))
		listens := func() bool {
			connection, err := net.Dial("tcp", control)
			if err != nil {
				return false
			}
			connection.Close()
			return true
		}
		if tpm.Ready(listens) {
			return port
		}
		t.Log(tpm.Stop())
	}
	t.Fatal("swtpm did not start")
	return 0
}

// portPair returns a loopback port that is free together with the next one.
func portPair(t testing.TB) int {
	t.Helper()
	for range 100 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := first.Addr().(*net.TCPAddr).Port
		second, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		first.Close()
		if err == nil {
			second.Close()
			return port
		}
	}
	t.Fatal("no two ports in a row are free")
	return 0
}
