package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// sign signs a message of its own with a key and verifies the signature.
func sign(t *testing.T, k keystore.Key, message string) error {
	t.Helper()
	digest := sha256.Sum256([]byte(message))
	signature, err := k.Sign(t.Context(), digest[:], crypto.SHA256)
	if err == nil && !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], signature) {
		t.Errorf("a wrong signature of %q", message)
	}
	return err
}

// TestLoss loses the sessions, the login, the device or the module in the middle of 1,000 signatures: time and again
// for one goroutine, and once for four, of which none can meet two losses in one signature. Every signature succeeds
// and is right.
func TestLoss(t *testing.T) {
	for _, c := range []struct {
		lost       string
		goroutines int
	}{
		{"sessions:97", 1}, {"login:97", 1}, {"device:97", 1}, {"module:97", 1},
		{"sessions:600", 4}, {"login:600", 4}, {"device:600", 4}, {"module:600", 4},
	} {
		t.Run(c.lost, func(t *testing.T) {
			s, log := settings(t)
			t.Setenv("SHIM_LOSE", c.lost)
			token, err := New().Open(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			k, err := token.Key(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			var group sync.WaitGroup
			var failed atomic.Int64
			for range c.goroutines {
				group.Go(func() {
					for i := range 1000 / c.goroutines {
						err := sign(t, k, string(rune('a'+i%26)))
						if err != nil && failed.Add(1) == 1 {
							t.Error(err)
						}
					}
				})
			}
			group.Wait()
			if n := failed.Load(); n > 0 {
				t.Errorf("%d signatures failed", n)
			}
			if err := token.Close(); err != nil {
				t.Error(err)
			}
			calls := softhsmtest.Calls(t, log)
			opened, closed := softhsmtest.Count(calls, "C_OpenSession"), softhsmtest.Count(calls, "C_CloseSession")
			// A module that was finalised gives the numbers of lost sessions, which it has closed itself, to new ones.
			if opened != closed && !strings.HasPrefix(c.lost, "module") {
				t.Errorf("%d sessions opened, %d closed", opened, closed)
			}
			if logins := softhsmtest.Count(calls, "C_Login"); logins < 2 {
				t.Errorf("%d logins: nothing was lost", logins)
			}
		})
	}
}

// TestLossOfModuleWithTwoTokens loses the module under two tokens. The module counts sessions and objects from 1 again,
// so that a number from before is another token's; each key signs with itself all the same.
func TestLossOfModuleWithTwoTokens(t *testing.T) {
	s, log := settings(t)
	softhsmtest.Run(t, softhsmtest.Program(t, "softhsm2-util"), "--init-token", "--free", "--label", "second",
		"--pin", softhsmtest.PIN, "--so-pin", softhsmtest.SOPIN)
	other := *s
	other.ModulePath = softhsmtest.Module(t)
	other.Key = config.URI{Token: "second", Object: "release"}
	generateKey(t, &other, request(t, "EC-256", key.Sign))
	other.ModulePath = s.ModulePath
	backend := New()
	var keys [2]*Key
	for i, s := range []*config.Settings{s, &other} {
		token, err := backend.open(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		defer token.Close()
		k, err := token.Key(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = k.(*Key)
	}
	for range 3 {
		for _, first := range []int{1, 0} {
			_ = keys[0].token.calls.finalize() // as another user of the library does
			for _, k := range []*Key{keys[first], keys[1-first], keys[first]} {
				if err := sign(t, k, "a"); err != nil {
					t.Error(err)
				}
			}
		}
	}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 2+6*2 {
		t.Errorf("%d logins to two tokens that were lost 6 times", n)
	}
}

// TestLossWithWrongPIN loses the sessions when the PIN's source holds another PIN by then. That one is tried once, by
// whatever store, and never again.
func TestLossWithWrongPIN(t *testing.T) {
	s, log := settings(t)
	file := filepath.Join(t.TempDir(), "pin")
	write := func(pin string) {
		if err := os.WriteFile(file, []byte(pin), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(softhsmtest.PIN)
	s.PIN, s.PINSource = "", "file:"+file
	backend := New()
	token, err := backend.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer token.Close()
	k, err := token.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	write("000000")
	t.Setenv("SHIM_LOSE", "sessions:1")
	if err := sign(t, k, "a"); !failure.Is(err, failure.Denied) || failure.From(err).CKR != "CKR_PIN_INCORRECT" {
		t.Errorf("the refusal was reported as %v", err)
	}
	t.Setenv("SHIM_LOSE", "")
	write(softhsmtest.PIN)
	for range 3 {
		if err := sign(t, k, "a"); !failure.Is(err, failure.Denied) {
			t.Errorf("a signature after the refusal: %v", err)
		}
	}
	other, err := backend.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Login(t.Context()); !failure.Is(err, failure.Denied) {
		t.Errorf("a login of another store after the refusal: %v", err)
	}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 2 {
		t.Errorf("%d logins, not the first and the refused one", n)
	}
}

// TestSharedToken opens a token twice in one process: one login, and the first store to close does not log the other
// out.
func TestSharedToken(t *testing.T) {
	s, log := settings(t)
	backend := New()
	first, err := backend.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	second, err := backend.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	for _, store := range []keystore.Store{first, second} {
		if err := store.Login(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	k, err := second.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(t, k, "a"); err != nil {
		t.Error(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	calls := softhsmtest.Calls(t, log)
	for _, name := range []string{"C_Initialize", "C_Login", "C_OpenSession", "C_CloseSession", "C_Finalize"} {
		if n := softhsmtest.Count(calls, name); n != 1 {
			t.Errorf("%d calls of %s", n, name)
		}
	}
}

// TestCallerLeaves ends the context of one caller in the middle of its signature: that call ends, the others go on, and
// the session that the call has is used again.
func TestCallerLeaves(t *testing.T) {
	s, log := settings(t)
	token, err := New().Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	k, err := token.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SHIM_DELAY_MS", "200")
	ctx, cancel := context.WithCancel(t.Context())
	before := softhsmtest.Count(softhsmtest.Calls(t, log), "C_SignInit")
	left := make(chan error)
	go func() {
		digest := sha256.Sum256([]byte("a"))
		_, err := k.Sign(ctx, digest[:], crypto.SHA256)
		left <- err
	}()
	for softhsmtest.Count(softhsmtest.Calls(t, log), "C_SignInit") == before {
		continue // until it is in the module
	}
	cancel()
	if err := <-left; err == nil {
		t.Error("a call whose context has ended succeeded")
	}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Sign"); n > 0 {
		t.Error("the caller waited for the module")
	}
	t.Setenv("SHIM_DELAY_MS", "")
	if err := sign(t, k, "b"); err != nil {
		t.Error(err)
	}
	if err := token.Close(); err != nil {
		t.Error(err)
	}
	calls := softhsmtest.Calls(t, log)
	if o, c := softhsmtest.Count(calls, "C_OpenSession"), softhsmtest.Count(calls, "C_CloseSession"); o != c {
		t.Errorf("%d sessions opened, %d closed", o, c)
	}
	if n := softhsmtest.Count(calls, "C_Finalize"); n != 1 {
		t.Errorf("finalised %d times", n)
	}
}

// TestLossForEver repeats a signature once when its session breaks each time, and reports the loss then.
func TestLossForEver(t *testing.T) {
	s, log := settings(t)
	_, k := openKey(t, s)
	t.Setenv("SHIM_FAULT", "C_Sign:B3") // CKR_SESSION_HANDLE_INVALID
	t.Setenv("SHIM_FAULT_TIMES", "0")
	if err := sign(t, k, "a"); err == nil || failure.From(err).CKR != "CKR_SESSION_HANDLE_INVALID" {
		t.Errorf("it fails with %v", err)
	}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Sign"); n != 2 {
		t.Errorf("%d tries of one signature", n)
	}
}

// TestLossAtPINPad asks nobody for a PIN again that a person has typed.
func TestLossAtPINPad(t *testing.T) {
	s, log := settings(t)
	s.PIN = ""
	t.Setenv("SHIM_TOKEN_FLAGS", "100") // CKF_PROTECTED_AUTHENTICATION_PATH
	t.Setenv("SHIM_PIN", softhsmtest.PIN)
	_, k := openKey(t, s)
	t.Setenv("SHIM_LOSE", "sessions:1")
	fails(t, sign(t, k, "a"), failure.Denied, "is typed by a person")
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 1 {
		t.Errorf("%d logins", n)
	}
}

// TestReplacedKey signs with no other key that has taken the name of the one that was opened.
func TestReplacedKey(t *testing.T) {
	s, _ := settings(t)
	_, k := openKey(t, s)
	tool := softhsmtest.Program(t, "pkcs11-tool")
	run := func(args ...string) {
		softhsmtest.Run(t, tool, append([]string{"--module", softhsmtest.Module(t), "--token-label", "signing", "--login",
			"--pin", softhsmtest.PIN}, args...)...)
	}
	id := hex.EncodeToString([]byte("release"))
	run("--delete-object", "--type", "privkey", "--id", id)
	run("--delete-object", "--type", "pubkey", "--id", id)
	run("--keypairgen", "--key-type", "EC:prime256v1", "--label", "release", "--id", id)
	fails(t, sign(t, k, "a"), failure.Conflict, "was replaced by another")
}

// TestOpenAfterLoss opens a token whose module was lost under another store.
func TestOpenAfterLoss(t *testing.T) {
	s, _ := settings(t)
	backend := New()
	token, err := backend.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer token.Close()
	if err := token.calls.finalize(); err != nil { // as another user of the library does
		t.Fatal(err)
	}
	other, err := backend.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, store := range []*Token{other, token} {
		if k, err := store.Key(t.Context(), nil); err != nil || sign(t, k, "a") != nil {
			t.Errorf("no key after the loss: %v", err)
		}
	}
}

// TestUnreadKeyAfterLoss signs with no key that cannot be compared with the one that was opened.
func TestUnreadKeyAfterLoss(t *testing.T) {
	s, log := settings(t)
	_, k := openKey(t, s)
	t.Setenv("SHIM_LOSE", "sessions:1")
	t.Setenv("SHIM_FAULT", "C_GetAttributeValue:6") // CKR_FUNCTION_FAILED, where it reads the key again
	fails(t, sign(t, k, "a"), failure.Internal, "CKR_FUNCTION_FAILED")
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_SignInit"); n != 1 {
		t.Errorf("%d signatures begun", n)
	}
	t.Setenv("SHIM_LOSE", "")
	if err := sign(t, k, "a"); err != nil {
		t.Error(err)
	}
}

// TestReconnectURI finds a lost token by what it was named by, but for its slot.
func TestReconnectURI(t *testing.T) {
	t.Parallel()
	slot := uint(7)
	info := tokenInfo{label: "signing", serial: "42", manufacturer: "m", model: "n"}
	for _, c := range []struct{ opened, want config.URI }{
		{config.URI{Token: "signing", SlotID: &slot, Object: "release"}, config.URI{Token: "signing"}},
		{config.URI{Serial: "42"}, config.URI{Serial: "42"}},
		{config.URI{SlotID: &slot}, config.URI{Token: "signing", Serial: "42", Manufacturer: "m", Model: "n"}},
		{config.URI{Object: "release"}, config.URI{Token: "signing", Serial: "42", Manufacturer: "m", Model: "n"}},
	} {
		if got := reconnectURI(c.opened, info); got.String() != c.want.String() || got.SlotID != nil {
			t.Errorf("%s is found again by %s", c.opened, got)
		}
	}
}

// TestLossOfToken tries a few times to open a token that stays away, then lets the next operations fail at once until
// it is time to try again.
func TestLossOfToken(t *testing.T) {
	s, log := settings(t)
	token, k := openKey(t, s)
	t.Setenv("SHIM_FAULT", "C_OpenSession:E0") // CKR_TOKEN_NOT_PRESENT
	t.Setenv("SHIM_FAULT_TIMES", "0")
	token.conn.pool.Load().lose()
	before := softhsmtest.Count(softhsmtest.Calls(t, log), "C_OpenSession")
	for range 3 {
		fails(t, sign(t, k, "a"), failure.Unavailable, "cannot open a session")
		if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_OpenSession") - before; n != reconnectAttempts {
			t.Errorf("%d tries to open the token", n)
		}
		if token.conn.retry.IsZero() {
			t.Error("the next operation tries at once")
		}
		token.conn.retry = time.Now().Add(time.Hour) // however slow the machine is
	}
	t.Setenv("SHIM_FAULT", "")
	token.conn.retry = time.Time{}
	if err := sign(t, k, "a"); err != nil {
		t.Error(err)
	}
}
