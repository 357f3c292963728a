package modules

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThalesGroup/crypto11"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// pathCalls are the calls of the path to a signature.
var pathCalls = []string{
	"C_GetFunctionList", "C_Initialize", "C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_Login",
	"C_FindObjectsInit", "C_FindObjects",
	"C_FindObjectsFinal", "C_GetAttributeValue", "C_SignInit", "C_Sign", "C_CloseSession", "C_Finalize",
}

// faults are the ways a call fails, with the error codes that may follow.
var faults = []struct {
	name, how string
	codes     []string
}{
	{"CKR_GENERAL_ERROR", "5", []string{"ERROR"}},
	{"CKR_HOST_MEMORY", "2", []string{"ERROR"}},
	{"CKR_DEVICE_ERROR", "30", []string{"ERROR"}},
	{"CKR_DEVICE_REMOVED", "32", []string{"ERROR"}},
	{"CKR_TOKEN_NOT_PRESENT", "E0", []string{"ERROR", "VALIDATION_ERROR"}}, // a slot without its token is passed over
	{"CKR_SESSION_HANDLE_INVALID", "B3", []string{"ERROR"}},
	{"CKR_SESSION_COUNT", "B1", []string{"THROTTLED"}},
	{"CKR_PIN_INCORRECT", "A0", []string{"ACCESS_DENIED"}},
	{"CKR_PIN_LOCKED", "A4", []string{"ACCESS_DENIED"}},
	{"CKR_USER_ALREADY_LOGGED_IN", "100", []string{"ERROR", "VALIDATION_ERROR"}}, // then it is not, and no key is seen
	{"CKR_FUNCTION_FAILED", "6", []string{"ERROR"}},
	{"a wrong result", "wrong", []string{"ERROR", "VALIDATION_ERROR"}},
	{"a short result", "short", []string{"ERROR", "VALIDATION_ERROR"}},
	{"a length of 2^40", "length", []string{"ERROR", "VALIDATION_ERROR"}},
	{"a hang", "hang", []string{"TIMEOUT"}},
	{"a crash", "crash", []string{"ERROR"}},
	{"an abort", "abort", []string{"ERROR"}},
}

// TestFaults has every call of the path fail once in every way. What comes of it is a right signature or one JSON error
// of the right code; never a second login, and never a session left open.
func TestFaults(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	ecURI, ecPEM := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	rsaURI, _ := softhsmtest.NewKey(t, token, n.Plugin, "RSA-2048", "other")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	requests := map[string]string{
		"chain in a file":    softhsmtest.Request(ecURI, softhsmtest.PluginConfig("certificate-chain", ecPEM)),
		"chain on the token": softhsmtest.Request(rsaURI, map[string]any{"keySpec": "RSA-2048"}),
	}
	var mutex sync.Mutex
	pairs, signed := 0, 0
	cells := map[string]map[string]bool{} // call and fault -> how it ended, in both requests
	t.Cleanup(func() {
		t.Logf("%d pairs of call and fault: %d signed all the same, %d ended in one error", pairs, signed, pairs-signed)
		compareTable(t, "TestFaults", faultTable(cells))
		if pairs != (2*len(pathCalls)-1)*len(faults) || signed == 0 {
			t.Errorf("%d pairs, %d signed", pairs, signed)
		}
	})
	for name, request := range requests {
		t.Run(name, func(t *testing.T) {
			softhsmtest.Parallel(t)
			endings := endingsOf(t, n, request)
			mutex.Lock()
			defer mutex.Unlock()
			for cell, ending := range endings {
				if pairs++; ending == "signed" {
					signed++
				}
				if cells[cell] == nil {
					cells[cell] = map[string]bool{}
				}
				cells[cell][ending] = true
			}
		})
	}
}

// endingsOf has every call of the path to one signature fail once in every way, and returns how each pair of a call and
// a fault ended.
func endingsOf(t *testing.T, n *softhsmtest.Notation, request string) map[string]string {
	t.Helper()
	log, sessions := filepath.Join(t.TempDir(), "calls"), t.TempDir()
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	softhsmtest.Setenv(t, "SHIM_LOCK_DIR", sessions)
	endings := map[string]string{}
	for _, call := range pathCalls {
		if call == "C_GetAttributeValue" && strings.Contains(request, "certificate-chain") {
			continue // it is not made then
		}
		for _, fault := range faults {
			name := fmt.Sprintf("%s with %s", call, fault.name)
			softhsmtest.Setenv(t, "SHIM_FAULT", call+":"+fault.how)
			stdout, stderr, calls, err := signWithFault(t, n, request, log, call, fault.how == "hang")
			ending, died := "signed", fault.how == "crash" || fault.how == "abort"
			if err == nil {
				verifySignature(t, name, stdout)
			} else {
				var r softhsmtest.Refusal
				if json.Unmarshal([]byte(stderr), &r) != nil || stdout != "" {
					t.Errorf("%s: %v, %q and %q", name, err, stdout, stderr)
				}
				ending = r.Code
				if !slices.Contains(fault.codes, r.Code) {
					t.Errorf("%s: errorCode is %s, not %v: %s", name, r.Code, fault.codes, r.Message)
				}
				if died && !strings.Contains(r.Message, "shim.so crashed") {
					t.Errorf("%s: the module is not named: %s", name, r.Message)
				}
			}
			endings[call+fault.name] = ending
			if softhsmtest.Count(calls, call) == 0 {
				t.Errorf("%s: the call was not made: %v", name, calls)
			}
			// A module that says that the user is logged in already, and then shows no key, is asked for a login once more.
			if logins := 1 + strings.Count(fault.name, "ALREADY_LOGGED_IN"); softhsmtest.Count(calls, "C_Login") > logins {
				t.Errorf("%s: %d logins", name, softhsmtest.Count(calls, "C_Login"))
			}
			left, _ := filepath.Glob(filepath.Join(sessions, "s*"))
			if len(left) > 0 && call != "C_CloseSession" && fault.codes[0] != "TIMEOUT" && !died {
				t.Errorf("%s: %d sessions were left open", name, len(left))
			}
			for _, file := range left {
				_ = os.Remove(file) // the process is gone, and its sessions with it
			}
		}
	}
	return endings
}

// signWithFault runs generate-signature, and returns the calls that it made as well. If the module hangs in the call,
// the timeout becomes longer until the call is made: the calls before it take their time on a slow machine.
func signWithFault(t *testing.T, n *softhsmtest.Notation, request, log, call string, hangs bool) (stdout, stderr string,
	calls []string, err error) {
	t.Helper()
	for timeout := time.Second; ; timeout *= 2 {
		if hangs {
			softhsmtest.Setenv(t, "NOTATION_HSM_TIMEOUT", timeout.String())
			defer softhsmtest.Setenv(t, "NOTATION_HSM_TIMEOUT", softhsmtest.Patience)
		}
		_ = os.Remove(log)
		stdout, stderr, err = softhsmtest.Try(t, request, n.Plugin, "generate-signature")
		calls = softhsmtest.Calls(t, log)
		if !hangs || softhsmtest.Count(calls, call) > 0 {
			return stdout, stderr, calls, err
		}
	}
}

// faultTable says how each pair of a call and a fault ended.
func faultTable(cells map[string]map[string]bool) string {
	var table strings.Builder
	table.WriteString("| fails once with |")
	for _, call := range pathCalls {
		fmt.Fprintf(&table, " %s |", call)
	}
	table.WriteString("\n| --- |" + strings.Repeat(" --- |", len(pathCalls)) + "\n")
	for _, fault := range faults {
		fmt.Fprintf(&table, "| %s |", fault.name)
		for _, call := range pathCalls {
			fmt.Fprintf(&table, " %s |", strings.Join(slices.Sorted(maps.Keys(cells[call+fault.name])), ", "))
		}
		table.WriteString("\n")
	}
	return table.String()
}

// verifySignature checks a generate-signature response for the payload of request, with no code of the plugin's.
func verifySignature(t testing.TB, name, stdout string) {
	t.Helper()
	var response struct {
		Signature        []byte
		CertificateChain [][]byte
	}
	if err := json.Unmarshal([]byte(stdout), &response); err != nil || len(response.CertificateChain) == 0 {
		t.Errorf("%s: %q: %v", name, stdout, err)
		return
	}
	leaf, err := x509.ParseCertificate(response.CertificateChain[0])
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	digest := sha256.Sum256([]byte("payload"))
	ok := false
	switch public := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		half := len(response.Signature) / 2
		ok = half == 32 && ecdsa.Verify(public, digest[:], new(big.Int).SetBytes(response.Signature[:half]),
			new(big.Int).SetBytes(response.Signature[half:]))
	case *rsa.PublicKey:
		ok = rsa.VerifyPSS(public, crypto.SHA256, digest[:], response.Signature, &rsa.PSSOptions{SaltLength: 32}) == nil
	}
	if !ok {
		t.Errorf("%s: a wrong signature was returned", name)
	}
}

// TestInterrupt sends SIGINT and SIGTERM in the middle of a slow signature: the session is closed, the module
// finalised, and one JSON error says so.
func TestInterrupt(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	log := filepath.Join(t.TempDir(), "calls")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	request := softhsmtest.Request(uri, softhsmtest.PluginConfig("certificate-chain", pem))
	delay := 60 // ms; longer once a signal has come too late
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		for _, after := range []string{"C_Initialize", "C_OpenSession", "C_Login", "C_Sign"} {
			cmd, stdout, stderr, err := interrupt(t, n, request, log, sig, after, delay)
			for err == nil {
				delay *= 2
				cmd, stdout, stderr, err = interrupt(t, n, request, log, sig, after, delay)
			}
			var r softhsmtest.Refusal
			if err == nil || cmd.ProcessState.ExitCode() != 1 || stdout.Len() > 0 || json.Unmarshal(stderr.Bytes(),
				&r) != nil ||
				!strings.Contains(r.Message, "interrupted") {
				t.Errorf("%v in %s: %v, %q and %q", sig, after, err, stdout.String(), stderr.String())
			}
			calls := softhsmtest.Calls(t, log)
			if softhsmtest.Count(calls, "C_OpenSession") != softhsmtest.Count(calls, "C_CloseSession") ||
				softhsmtest.Count(calls, "C_Finalize") != 1 {
				t.Errorf("%v in %s: not put away: %v", sig, after, calls)
			}
		}
	}
}

// interrupt sends a signal to a generate-signature that has made a call of the module, each of which takes a while.
func interrupt(t *testing.T, n *softhsmtest.Notation, request, log string, sig syscall.Signal, after string,
	milliseconds int) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer, err error) {
	t.Helper()
	_ = os.Remove(log)
	softhsmtest.Setenv(t, "SHIM_DELAY_MS", fmt.Sprint(milliseconds))
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	cmd = softhsmtest.Command(t, n.Plugin, "generate-signature")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(request), stdout, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for softhsmtest.Count(softhsmtest.Calls(t, log), after) == 0 {
		select {
		case err := <-ended:
			t.Fatalf("it has ended before %s: %v: %s", after, err, stderr)
		case <-time.After(5 * time.Millisecond):
		}
	}
	_ = cmd.Process.Signal(sig) // unless it has ended
	return cmd, stdout, stderr, <-ended
}

// TestDifferences signs with modules that differ from the common case in one way each.
func TestDifferences(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	ecURI, ecPEM := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	ec521URI, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-521", "large")
	rsaURI, rsaPEM := softhsmtest.NewKey(t, token, n.Plugin, "RSA-2048", "other")
	softhsm := token.Module
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, softhsm))
	log := filepath.Join(t.TempDir(), "calls")
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	ec, rsa := softhsmtest.Request(ecURI, nil), softhsmtest.Request(rsaURI, map[string]any{"keySpec": "RSA-2048"})
	const pss, sha256PSS, ecdsaPlain, ecdsaSHA256, pkcs = "D", "43", "1041", "1044", "1"
	for _, c := range []struct {
		name, variable, value, request string
		inits                          int
	}{
		{"the common case", "SHIM_REFUSE", "", rsa, 1},
		{"PSS only with hashing", "SHIM_REFUSE", pss, rsa, 2},
		{"raw RSA only", "SHIM_REFUSE", pss + "," + sha256PSS, rsa, 3},
		{"ECDSA in DER", "SHIM_DER", "1", ec, 1},
		{"P-521 in DER", "SHIM_DER", "1", softhsmtest.Request(ec521URI, map[string]any{"keySpec": "EC-521",
			"hashAlgorithm": "SHA-512"}),
			1},
		{"public objects hidden before the login", "SHIM_HIDE_PUBLIC", "1", ec, 1},
		{"a write-protected token", "SHIM_TOKEN_FLAGS", "2", ec, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			_ = os.Remove(log)
			softhsmtest.Setenv(t, c.variable, c.value)
			stdout, stderr, err := softhsmtest.Try(t, c.request, n.Plugin, "generate-signature")
			if err != nil {
				t.Fatal(stderr)
			}
			if !strings.Contains(c.request, "EC-521") {
				verifySignature(t, c.name, stdout)
			}
			if inits := softhsmtest.Count(softhsmtest.Calls(t, log), "C_SignInit"); inits != c.inits {
				t.Errorf("%d C_SignInit, not %d", inits, c.inits)
			}
			if _, stderr, err := softhsmtest.Try(t, c.request, n.Plugin, "describe-key"); err != nil {
				t.Error(stderr)
			}
		})
	}
	t.Run("no mechanism at all", func(t *testing.T) {
		softhsmtest.Setenv(t, "SHIM_REFUSE", strings.Join([]string{ecdsaPlain, ecdsaSHA256}, ","))
		softhsmtest.Refused(t, n.Plugin, "generate-signature", ec).Expect(t, "ERROR", "CKR_MECHANISM_INVALID")
	})
	t.Run("a request for a certificate without PKCS1", func(t *testing.T) {
		softhsmtest.Setenv(t, "SHIM_REFUSE", pkcs+",40")
		if csr := softhsmtest.Run(t, n.Plugin, "cert", "csr", rsaURI, "--subject", "CN=release"); !strings.Contains(csr,
			"BEGIN CERTIFICATE REQUEST") {
			t.Error(csr)
		}
	})
	tool := softhsmtest.Program(t, "pkcs11-tool")
	t.Run("no public key objects", func(t *testing.T) {
		for _, label := range []string{"release", "other"} {
			softhsmtest.Run(t, tool, "--module", softhsm, "--token-label", "signing", "--login", "--pin", softhsmtest.PIN,
				"--delete-object", "--type", "pubkey", "--label", label)
		}
		for _, r := range []string{ec, rsa, softhsmtest.Request(ecURI, softhsmtest.PluginConfig("certificate-chain",
			ecPEM)),
			softhsmtest.Request(rsaURI, map[string]any{"keySpec": "RSA-2048",
				"pluginConfig": map[string]string{"certificate-chain": rsaPEM}})} {
			softhsmtest.Signs(t, n, r)
			if _, stderr, err := softhsmtest.Try(t, r, n.Plugin, "describe-key"); err != nil {
				t.Error(stderr)
			}
		}
	})
	t.Run("a PIN for each use", func(t *testing.T) {
		softhsmtest.Run(t, tool, "--module", softhsm, "--token-label", "signing", "--login", "--pin", softhsmtest.PIN,
			"--keypairgen", "--key-type", "EC:prime256v1",
			"--label", "careful", "--id", "ca5e", "--always-auth", "--usage-sign")
		uri := "pkcs11:token=signing;object=careful"
		file := filepath.Join(t.TempDir(), "careful.pem")
		softhsmtest.Write(t, file, softhsmtest.Run(t, n.Plugin, "cert", "self-sign", uri, "--subject",
			"CN=careful,O=Example,C=CH,ST=Zurich"))
		_ = os.Remove(log)
		softhsmtest.Signs(t, n, softhsmtest.Request(uri, softhsmtest.PluginConfig("certificate-chain", file)))
		if calls := softhsmtest.Calls(t, log); softhsmtest.Count(calls,
			"C_Login") != 2 { // one for the token and one for the use of the key
			t.Errorf("%d logins: %v", softhsmtest.Count(calls, "C_Login"), calls)
		}
	})
	t.Run("a key that may not sign", func(t *testing.T) {
		public := keyThatMayNotSign(t, softhsm, "exchange")
		root := softhsmtest.NewCA(t, "Root", nil)
		file := filepath.Join(t.TempDir(), "exchange.pem")
		softhsmtest.Write(t, file, softhsmtest.PEM(root.Issue(t, softhsmtest.Template("exchange"), public), root.Cert))
		softhsmtest.Refused(t, n.Plugin, "generate-signature",
			softhsmtest.Request("pkcs11:token=signing;object=exchange", softhsmtest.PluginConfig("certificate-chain", file))).
			Expect(t, "ACCESS_DENIED", "CKR_KEY_FUNCTION_NOT_PERMITTED")
	})
}

// keyThatMayNotSign makes a key for another purpose.
func keyThatMayNotSign(t testing.TB, module, label string) (key crypto.PublicKey) {
	t.Helper()
	softhsmtest.InProcess(t, func() {
		c, err := crypto11.Configure(&crypto11.Config{Path: module, TokenLabel: "signing", Pin: softhsmtest.PIN})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		public, err := crypto11.NewAttributeSetWithIDAndLabel([]byte(label), []byte(label))
		if err != nil {
			t.Fatal(err)
		}
		private := public.Copy()
		if err := private.Set(crypto11.CkaSign, false); err != nil {
			t.Fatal(err)
		}
		k, err := c.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P256())
		if err != nil {
			t.Fatal(err)
		}
		key = k.Public()
	})
	return key
}

// TestManyAtOnce signs 200 times at once with a token that allows 8 sessions: all succeed.
func TestManyAtOnce(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	n.Trust(t, pem)
	registry := oci.StartRegistry(t)
	digest, err := oci.PushImage(t.Context(), registry+"/app:v1", "many")
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SHIM_MAX_SESSIONS", "8")
	softhsmtest.Setenv(t, "SHIM_LOCK_DIR", t.TempDir())
	const many = 200
	failed := make(chan string, many)
	for range many {
		go func() {
			// Each signs in a layout of its own kind: the signature's time makes it another manifest.
			cmd := softhsmtest.Command(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", uri,
				registry+"/app@"+digest.String())
			if out, err := cmd.CombinedOutput(); err != nil {
				failed <- fmt.Sprintf("%v: %s", err, out)
				return
			}
			failed <- ""
		}()
	}
	for range many {
		if f := <-failed; f != "" {
			t.Error(f)
		}
	}
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", registry+"/app@"+digest.String())
}

// TestGenerateAmongSigners makes keys while others sign with the same token: none gets in another's way.
func TestGenerateAmongSigners(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	const each = 80
	done := make(chan string, 2*each)
	run := func(stdin string, args ...string) {
		if _, stderr, err := softhsmtest.Try(t, stdin, n.Plugin, args...); err != nil {
			done <- fmt.Sprintf("%v: %s", args, stderr)
			return
		}
		done <- ""
	}
	for i := range each {
		go run("", "key", "generate", "--token", "signing", "--label", fmt.Sprintf("key-%d", i))
		go run(softhsmtest.Request(uri, softhsmtest.PluginConfig("certificate-chain", pem)), "generate-signature")
	}
	for range 2 * each {
		if failed := <-done; failed != "" {
			t.Error(failed)
		}
	}
}

// TestThrottled gives up when no session becomes free in time, and says what it waited for.
func TestThrottled(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SHIM_FAULT", "C_OpenSession:B1")
	softhsmtest.Setenv(t, "SHIM_FAULT_TIMES", "0")
	log := filepath.Join(t.TempDir(), "calls")
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request(uri, softhsmtest.PluginConfig("timeout",
		"2s"))).Expect(t, "THROTTLED", "CKR_SESSION_COUNT", `token "signing"`)
	if tries := softhsmtest.Count(softhsmtest.Calls(t, log), "C_OpenSession"); tries < 2 {
		t.Errorf("it gave up after %d tries", tries)
	}
	softhsmtest.Setenv(t, "SHIM_FAULT_TIMES", "5")
	softhsmtest.Signs(t, n, softhsmtest.Request(uri, nil))
}
