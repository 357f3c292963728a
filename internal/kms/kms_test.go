package kms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/common"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

// reference names the key of fixture.
const reference = "pkcs11:token=signing;object=release"

// fixture returns a module with a key of a spec.
func fixture(t testing.TB, name string) (*keystoretest.Module, crypto.Signer) {
	t.Helper()
	t.Setenv("NOTATION_HSM_CONFIG", "/dev/null")
	t.Setenv("NOTATION_HSM_PIN", keystoretest.PIN)
	t.Setenv("NOTATION_HSM_MODULE_PATH", keystoretest.Path)
	spec, err := key.ParseSpec(name)
	if err != nil {
		t.Fatal(err)
	}
	private, err := keystoretest.NewKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	module := keystoretest.New("signing")
	module.Key(t, "signing", "release", private, key.Sign)
	return module, private
}

// ask returns a request for the fixture's key, as cosign makes it.
func ask(method common.MethodArgs) *common.PluginArgs {
	noVersion := ""
	return &common.PluginArgs{MethodArgs: &method, InitOptions: &common.InitOptions{
		ProtocolVersion: "v1", KeyResourceID: reference, HashFunc: crypto.SHA256,
		RPCOptions: &common.RPCOptions{KeyVersion: &noVersion},
	}}
}

func signing(options common.MessageOptions) *common.PluginArgs {
	return ask(common.MethodArgs{MethodName: common.SignMessageMethodName,
		SignMessage: &common.SignMessageArgs{SignOptions: &common.SignOptions{MessageOptions: options}}})
}

func verifying(signature []byte, options common.MessageOptions) *common.PluginArgs {
	return ask(common.MethodArgs{MethodName: common.VerifySignatureMethodName,
		VerifySignature: &common.VerifySignatureArgs{Signature: signature,
			VerifyOptions: &common.VerifyOptions{MessageOptions: options}}})
}

// serve serves a request and returns the response, which is one JSON object and nothing else.
func serve(t *testing.T, m *keystoretest.Module, r *common.PluginArgs, message string) common.PluginResp {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return serveText(t, m, strings.NewReader(message), "v1", string(text))
}

func serveText(t *testing.T, m *keystoretest.Module, stdin io.Reader, args ...string) (response common.PluginResp) {
	t.Helper()
	var out bytes.Buffer
	code := Serve(t.Context(), m.Keystore(), args, stdin, &out)
	decoder := json.NewDecoder(&out)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&response); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(io.MultiReader(decoder.Buffered(), &out)); len(rest) > 0 {
		t.Errorf("%q follows the response", rest)
	}
	if (code == 0) != (response.ErrorMessage == "") || code > 1 {
		t.Errorf("exit code %d with %+v", code, response)
	}
	if m.OpenStores() != 0 {
		t.Error("a store is left open")
	}
	return response
}

func sumOf(hash crypto.Hash, message string) *[]byte {
	h := hash.New()
	h.Write([]byte(message))
	sum := h.Sum(nil)
	return &sum
}

// signed reports whether a signature is one of a message, as the standard library has it.
func signed(public crypto.PublicKey, hash crypto.Hash, message string, signature []byte) bool {
	switch p := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, hash, *sumOf(hash, message), signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, *sumOf(hash, message), signature)
	}
	return false
}

// TestSign signs and verifies with each kind of key, with the hash that the request says, in each way to say it.
func TestSign(t *testing.T) {
	const message = `{"critical":{}}`
	sha512 := crypto.SHA512
	for _, spec := range []string{"RSA-2048", "EC-256", "EC-384", "EC-521"} {
		module, private := fixture(t, spec)
		for name, c := range map[string]struct {
			options common.MessageOptions
			hash    crypto.Hash
		}{
			"the hash of the key":     {common.MessageOptions{}, crypto.SHA256},
			"the hash of a digest":    {common.MessageOptions{Digest: sumOf(crypto.SHA384, message)}, crypto.SHA384},
			"the hash of the message": {common.MessageOptions{HashFunc: &sha512}, crypto.SHA512},
			"both": {common.MessageOptions{HashFunc: &sha512, Digest: sumOf(crypto.SHA512, message)},
				crypto.SHA512},
		} {
			response := serve(t, module, signing(c.options), message)
			if response.SignMessage == nil {
				t.Errorf("%s, %s: %s", spec, name, response.ErrorMessage)
				continue
			}
			signature := response.SignMessage.Signature
			if !signed(private.Public(), c.hash, message, signature) {
				t.Errorf("%s, %s: the signature does not verify", spec, name)
			}
			logins := module.Calls("Login")
			if r := serve(t, module, verifying(signature, c.options), message); r.VerifySignature == nil {
				t.Errorf("%s, %s: %s", spec, name, r.ErrorMessage)
			}
			r := serve(t, module, verifying(signature, common.MessageOptions{HashFunc: c.options.HashFunc}), message+" ")
			if r.VerifySignature != nil || !strings.Contains(r.ErrorMessage, "does not verify") {
				t.Errorf("%s, %s: the signature verifies for another message: %+v", spec, name, r)
			}
			digest := common.MessageOptions{HashFunc: c.options.HashFunc, Digest: sumOf(c.hash, message)}
			if r := serve(t, module, verifying(signature, digest), ""); r.VerifySignature == nil {
				t.Errorf("%s, %s: the digest alone: %s", spec, name, r.ErrorMessage)
			}
			digest.Digest = sumOf(c.hash, message+" ")
			for _, message := range []string{"", message, message + " "} {
				if r := serve(t, module, verifying(signature, digest), message); r.VerifySignature != nil {
					t.Errorf("%s, %s: the signature verifies for another digest", spec, name)
				}
			}
			if module.Calls("Login") != logins {
				t.Error("verifying logs in")
			}
		}
	}
}

// TestVerifyDefaultHash verifies a signature with the hash of the key's curve although the request asks for SHA-256, as
// cosign does of what it has signed so.
func TestVerifyDefaultHash(t *testing.T) {
	const message = "message"
	for name, hash := range map[string]crypto.Hash{"EC-384": crypto.SHA384, "EC-521": crypto.SHA512} {
		module, _ := fixture(t, name)
		response := serve(t, module, signing(common.MessageOptions{Digest: sumOf(hash, message)}), message)
		if r := serve(t, module, verifying(response.SignMessage.Signature, common.MessageOptions{}),
			message); r.VerifySignature == nil {
			t.Errorf("%s: %s", name, r.ErrorMessage)
		}
	}
}

// TestPublicKey shows the public key, without a login.
func TestPublicKey(t *testing.T) {
	for _, name := range []string{"RSA-2048", "EC-256"} {
		module, private := fixture(t, name)
		response := serve(t, module, ask(common.MethodArgs{MethodName: common.PublicKeyMethodName,
			PublicKey: &common.PublicKeyArgs{PublicKeyOptions: &common.PublicKeyOptions{}}}), "")
		if response.PublicKey == nil {
			t.Fatal(response.ErrorMessage)
		}
		want, err := x509.MarshalPKIXPublicKey(private.Public())
		if err != nil {
			t.Fatal(err)
		}
		block, rest := pem.Decode(response.PublicKey.PublicKeyPEM)
		if block == nil || block.Type != "PUBLIC KEY" || len(rest) > 0 || !bytes.Equal(block.Bytes, want) {
			t.Errorf("%s", response.PublicKey.PublicKeyPEM)
		}
		if module.Calls("Login") != 0 {
			t.Error("it logs in")
		}
	}
}

// TestAlgorithms answers what needs no key, and refuses to create one.
func TestAlgorithms(t *testing.T) {
	module := keystoretest.New("signing")
	r := serve(t, module, ask(common.MethodArgs{MethodName: common.DefaultAlgorithmMethodName}), "")
	if r.DefaultAlgorithm == nil || r.DefaultAlgorithm.DefaultAlgorithm != "EC-256" {
		t.Errorf("%+v", r)
	}
	r = serve(t, module, ask(common.MethodArgs{MethodName: common.SupportedAlgorithmsMethodName}), "")
	if r.SupportedAlgorithms == nil ||
		strings.Join(r.SupportedAlgorithms.SupportedAlgorithms, " ") != "RSA-2048 RSA-3072 RSA-4096 EC-256 EC-384 EC-521" {
		t.Errorf("%+v", r)
	}
	r = serve(t, module, ask(common.MethodArgs{MethodName: common.CreateKeyMethodName}), "")
	if !strings.Contains(r.ErrorMessage, "notation-hsm key generate") {
		t.Errorf("%+v", r)
	}
	if module.Calls("Open") != 0 {
		t.Error("it opens the token")
	}
}

// TestRefusals answers each wrong request by one error that says what is wrong, and signs nothing.
func TestRefusals(t *testing.T) {
	const message = "message"
	module, _ := fixture(t, "EC-256")
	sha1, sha384 := crypto.SHA1, crypto.SHA384
	version, bare, past := "2", []byte(strings.Repeat("d", 32)), time.Unix(1, 0)
	change := func(change func(*common.PluginArgs)) *common.PluginArgs {
		r := signing(common.MessageOptions{})
		change(r)
		return r
	}
	for _, c := range []struct {
		request *common.PluginArgs
		message string
		words   string
	}{
		{signing(common.MessageOptions{Digest: &bare}), "", "not that of the message"},
		{signing(common.MessageOptions{Digest: &bare}), message, "not that of the message"},
		{signing(common.MessageOptions{Digest: sumOf(crypto.SHA256, message), HashFunc: &sha1}), message, "hash 3"},
		{signing(common.MessageOptions{HashFunc: &sha1}), message, "hash 3"},
		{signing(common.MessageOptions{Digest: sumOf(crypto.SHA256, message), HashFunc: &sha384}), message, "32 bytes"},
		{signing(common.MessageOptions{Digest: &[]byte{}}), message, "hash 0"},
		{change(func(r *common.PluginArgs) { r.InitOptions.HashFunc = 1 << 20 }), message, "hash 1048576"},
		{change(func(r *common.PluginArgs) { r.InitOptions.KeyResourceID = "" }), message, "names no key"},
		{change(func(r *common.PluginArgs) { r.InitOptions.KeyResourceID = "unknown" }), message, `unknown key "unknown"`},
		{change(func(r *common.PluginArgs) { r.InitOptions.KeyResourceID += "?pin-value=1" }), message, "carries a PIN"},
		{change(func(r *common.PluginArgs) { r.InitOptions.KeyResourceID += "?module-path=/other.so" }), message,
			"/other.so"},
		{change(func(r *common.PluginArgs) { r.InitOptions.KeyResourceID += "x" }), message, "there is no key"},
		{change(func(r *common.PluginArgs) { r.InitOptions.RPCOptions.KeyVersion = &version }), message, `version "2"`},
		{change(func(r *common.PluginArgs) { r.InitOptions.ProtocolVersion = "v2" }), message, `version "v2"`},
		{change(func(r *common.PluginArgs) { r.MethodName = "decrypt" }), message, `unknown method "decrypt"`},
		{change(func(r *common.PluginArgs) { r.MethodName = common.VerifySignatureMethodName }), message, "no signature"},
		{change(func(r *common.PluginArgs) { r.InitOptions.CtxDeadline = &past }), message, "deadline has passed"},
		{change(func(r *common.PluginArgs) { r.SignMessage.SignOptions.RPCOptions.CtxDeadline = &past }), message,
			"deadline has passed"},
	} {
		r := serve(t, module, c.request, c.message)
		if !strings.Contains(r.ErrorMessage, c.words) {
			t.Errorf("%q does not say %q", r.ErrorMessage, c.words)
		}
	}
	for _, c := range []struct {
		args  []string
		words string
	}{
		{nil, "0 arguments"}, {[]string{"v1"}, "1 arguments"}, {[]string{"v2", "{}"}, `version "v2"`},
		{[]string{"v1", ""}, "cannot read"}, {[]string{"v1", "{"}, "cannot read"}, {[]string{"v1", "{}"}, "no initOptions"},
		{[]string{"v1", `{"initOptions":{}}`}, "no methodName"},
		{[]string{"v1", `{"methodName":"signMessage"}`}, "no initOptions"},
		{[]string{"v1", `{"initOptions":7}`}, "cannot read"}, {[]string{"v1", strings.Repeat("[", 1000)}, "deeper than 16"},
		{[]string{"v1", "[" + strings.Repeat("0,", 1000) + "0]"}, "more than 100 elements"},
		{[]string{"v1", `"` + strings.Repeat("x", 128<<10) + `"`}, "more than 131072"},
		{[]string{"v1", `{"methodName":"publicKey","methodName":"signMessage"}`}, "twice"},
	} {
		if r := serveText(t, module, strings.NewReader(message), c.args...); !strings.Contains(r.ErrorMessage, c.words) {
			t.Errorf("%.80q: %q does not say %q", c.args, r.ErrorMessage, c.words)
		}
	}
	if module.Calls("Sign") != 0 {
		t.Error("it has signed")
	}
}

// TestModuleFailures passes on what the module refuses, and returns no signature that does not verify.
func TestModuleFailures(t *testing.T) {
	module, _ := fixture(t, "EC-256")
	other, err := keystoretest.NewKey(key.Specs[3])
	if err != nil {
		t.Fatal(err)
	}
	module.Key(t, "signing", "other", wrongSigner{other}, key.Sign)
	r := signing(common.MessageOptions{})
	r.InitOptions.KeyResourceID = "pkcs11:token=signing;object=other"
	if response := serve(t, module, r, "message"); !strings.Contains(response.ErrorMessage, "does not verify") {
		t.Errorf("%+v", response)
	}
	refusal := failure.New(failure.Denied, "the module refuses").WithHint("ask its owner")
	refusal.CKR = "CKR_FUNCTION_REJECTED"
	module.Fail("Sign", refusal)
	response := serve(t, module, signing(common.MessageOptions{}), "message")
	if response.ErrorMessage != "the module refuses (CKR_FUNCTION_REJECTED). Hint: ask its owner" {
		t.Errorf("%q", response.ErrorMessage)
	}
	t.Setenv("NOTATION_HSM_PIN", "0000")
	if response := serve(t, module, signing(common.MessageOptions{}), "message"); !strings.Contains(response.ErrorMessage,
		"CKR_PIN_INCORRECT") {
		t.Errorf("%q", response.ErrorMessage)
	}
}

// wrongSigner is a key of a module that signs something else.
type wrongSigner struct{ crypto.Signer }

func (s wrongSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	digest[0]++
	return s.Signer.Sign(random, digest, opts)
}

// TestAlias names the key by an alias of the config file.
func TestAlias(t *testing.T) {
	module, private := fixture(t, "EC-256")
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("keys:\n  the-release:\n    uri: "+reference+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTATION_HSM_CONFIG", file)
	r := signing(common.MessageOptions{})
	r.InitOptions.KeyResourceID = "the-release"
	response := serve(t, module, r, "message")
	if response.SignMessage == nil ||
		!signed(private.Public(), crypto.SHA256, "message", response.SignMessage.Signature) {
		t.Errorf("%+v", response)
	}
}

// TestLongMessage reads no more of a message than its limit and one byte.
func TestLongMessage(t *testing.T) {
	message := strings.NewReader(strings.Repeat("x", 1000))
	if _, err := readMessage(t.Context(), message, 100); !failure.Is(err, failure.Invalid) || message.Len() != 1000-101 {
		t.Errorf("%v with %d bytes left", err, message.Len())
	}
	got, err := readMessage(t.Context(), strings.NewReader("0123456789"), 10)
	if err != nil || string(got) != "0123456789" {
		t.Errorf("%q, %v", got, err)
	}
}

// FuzzRequest answers anything in the arguments by one JSON object, and signs only the message.
func FuzzRequest(f *testing.F) {
	for _, r := range []*common.PluginArgs{signing(common.MessageOptions{}), verifying([]byte("x"),
		common.MessageOptions{}),
		ask(common.MethodArgs{MethodName: common.PublicKeyMethodName, PublicKey: &common.PublicKeyArgs{}}),
		ask(common.MethodArgs{MethodName: common.CreateKeyMethodName})} {
		text, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text), "message")
	}
	module, private := fixture(f, "EC-256")
	f.Fuzz(func(t *testing.T, request, message string) {
		response := serveText(t, module, strings.NewReader(message), "v1", request)
		if s := response.SignMessage; s != nil && !signed(private.Public(), crypto.SHA256, message, s.Signature) &&
			!signed(private.Public(), crypto.SHA384, message, s.Signature) &&
			!signed(private.Public(), crypto.SHA512, message, s.Signature) {
			t.Errorf("it has signed something else than %q", message)
		}
		if strings.HasPrefix(response.ErrorMessage, "internal error") {
			t.Error(response.ErrorMessage)
		}
	})
}
