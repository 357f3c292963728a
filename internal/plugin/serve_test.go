package plugin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"

	contract "github.com/notaryproject/notation-plugin-framework-go/plugin"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestMain gives the tests no settings but the PIN of the module in memory, whatever this machine has.
func TestMain(m *testing.M) {
	err := errors.Join(os.Setenv("NOTATION_HSM_CONFIG", "/dev/null"), os.Setenv("NOTATION_HSM_PIN", keystoretest.PIN))
	if err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// serve runs a command with a module in memory that has no key.
func serve(ctx context.Context, t *testing.T, command string, stdin io.Reader) (code int, stdout, stderr string) {
	t.Helper()
	return serveWith(ctx, t, keystoretest.New("signing").Keystore(), command, stdin)
}

func serveWith(ctx context.Context, t *testing.T, ks *keystore.Keystore, command string,
	stdin io.Reader) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Plugin{Version: "1.2.3", Keystore: ks}.Serve(ctx, command, stdin, &out, &errs)
	return code, out.String(), errs.String()
}

// request is a complete request of generate-signature, with changes: nil leaves a member out.
func request(t *testing.T, changes map[string]any) io.Reader {
	t.Helper()
	r := map[string]any{"contractVersion": "1.0", "keyId": "pkcs11:token=signing;object=release", "keySpec": "EC-256",
		"hashAlgorithm": "SHA-256", "payload": []byte("payload")}
	maps.Copy(r, changes)
	maps.DeleteFunc(r, func(_ string, value any) bool { return value == nil })
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(data)
}

// requestCost is what a request may allocate: the config file and the environment are read for each setting.
var requestCost = boundtest.Budget{Bytes: 1 << 20, BytesPerByte: 256}

// FuzzRequest checks that every request ends in one JSON object, a response on standard output or an error on standard
// error, and that none costs more than its size allows.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "[]", "null",
		`{"contractVersion":"1.0","keyId":"pkcs11:object=a","keySpec":"EC-256","hashAlgorithm":"SHA-256",` +
			`"payload":"aGVsbG8=","pluginConfig":{"module-path":"/none"}}`,
		`{"contractVersion":"1.0","keyId":"a","pluginConfig":{"pin":"1"}}`, `{"contractVersion":1}`,
		`{"keyId":"pkcs11:?pin-value=1"}`,
		`{"contractVersion":"1.0","keyId":"pkcs11:","pluginConfig":{"module-path":"/none","timeout":"1ns"}}`,
	} {
		f.Add("describe-key", []byte(seed))
		f.Add("generate-signature", []byte(seed))
	}
	f.Add("get-plugin-metadata", []byte("{}"))
	f.Add("describe-key", []byte(strings.Repeat("[", 100_000)))
	f.Add("describe-key", []byte(`{"pluginConfig":`+strings.Repeat(`{"a":`, 100_000)))
	f.Fuzz(func(t *testing.T, command string, request []byte) {
		var code int
		var stdout, stderr string
		requestCost.Check(t, len(request), func() {
			code, stdout, stderr = serve(t.Context(), t, command, bytes.NewReader(request))
		})
		if code == 0 && (stderr != "" || (command != "version" && !json.Valid([]byte(stdout)))) {
			t.Errorf("%s %q: %q and %q", command, request, stdout, stderr)
		}
		if code != 0 && (stdout != "" || !json.Valid([]byte(stderr))) {
			t.Errorf("%s %q: %q and %q", command, request, stdout, stderr)
		}
	})
}

// TestRequestBounds refuses a request that is too long or whose structure is out of bounds, before it is decoded.
func TestRequestBounds(t *testing.T) {
	t.Parallel()
	for what, request := range map[string]string{
		"nested deeper than 16": `{"pluginConfig":` + strings.Repeat("[", 17) + strings.Repeat("]", 17) + "}",
		"more than 1000":        `{"pluginConfig":[` + strings.Repeat("1,", 1000) + "1]}",
		`\"keyId\" twice`:       `{"keyId":"a","keyId":"b"}`,
		"longer than 4194304":   strings.Repeat(" ", requestLimit+1),
	} {
		if code, _, stderr := serve(t.Context(), t, "describe-key", strings.NewReader(request)); code != 1 ||
			!strings.Contains(stderr, what) {
			t.Errorf("%s: %d %q", what, code, stderr)
		}
	}
}

// TestInterruptedRequest ends when the user interrupts, although the other end of the pipe stays open.
func TestInterruptedRequest(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	reader, writer := io.Pipe()
	defer writer.Close()
	code, stdout, stderr := serve(ctx, t, "describe-key", reader)
	if code != 1 || stdout != "" || !strings.Contains(stderr, "interrupted") {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
}

// TestMetadata answers without a request.
func TestMetadata(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := serve(t.Context(), t, "get-plugin-metadata", strings.NewReader(""))
	var metadata struct {
		Name, Version, Description, URL string
		SupportedContractVersions       []string
		Capabilities                    []string
	}
	if err := json.Unmarshal([]byte(stdout), &metadata); err != nil || code != 0 || stderr != "" {
		t.Fatalf("%d %q %q %v", code, stdout, stderr, err)
	}
	if metadata.Name != "hsm" || metadata.Version != "1.2.3" || metadata.Description == "" || metadata.URL == "" ||
		metadata.SupportedContractVersions[0] != "1.0" || metadata.Capabilities[0] != "SIGNATURE_GENERATOR.RAW" {
		t.Errorf("%+v", metadata)
	}
	if code, stdout, _ := serve(t.Context(), t, "version", nil); code != 0 || stdout != "notation-hsm 1.2.3\n" {
		t.Errorf("the version is %d %q", code, stdout)
	}
}

// TestGenerateSignature describes a key and signs with it, as Notation asks for it.
func TestGenerateSignature(t *testing.T) {
	t.Parallel()
	module := keystoretest.New("signing")
	spec, _ := key.ParseSpec("EC-256")
	private, err := keystoretest.NewKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	module.Key(t, "signing", "release", private, key.Sign)
	root := softhsmtest.NewCA(t, "root", nil)
	chain := []*x509.Certificate{root.Issue(t, softhsmtest.Template("release"), private.Public()), root.Cert}
	module.Certificate(t, "signing", "release", chain[0])
	module.Certificate(t, "signing", "root", chain[1])

	var described contract.DescribeKeyResponse
	code, stdout, stderr := serveWith(t.Context(), t, module.Keystore(), "describe-key", request(t, nil))
	if err := json.Unmarshal([]byte(stdout), &described); err != nil || code != 0 || described.KeySpec != "EC-256" ||
		described.KeyID != "pkcs11:token=signing;object=release" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	var made contract.GenerateSignatureResponse
	code, stdout, stderr = serveWith(t.Context(), t, module.Keystore(), "generate-signature", request(t, nil))
	if err := json.Unmarshal([]byte(stdout), &made); err != nil || code != 0 ||
		made.SigningAlgorithm != contract.SignatureAlgorithmECDSA_SHA256 || len(made.Signature) != 64 {
		t.Fatalf("%d %q %q", code, stdout, stderr)
	}
	digest := sha256.Sum256([]byte("payload"))
	r, s := new(big.Int).SetBytes(made.Signature[:32]), new(big.Int).SetBytes(made.Signature[32:])
	if !ecdsa.Verify(private.Public().(*ecdsa.PublicKey), digest[:], r, s) {
		t.Error("the signature is not over the payload")
	}
	if !slices.EqualFunc(made.CertificateChain, chain, func(der []byte, cert *x509.Certificate) bool {
		return bytes.Equal(der, cert.Raw)
	}) {
		t.Errorf("the chain has %d certificates", len(made.CertificateChain))
	}
}

// TestRefusedRequests says what is wrong with a request, with the contract's code for it.
func TestRefusedRequests(t *testing.T) {
	t.Parallel()
	const describe, sign, invalid = "describe-key", "generate-signature", "VALIDATION_ERROR"
	text := func(text string) io.Reader { return strings.NewReader(text) }
	with := func(name string, value any) io.Reader { return request(t, map[string]any{name: value}) }
	for name, c := range map[string]struct {
		command string
		request io.Reader
		code    string
		words   string
	}{
		"empty":            {describe, text(" \n"), invalid, "the request is empty"},
		"no JSON":          {describe, text("sign"), invalid, "is not valid JSON"},
		"wrong type":       {describe, text(`{"keyId":1}`), invalid, `\"keyId\" has the wrong type: number`},
		"no key":           {describe, with("keyId", nil), invalid, "incomplete: keyId cannot be empty"},
		"no payload":       {sign, with("payload", nil), invalid, "incomplete: payload"},
		"other spec":       {sign, with("keySpec", "EC-1"), invalid, "EC-1"},
		"other hash":       {sign, with("hashAlgorithm", "SHA-512"), invalid, "do not sign with"},
		"unknown setting":  {describe, with("pluginConfig", map[string]string{"x": "y"}), invalid, "unknown setting"},
		"other command":    {"generate-envelope", request(t, nil), invalid, "the plugin has no command"},
		"contract 2.0":     {describe, with("contractVersion", "2.0"), "UNSUPPORTED_CONTRACT_VERSION", `\"2.0\"`},
		"sign, 2.0":        {sign, with("contractVersion", "2.0"), "UNSUPPORTED_CONTRACT_VERSION", `\"2.0\"`},
		"unreadable stdin": {describe, brokenPipe{}, invalid, "cannot read the request"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := serve(t.Context(), t, c.command, c.request)
			if code != 1 || stdout != "" || !strings.Contains(stderr, `"errorCode":"`+c.code+`"`) ||
				!strings.Contains(stderr, c.words) || !strings.Contains(stderr, `"hint":"`) {
				t.Errorf("%d %q %q", code, stdout, stderr)
			}
		})
	}
	code, _, stderr := serve(t.Context(), t, sign, request(t, nil))
	if code != 1 || !strings.Contains(stderr, "there is no key") {
		t.Errorf("with a key that does not exist: %d %q", code, stderr)
	}
	if !IsCommand("verify-signature") || !IsCommand("generate-envelope") || !IsCommand("describe-key") ||
		IsCommand("key") {
		t.Error("the contract's commands are not known")
	}
}

type brokenPipe struct{}

var errBroken = errors.New("broken")

func (brokenPipe) Read([]byte) (int, error)  { return 0, errBroken }
func (brokenPipe) Write([]byte) (int, error) { return 0, errBroken }

// TestBrokenOutput fails when the response cannot be written, with an error where that can be.
func TestBrokenOutput(t *testing.T) {
	t.Parallel()
	var errs bytes.Buffer
	if code := (Plugin{}).Serve(t.Context(), "version", nil, brokenPipe{}, &errs); code != 1 ||
		!strings.Contains(errs.String(), "cannot write the response: broken") {
		t.Errorf("%d %q", code, errs.String())
	}
	if code := (Plugin{}).Serve(t.Context(), "version", nil, brokenPipe{}, brokenPipe{}); code != 1 {
		t.Error("it succeeds")
	}
}

// TestErrorCodes gives each kind of failure the contract's code, and has the hint in the message too, which is all that
// Notation shows.
func TestErrorCodes(t *testing.T) {
	t.Parallel()
	for kind, code := range map[failure.Kind]string{
		failure.Invalid: "VALIDATION_ERROR", failure.NotFound: "VALIDATION_ERROR", failure.Denied: "ACCESS_DENIED",
		failure.Throttled: "THROTTLED", failure.Timeout: "TIMEOUT", failure.Internal: "ERROR",
		failure.Unavailable: "ERROR", failure.Conflict: "ERROR",
		failure.Unsupported: "ERROR", // what a module cannot do has nothing to do with the contract's version
	} {
		f := failure.New(kind, "cannot sign").WithHint("try again")
		f.CKR = "CKR_GENERAL_ERROR"
		var shown struct {
			ErrorCode, ErrorMessage string
			ErrorMetadata           map[string]string
		}
		if err := json.Unmarshal(FormatError(f), &shown); err != nil || shown.ErrorCode != code ||
			shown.ErrorMessage != "cannot sign (CKR_GENERAL_ERROR). Hint: try again" ||
			shown.ErrorMetadata["ckr"] != "CKR_GENERAL_ERROR" || shown.ErrorMetadata["hint"] != "try again" {
			t.Errorf("kind %v: %+v, %v", kind, shown, err)
		}
	}
}
