package softhsmtest

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// P11KitServer serves a SoftHSM token over a socket, and returns it as p11-kit's client module shows it: with another
// process, and p11-kit's own protocol, between the caller and the token.
func P11KitServer(t testing.TB, token *Token) *Token {
	t.Helper()
	served := &Token{Dir: token.Dir, Label: token.Label, Module: library(t,
		"/usr/lib/*/pkcs11/p11-kit-client.so", "/usr/lib64/pkcs11/p11-kit-client.so", "/usr/lib/pkcs11/p11-kit-client.so")}
	dir, err := os.MkdirTemp("", "p11-kit") // t.TempDir() has the test's name in it, and a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	server := Start(t, Program(t, "p11-kit"), "server", "--foreground", "--provider", token.Module, "--name", socket,
		"pkcs11:token="+url.PathEscape(token.Label))
	Setenv(t, "P11_KIT_SERVER_ADDRESS", "unix:path="+socket)
	if !server.Ready(served.shown(t)) {
		t.Fatalf("p11-kit server did not start: %s", server.Stop())
	}
	return served
}

// P11KitProxy returns a SoftHSM token as p11-kit's proxy module shows it, which is the module when none is named. The
// proxy knows SoftHSM from the file that its package has put into p11-kit's system folder: a configuration of the
// user's is no way for tests, since p11-kit does not read it for root. Here it is not read for anyone.
func P11KitProxy(t testing.TB, token *Token) *Token {
	t.Helper()
	proxied := &Token{Dir: token.Dir, Label: token.Label, Module: library(t,
		"/usr/lib/*/p11-kit-proxy.so", "/usr/lib64/p11-kit-proxy.so", "/usr/lib/p11-kit-proxy.so")}
	Setenv(t, "P11_KIT_NO_USER_CONFIG", "1")
	// tpm2-pkcs11 is behind the proxy too, and makes a store at home when it has none
	Setenv(t, "TPM2_PKCS11_STORE", t.TempDir())
	if !proxied.shown(t)() {
		Missing(t, "p11-kit's module file for SoftHSM")
	}
	return proxied
}

// shown returns a condition: the module shows the token.
func (token *Token) shown(t testing.TB) func() bool {
	t.Helper()
	tool := Program(t, "pkcs11-tool")
	return func() bool {
		slots, err := Command(t, tool, "--module", token.Module, "--list-slots").Output()
		return err == nil && strings.Contains(string(slots), ": "+token.Label+"\n")
	}
}
