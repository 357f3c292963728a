package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	contract "github.com/notaryproject/notation-plugin-framework-go/plugin"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// The framework's own command line is not used here: it reads requests of any length, does not say what is wrong with
// one, answers an unknown command in plain text, and ends the process in the middle, past the closing of sessions.

// requestLimit is the longest request in bytes. Payloads are descriptors of some hundred bytes; hashing happens on
// them, not on what they describe.
const requestLimit = 4 << 20

// requestLimits are those of a request's structure: an object with a payload, and plugin config with a value for each
// setting.
var requestLimits = bound.Limits{Bytes: requestLimit, Depth: bound.Depth, Elements: 1000}

var verbs = []string{
	string(contract.CommandGetMetadata), string(contract.CommandDescribeKey), string(contract.CommandGenerateSignature),
	string(contract.Version),
}

// IsVerb reports whether an argument is a command of the contract. Those that this plugin does not have are among them,
// for their callers expect an answer in the contract's form too.
func IsVerb(arg string) bool {
	return slices.Contains(verbs, arg) || arg == string(contract.CommandGenerateEnvelope) ||
		arg == string(contract.CommandVerifySignature)
}

// Serve runs one command of the contract: a JSON request on stdin, a JSON response on stdout, or one JSON error object
// on stderr. It returns the exit code.
func (p Plugin) Serve(ctx context.Context, verb string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	response, err := p.answer(ctx, verb, stdin)
	if err != nil {
		slog.Error("failed", "verb", verb, "error", err)
		return fail(stderr, err)
	}
	slog.Debug("done", "verb", verb)
	if _, err := stdout.Write(response); err != nil {
		return fail(stderr, fmt.Errorf("can't write the response: %w", err))
	}
	return 0
}

func fail(stderr io.Writer, err error) int {
	if _, err := stderr.Write(FormatError(err)); err != nil {
		slog.Error("can't write the error", "error", err) // nobody is left to tell
	}
	return 1
}

// answer runs the command. Only those that may wait for a module are a watched job: the metadata is wanted in every
// run.
func (p Plugin) answer(ctx context.Context, verb string, stdin io.Reader) (response []byte, err error) {
	switch contract.Command(verb) {
	case contract.CommandGetMetadata: // its request says nothing that matters, so a missing one is no error
		return marshal(p.GetMetadata(ctx, nil))
	case contract.CommandDescribeKey:
		return watched(ctx, stdin, &contract.DescribeKeyRequest{}, p.DescribeKey)
	case contract.CommandGenerateSignature:
		return watched(ctx, stdin, &contract.GenerateSignatureRequest{}, p.GenerateSignature)
	case contract.Version:
		return fmt.Appendf(nil, "notation-hsm %s\n", p.Version), nil
	}
	return nil, failure.New(failure.Invalid, "the plugin has no command %q", verb).
		WithHint("known are: " + strings.Join(verbs, ", "))
}

// watched reads a request and does what it asks for, as one job that is abandoned when a step of it hangs.
func watched[Q contract.Request, R any](ctx context.Context, stdin io.Reader, request Q,
	do func(context.Context, Q) (*R, error)) (response []byte, err error) {
	err = deadline.Run(ctx, func(ctx context.Context) error {
		if err := read(ctx, stdin, request); err != nil {
			return err
		}
		answer, err := marshal(do(ctx, request))
		response = answer
		return err
	})
	return response, err
}

func marshal[T any](response *T, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return json.Marshal(response)
}

// read reads one request and checks it by the contract's rules.
func read(ctx context.Context, stdin io.Reader, request contract.Request) error {
	data, err := readAll(ctx, stdin)
	if err != nil {
		return err
	}
	const hint = "Notation writes the request; to try the plugin by hand see docs/plugin.md"
	if len(strings.TrimSpace(string(data))) == 0 {
		return failure.New(failure.Invalid, "the request is empty").WithHint(hint)
	}
	if err := bound.JSON(data, requestLimits); err != nil {
		return failure.New(failure.Invalid, "the request is not valid JSON: %w", err).WithHint(hint)
	}
	if err := json.Unmarshal(data, request); err != nil {
		var wrongType *json.UnmarshalTypeError
		if errors.As(err, &wrongType) {
			return failure.New(failure.Invalid, "the request's %q has the wrong type: %s", wrongType.Field,
				wrongType.Value).
				WithHint(hint)
		}
		return failure.New(failure.Invalid, "the request is not valid JSON: %w", err).WithHint(hint)
	}
	if err := request.Validate(); err != nil {
		var plain *contract.Error
		if errors.As(err, &plain) {
			return failure.New(failure.Invalid, "the request is incomplete: %s", plain.Message).WithHint(hint)
		}
		return failure.New(failure.Invalid, "the request is incomplete: %w", err).WithHint(hint)
	}
	return nil
}

// readAll reads a request to its end, but not for ever: whoever holds the pipe open would hang the pipeline.
func readAll(ctx context.Context, stdin io.Reader) (data []byte, err error) {
	late := func() error {
		return failure.New(failure.Timeout, "the request did not end within %s", config.DefaultTimeout).
			WithHint("close the plugin's standard input after the request")
	}
	err = deadline.Step(ctx, config.DefaultTimeout, late, func() (err error) {
		data, err = io.ReadAll(io.LimitReader(stdin, requestLimit+1))
		return err
	})
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the request: %w", err)
	}
	if len(data) > requestLimit {
		return nil, failure.New(failure.Invalid, "the request is longer than %d bytes", requestLimit).
			WithHint("a payload is a descriptor of some hundred bytes, not the artifact")
	}
	return data, nil
}

// codes are the contract's error codes of the kinds. Kinds that the contract has no code for are generic errors.
var codes = map[failure.Kind]contract.ErrorCode{
	failure.Internal:    contract.ErrorCodeGeneric,
	failure.Invalid:     contract.ErrorCodeValidation,
	failure.NotFound:    contract.ErrorCodeValidation,
	failure.Denied:      contract.ErrorCodeAccessDenied,
	failure.Conflict:    contract.ErrorCodeGeneric,
	failure.Unavailable: contract.ErrorCodeGeneric,
	failure.Throttled:   contract.ErrorCodeThrottled,
	failure.Timeout:     contract.ErrorCodeTimeout,
	failure.Unsupported: contract.ErrorCodeUnsupportedContractVersion,
}

// FormatError returns an error as the contract's JSON. Notation shows its message alone, so the hint is a part of that
// as well.
func FormatError(err error) []byte {
	f := failure.From(err)
	e := contract.NewError(codes[f.Kind], f.Error())
	e.Metadata = map[string]string{}
	if f.CKR != "" {
		e.Metadata["ckr"] = f.CKR
	}
	if f.Hint != "" {
		e.Message += ". Hint: " + f.Hint
		e.Metadata["hint"] = f.Hint
	}
	return []byte(e.Error())
}
