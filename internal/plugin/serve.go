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

// This file takes the place of the framework's command line, which reads requests of any length, does not say what is
// wrong with one, answers an unknown command in plain text, and ends the process before sessions are closed.

// requestLimit is the length of the longest request that is read, in bytes. A payload has some hundred bytes: it names
// the artifact by its digest.
const requestLimit = 4 << 20

// requestLimits bound the structure of a request: an object with a payload, and plugin config with a value for each
// setting.
var requestLimits = bound.Limits{Bytes: requestLimit, Depth: bound.Depth, Elements: 1000}

// commands are those of the contract that the plugin has.
var commands = []string{
	string(contract.CommandGetMetadata), string(contract.CommandDescribeKey), string(contract.CommandGenerateSignature),
	string(contract.Version),
}

// IsCommand reports whether an argument is a command of the contract. It includes those that the plugin does not have:
// their callers expect an error in the contract's form.
func IsCommand(arg string) bool {
	return slices.Contains(commands, arg) || arg == string(contract.CommandGenerateEnvelope) ||
		arg == string(contract.CommandVerifySignature)
}

// Serve runs one command of the contract. It reads a JSON request from stdin, writes a JSON response to stdout or one
// JSON error object to stderr, and returns the exit code.
func (p Plugin) Serve(ctx context.Context, command string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	response, err := p.answer(ctx, command, stdin)
	if err != nil {
		slog.Error("failed", "command", command, "error", err)
		return writeError(stderr, err)
	}
	slog.Debug("done", "command", command)
	if _, err := stdout.Write(response); err != nil {
		return writeError(stderr, failure.New(failure.Internal, "cannot write the response: %w", err).
			WithHint("see why Notation closed the plugin's standard output"))
	}
	return 0
}

// writeError writes an error in the contract's form and returns the exit code.
func writeError(stderr io.Writer, err error) int {
	if _, err := stderr.Write(FormatError(err)); err != nil {
		slog.Error("cannot write the error", "error", err)
	}
	return 1
}

// answer runs a command and returns its response. Commands that wait for the request or for a module run as a job with
// deadlines; get-plugin-metadata, which is part of every signature, waits for neither.
func (p Plugin) answer(ctx context.Context, command string, stdin io.Reader) (response []byte, err error) {
	switch contract.Command(command) {
	case contract.CommandGetMetadata: // the request has nothing to read
		return marshal(p.GetMetadata(ctx, nil))
	case contract.CommandDescribeKey:
		return runJob(ctx, stdin, &contract.DescribeKeyRequest{}, p.DescribeKey)
	case contract.CommandGenerateSignature:
		return runJob(ctx, stdin, &contract.GenerateSignatureRequest{}, p.GenerateSignature)
	case contract.Version:
		return fmt.Appendf(nil, "notation-hsm %s\n", p.Version), nil
	}
	return nil, failure.New(failure.Invalid, "the plugin has no command %q", command).
		WithHint("use one of " + strings.Join(commands, ", "))
}

// runJob reads a request and answers it, as one job that is abandoned when one of its steps exceeds its deadline.
func runJob[Q contract.Request, R any](ctx context.Context, stdin io.Reader, request Q,
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

// marshal returns a response in JSON, or err.
func marshal[T any](response *T, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return json.Marshal(response)
}

// read reads one request and checks that it is complete. It fails with Invalid, or with Timeout.
func read(ctx context.Context, stdin io.Reader, request contract.Request) error {
	data, err := readAll(ctx, stdin)
	if err != nil {
		return err
	}
	const hint = "to write a request by hand, see docs/plugin.md"
	if len(strings.TrimSpace(string(data))) == 0 {
		return failure.New(failure.Invalid, "the request is empty").WithHint(hint)
	}
	if err := bound.JSON(data, requestLimits); err != nil {
		return failure.New(failure.Invalid, "the request is not valid JSON: %w", err).WithHint(hint)
	}
	if err := json.Unmarshal(data, request); err != nil {
		var wrongType *json.UnmarshalTypeError
		if errors.As(err, &wrongType) {
			return failure.New(failure.Invalid, "the request's %q has the wrong type: %s", wrongType.Field, wrongType.Value).
				WithHint(hint)
		}
		return failure.New(failure.Invalid, "the request is not valid JSON: %w", err).WithHint(hint)
	}
	if err := request.Validate(); err != nil {
		text := err.Error() // JSON
		var plain *contract.Error
		if errors.As(err, &plain) {
			text = plain.Message
		}
		return failure.New(failure.Invalid, "the request is incomplete: %s", text).WithHint(hint)
	}
	return nil
}

// readAll reads a request to its end. It fails with Timeout when the end does not come: a caller that keeps the pipe
// open would else block its pipeline.
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
		return nil, failure.New(failure.Invalid, "cannot read the request: %w", err).
			WithHint("write the request to the plugin's standard input")
	}
	if len(data) > requestLimit {
		return nil, failure.New(failure.Invalid, "the request is longer than %d bytes", requestLimit).
			WithHint("send the artifact's descriptor as the payload, not the artifact")
	}
	return data, nil
}

// codes are the contract's error codes by kind: the generic one for kinds that the contract has no code for.
var codes = map[failure.Kind]contract.ErrorCode{
	failure.Internal:    contract.ErrorCodeGeneric,
	failure.Invalid:     contract.ErrorCodeValidation,
	failure.NotFound:    contract.ErrorCodeValidation,
	failure.Denied:      contract.ErrorCodeAccessDenied,
	failure.Conflict:    contract.ErrorCodeGeneric,
	failure.Unavailable: contract.ErrorCodeGeneric,
	failure.Throttled:   contract.ErrorCodeThrottled,
	failure.Timeout:     contract.ErrorCodeTimeout,
	failure.Unsupported: contract.ErrorCodeGeneric,
}

// FormatError returns an error as the contract's JSON object. Its message ends with the hint, since Notation shows the
// message alone.
func FormatError(err error) []byte {
	f := failure.From(err)
	code := codes[f.Kind]
	if errors.Is(err, errVersion) {
		code = contract.ErrorCodeUnsupportedContractVersion
	}
	e := contract.NewError(code, f.Error())
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
