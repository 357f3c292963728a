// Package kms answers requests of sigstore's KMS plugin protocol, version 1: with it, cosign signs with keys in a
// module.
//
// Cosign starts a process for each call. The request is JSON in the arguments, with the message to be signed on
// standard input; the response is JSON on standard output. The protocol is described in
// pkg/signature/kms/cliplugin/README.md of github.com/sigstore/sigstore, whose types of requests and responses are used
// here. Its handler is not: it reads messages of any length, and has no place for a hint.
package kms

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"

	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/common"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// origin is where the name of the key comes from. Programs that link cosign take it from policies and other data too.
var origin = config.Stored("cosign's request")

// Serve answers the request in args, which are the program's arguments without its name. It writes one JSON object to
// stdout, the response or the failure, and returns the exit code.
func Serve(ctx context.Context, ks *keystore.Keystore, args []string, stdin io.Reader, stdout io.Writer) int {
	var text []byte
	err := deadline.Run(ctx, func(ctx context.Context) error {
		r, err := parse(args)
		if err != nil {
			return err
		}
		response, err := answer(ctx, ks, r, stdin)
		if err != nil {
			return err
		}
		text, err = json.Marshal(response)
		return err
	})
	code := 0
	if err != nil {
		slog.Error("failed", "error", err)
		text, code = FormatError(err), 1
	}
	if _, err := stdout.Write(text); err != nil {
		slog.Error("cannot write the response", "error", err)
		return 1
	}
	return code
}

// FormatError returns an error as a response of the protocol. Its message ends with the hint, since cosign shows the
// message alone.
func FormatError(err error) []byte {
	f := failure.From(err)
	message := f.Error()
	if f.Hint != "" {
		message += ". Hint: " + f.Hint
	}
	text, err := json.Marshal(common.PluginResp{ErrorMessage: message})
	if err != nil {
		return []byte(`{"errorMessage":"internal error"}`) // Marshal does not fail for a string
	}
	return text
}

// defaultAlgorithm is the algorithm that cosign asks createKey for.
const defaultAlgorithm = "EC-256"

// answer runs the method that a request names.
func answer(ctx context.Context, ks *keystore.Keystore, r *request, stdin io.Reader) (*common.PluginResp, error) {
	switch r.MethodName {
	case common.DefaultAlgorithmMethodName:
		return &common.PluginResp{DefaultAlgorithm: &common.DefaultAlgorithmResp{DefaultAlgorithm: defaultAlgorithm}}, nil
	case common.SupportedAlgorithmsMethodName:
		response := &common.SupportedAlgorithmsResp{}
		for _, spec := range key.Specs {
			response.SupportedAlgorithms = append(response.SupportedAlgorithms, string(spec.Name))
		}
		return &common.PluginResp{SupportedAlgorithms: response}, nil
	case common.PublicKeyMethodName:
		return withKey(ctx, ks, r, stdin, publicKey)
	case common.SignMessageMethodName:
		return withKey(ctx, ks, r, stdin, signMessage)
	case common.VerifySignatureMethodName:
		return withKey(ctx, ks, r, stdin, verifySignature)
	case common.CreateKeyMethodName:
		return nil, failure.New(failure.Unsupported, "cannot create a key for cosign").
			WithHint("create it with 'notation-hsm key generate'")
	}
	return nil, failure.New(failure.Unsupported, "unknown method %q", r.MethodName).WithHint(anotherCosign)
}

// A method answers a request for a key. The message, if there is one, is on stdin.
type method func(ctx context.Context, reference *keystore.Reference, r *request, stdin io.Reader) (*common.PluginResp,
	error)

// withKey runs a method with the key that a request names, until the request's deadline.
func withKey(ctx context.Context, ks *keystore.Keystore, r *request, stdin io.Reader, run method) (*common.PluginResp,
	error) {
	if r.InitOptions.KeyResourceID == "" {
		return nil, failure.New(failure.Invalid, "the request names no key").WithHint(`write it after hsm://, as in: ` +
			`--key "hsm://pkcs11:token=signing;object=release"`)
	}
	if version := r.keyVersion(); version != "" {
		return nil, failure.New(failure.Unsupported, "cannot use version %q of the key: keys have no versions", version).
			WithHint("name the key alone")
	}
	reference, err := ks.Resolve(r.InitOptions.KeyResourceID, nil, origin)
	if err != nil {
		return nil, err
	}
	if end := r.deadline(); !end.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end)
		defer cancel()
	}
	response, err := run(ctx, reference, r, stdin)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, failure.New(failure.Timeout, "the request's deadline has passed: %w", err).
			WithHint("give cosign a longer --timeout")
	}
	return response, err
}
