package kms

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/common"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const (
	byCosign      = "let cosign start this program, with --key hsm://KEY"
	anotherCosign = "use a version of cosign that supports version " + common.ProtocolVersion +
		" of the KMS plugin protocol"
)

// A request is what cosign passes in the arguments. The pointers of PluginArgs are set.
type request struct {
	*common.PluginArgs
	rpc     []common.RPCOptions   // of the key and of the method
	message common.MessageOptions // of a message to sign or to verify
}

// requestLimits bound a request. Its longest values are the name of the key and a signature.
var requestLimits = bound.Limits{Bytes: 128 << 10, Depth: bound.Depth, Elements: 100}

// parse reads a request from the arguments: the version of the protocol, and JSON. It fails with Unsupported for
// another version, and with Invalid for everything else that is not a request.
func parse(args []string) (*request, error) {
	if len(args) != 2 {
		return nil, failure.New(failure.Invalid, "cannot read the request: there are %d arguments, not 2", len(args)).
			WithHint(byCosign)
	}
	if err := checkVersion(args[0]); err != nil {
		return nil, err
	}
	r := &request{PluginArgs: &common.PluginArgs{}}
	err := bound.JSON([]byte(args[1]), requestLimits)
	if err == nil {
		err = json.Unmarshal([]byte(args[1]), r.PluginArgs)
	}
	if err == nil && (r.InitOptions == nil || r.MethodArgs == nil) {
		err = errors.New("it has no initOptions or no methodName")
	}
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint(byCosign)
	}
	if options := r.InitOptions.RPCOptions; options != nil {
		r.rpc = append(r.rpc, *options)
	}
	if args := r.PublicKey; args != nil && args.PublicKeyOptions != nil {
		r.rpc = append(r.rpc, args.PublicKeyOptions.RPCOptions)
	}
	if args := r.SignMessage; args != nil && args.SignOptions != nil {
		r.rpc, r.message = append(r.rpc, args.SignOptions.RPCOptions), args.SignOptions.MessageOptions
	}
	if args := r.VerifySignature; args != nil && args.VerifyOptions != nil {
		r.rpc, r.message = append(r.rpc, args.VerifyOptions.RPCOptions), args.VerifyOptions.MessageOptions
	}
	return r, checkVersion(r.InitOptions.ProtocolVersion)
}

func checkVersion(version string) error {
	if version != common.ProtocolVersion {
		return failure.New(failure.Unsupported, "version %q of the KMS plugin protocol is not supported", version).
			WithHint(anotherCosign)
	}
	return nil
}

// deadline returns the earliest deadline of the request, or zero without one.
func (r *request) deadline() (earliest time.Time) {
	given := []*time.Time{r.InitOptions.CtxDeadline}
	for _, options := range r.rpc {
		given = append(given, options.CtxDeadline)
	}
	for _, t := range given {
		if t != nil && (earliest.IsZero() || t.Before(earliest)) {
			earliest = *t
		}
	}
	return earliest
}

// keyVersion returns the version of the key that the request asks for, or "".
func (r *request) keyVersion() string {
	for _, options := range r.rpc {
		if options.KeyVersion != nil && *options.KeyVersion != "" {
			return *options.KeyVersion
		}
	}
	return ""
}

// messageLimit is the length of the longest message that is read, in bytes. For an image, cosign has some hundred bytes
// signed; 'cosign sign-blob' has whole files signed.
const messageLimit = 256 << 20

// readMessage reads a message of up to limit bytes. It fails with Timeout when the message does not end.
func readMessage(ctx context.Context, stdin io.Reader, limit int64) (message []byte, err error) {
	late := func() error {
		return failure.New(failure.Timeout, "the message did not end within %s", config.DefaultTimeout).WithHint(byCosign)
	}
	err = deadline.Step(ctx, config.DefaultTimeout, late, func() (err error) {
		message, err = io.ReadAll(io.LimitReader(stdin, limit+1))
		return err
	})
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the message: %w", err).WithHint(byCosign)
	}
	if int64(len(message)) > limit {
		return nil, failure.New(failure.Invalid, "the message is longer than %d bytes", limit).
			WithHint("sign a file of digests, such as sha256sum writes")
	}
	return message, nil
}
