package softhsmtest

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os/exec"
	"strings"
	"testing"
)

// Refusal is what the plugin writes to standard error.
type Refusal struct {
	Code     string            `json:"errorCode"`
	Message  string            `json:"errorMessage"`
	Metadata map[string]string `json:"errorMetadata"`
}

// Refused runs a command of the contract that has to fail as the contract says: exit code 1, one JSON object on
// standard error and nothing on standard output.
func Refused(t testing.TB, program, verb, request string) Refusal {
	t.Helper()
	stdout, stderr, err := Try(t, request, program, verb)
	var exit *exec.ExitError
	if err == nil {
		t.Fatalf("%s was not refused: %s", verb, stdout)
	}
	if ok := asExit(err, &exit); !ok || exit.ExitCode() != 1 {
		t.Errorf("ended with %v, not with exit code 1\n%s", err, stderr)
	}
	if stdout != "" {
		t.Errorf("standard output has %q", stdout)
	}
	var r Refusal
	decoder := json.NewDecoder(strings.NewReader(stderr))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil || decoder.More() {
		t.Fatalf("standard error is not one JSON object of the contract: %q (%v)", stderr, err)
	}
	for _, secret := range []string{PIN, "wrong-pin"} {
		if HasWord(stderr, secret) {
			t.Errorf("the PIN stands in the error: %s", stderr)
		}
	}
	return r
}

func asExit(err error, exit **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError) //nolint:errorlint // exec returns it unwrapped
	*exit = e
	return ok
}

// Expect fails the test unless the refusal has a code, the words in its message, and a hint.
func (r Refusal) Expect(t testing.TB, code string, words ...string) {
	t.Helper()
	if r.Code != code {
		t.Errorf("errorCode is %s, not %s: %s", r.Code, code, r.Message)
	}
	for _, word := range words {
		if !strings.Contains(r.Message, word) {
			t.Errorf("the message does not say %q: %s", word, r.Message)
		}
	}
	if r.Metadata["hint"] == "" || !strings.Contains(r.Message, r.Metadata["hint"]) {
		t.Errorf("there is no hint in the message: %+v", r)
	}
}

// Request is a generate-signature request for a key, with changes: a nil value removes a field.
func Request(uri string, changes map[string]any) string {
	fields := map[string]any{
		"contractVersion": "1.0", "keyId": uri, "keySpec": "EC-256", "hashAlgorithm": "SHA-256",
		"payload":      []byte("payload"),
		"pluginConfig": map[string]string{},
	}
	for name, value := range changes {
		if value == nil {
			delete(fields, name)
		} else {
			fields[name] = value
		}
	}
	data, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// PluginConfig returns the change of a Request that sets plugin config: name, value, name, value.
func PluginConfig(pairs ...string) map[string]any {
	settings := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		settings[pairs[i]] = pairs[i+1]
	}
	return map[string]any{"pluginConfig": settings}
}

// PublicKey returns the public half of a key in a module.
func PublicKey(t testing.TB, n *Notation, uri string) crypto.PublicKey {
	t.Helper()
	block, _ := pem.Decode([]byte(Run(t, n.Plugin, "cert", "csr", uri, "--subject", "CN=probe")))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return request.PublicKey
}

// Signs runs generate-signature, which has to succeed. (The plugin verifies what it returns; 'notation verify' does in
// other tests.)
func Signs(t testing.TB, n *Notation, request string) {
	t.Helper()
	stdout, stderr, err := Try(t, request, n.Plugin, "generate-signature")
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	if stderr != "" {
		t.Errorf("standard error has %q", stderr)
	}
	var response struct {
		Signature        []byte
		CertificateChain [][]byte
	}
	if err := json.Unmarshal([]byte(stdout), &response); err != nil || len(response.Signature) == 0 ||
		len(response.CertificateChain) == 0 {
		t.Fatalf("the response is not what the contract says: %q (%v)", stdout, err)
	}
}
