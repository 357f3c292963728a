package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
)

func serve(ctx context.Context, t *testing.T, verb string, stdin io.Reader) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Plugin{Version: "1.2.3"}.Serve(ctx, verb, stdin, &out, &errs)
	return code, out.String(), errs.String()
}

// requestCost is what a request may allocate: the config file and the environment are looked at for each setting.
var requestCost = boundtest.Budget{Bytes: 1 << 20, BytesPerByte: 256}

// FuzzRequest holds that every request ends in one JSON object, a response on standard output or an error on standard
// error, and that none costs more than its size allows.
func FuzzRequest(f *testing.F) {
	// without lists, so that no request names a library or a command of this machine
	f.Setenv("XDG_CONFIG_HOME", f.TempDir())
	for _, seed := range []string{
		"", "{}", "[]", "null",
		`{"contractVersion":"1.0","keyId":"pkcs11:object=a","keySpec":"EC-256","hashAlgorithm":"SHA-256","payload":"aGVsbG8=","pluginConfig":{"module-path":"/none"}}`,
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
	f.Fuzz(func(t *testing.T, verb string, request []byte) {
		var code int
		var stdout, stderr string
		requestCost.Check(t, len(request), func() {
			code, stdout,
				stderr = serve(context.Background(), t, verb, bytes.NewReader(request))
		})
		if code == 0 && (stderr != "" || (verb != "version" && !json.Valid([]byte(stdout)))) {
			t.Errorf("%s %q: %q and %q", verb, request, stdout, stderr)
		}
		if code != 0 && (stdout != "" || !json.Valid([]byte(stderr))) {
			t.Errorf("%s %q: %q and %q", verb, request, stdout, stderr)
		}
	})
}

// TestRequestBounds refuses a request with a structure that no request has, before it is read.
func TestRequestBounds(t *testing.T) {
	for what, request := range map[string]string{
		"nested deeper than 16": `{"pluginConfig":` + strings.Repeat("[", 17) + strings.Repeat("]", 17) + "}",
		"more than 1000":        `{"pluginConfig":[` + strings.Repeat("1,", 1000) + "1]}",
		`\"keyId\" twice`:       `{"keyId":"a","keyId":"b"}`,
	} {
		if code, _, stderr := serve(t.Context(), t, "describe-key", strings.NewReader(request)); code != 1 ||
			!strings.Contains(stderr, what) {
			t.Errorf("%s: %d %q", what, code, stderr)
		}
	}
}

// TestInterruptedRequest ends when the user interrupts, although the other end of the pipe stays open.
func TestInterruptedRequest(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	cancel()
	reader, writer := io.Pipe()
	defer writer.Close()
	code, stdout, stderr := serve(ctx, t, "describe-key", reader)
	if code != 1 || stdout != "" || !strings.Contains(stderr, "interrupted") {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
}

func TestMetadata(t *testing.T) {
	code, stdout, stderr := serve(context.Background(), t, "get-plugin-metadata", strings.NewReader(""))
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
}
