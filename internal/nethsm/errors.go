package nethsm

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// instanceError is why an instance gave no response that counts.
type instanceError struct {
	err             *failure.Error
	sent            bool // the request was written, so it may have taken effect
	mayRecover      bool // so that a later try may succeed
	final           bool // no other instance is tried
	unauthenticated bool // its TLS certificate is not that of the NetHSM
}

// busy returns the error of an instance that responded with 5xx or 429.
func busy(instance string, a *response) *instanceError {
	if a.status == http.StatusTooManyRequests { // no passphrase was checked
		return &instanceError{mayRecover: true, err: failure.New(failure.Throttled,
			"%s accepts no logins for now (429)", instance).
			WithHint("wrong passphrases cause this: find out who sends them, and try again later")}
	}
	return &instanceError{sent: true, mayRecover: true, err: failure.New(failure.Unavailable,
		"%s responded with %d (%s)%s", instance, a.status, http.StatusText(a.status), reason(a)).
		WithHint("read its log; 'notation-hsm nethsm status' shows the instances")}
}

// notOperational returns the error of an instance in a state other than Operational.
func notOperational(instance string, state State) *instanceError {
	failed := func(hint string) *instanceError {
		return &instanceError{err: failure.New(failure.Unavailable, "%s is not operational: its state is %s", instance,
			state).WithHint(hint)}
	}
	switch state {
	case Locked:
		return failed("unlock it with its unlock passphrase: nitropy nethsm unlock, or POST /api/v1/unlock")
	case Unprovisioned:
		return failed("provision it first: nitropy nethsm provision; or check the URL")
	case Failed:
		return failed("see GET /api/v1/health/diagnose: its cluster has lost the quorum, or its storage is damaged")
	}
	f := failed("see 'notation-hsm nethsm status'")
	f.mayRecover = true
	return f
}

// unreachable returns the error of an instance to which no request could be sent, or which sent no response.
func unreachable(instance string, err error) *instanceError {
	var unverified *tls.CertificateVerificationError
	var fingerprint errFingerprint
	var name *net.DNSError
	switch {
	case errors.As(err, &fingerprint):
		return &instanceError{unauthenticated: true, err: failure.New(failure.Denied,
			"cannot verify the TLS certificate of %s: %w", instance, fingerprint).
			WithHint("if the certificate was replaced, get the new fingerprint from whoever manages the NetHSM, and write it " +
				"to fingerprints under nethsm")}
	case errors.As(err, &unverified):
		return &instanceError{unauthenticated: true, err: failure.New(failure.Denied,
			"cannot verify the TLS certificate of %s: %w", instance, unverified.Err).
			WithHint("write ca-file, or fingerprints (sha256:...), under nethsm in the config file: a NetHSM's own " +
				"certificate is self-signed")}
	case errors.As(err, &name) && name.IsNotFound:
		return &instanceError{err: failure.New(failure.Unavailable, "cannot reach %s: there is no host %s", instance,
			name.Name).WithHint("check instances under nethsm")}
	case errors.Is(err, context.DeadlineExceeded):
		return &instanceError{mayRecover: true, err: failure.New(failure.Timeout, "%s did not respond in time", instance).
			WithHint("check the network, or raise timeout")}
	}
	return &instanceError{mayRecover: true, err: failure.New(failure.Unavailable, "cannot reach %s: %w", instance,
		innermost(err)).
		WithHint("check that the NetHSM runs, that its URL is right, and that no firewall is in between")}
}

// innermost returns the innermost error: those around it repeat the URL.
func innermost(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// warnUnauthenticated warns of an instance with the wrong TLS certificate, when another instance has responded.
func (b *Backend) warnUnauthenticated(failed *instanceError) {
	if failed.unauthenticated {
		b.warn(failed.err.What + "; another instance was used. " + failed.err.Hint)
	}
}

func anyMayRecover(failed []*instanceError) bool {
	return slices.ContainsFunc(failed, func(e *instanceError) bool { return e.mayRecover })
}

// allFailed returns the failure of a request when no instance responded. Its kind and hint are those of an instance
// that may recover, if there is one.
func allFailed(what string, failed []*instanceError) error {
	if len(failed) == 1 {
		f := *failed[0].err
		f.What = what + " failed: " + f.What
		return &f
	}
	first := max(0, slices.IndexFunc(failed, func(e *instanceError) bool { return e.mayRecover }))
	var lines strings.Builder
	for _, e := range failed {
		lines.WriteString("\n  " + e.err.What)
	}
	return failure.New(failed[first].err.Kind, "%s failed on all %d instances of the NetHSM:%s", what, len(failed),
		lines.String()).
		WithHint(failed[first].err.Hint)
}

// interrupted returns the failure of a request whose caller's context has ended.
func interrupted(ctx context.Context, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return failure.New(failure.Timeout, "%s failed: the deadline of the caller has passed", what).
			WithHint("try again, or set a later deadline")
	}
	return deadline.Interrupted(what)
}

// errBadRequest is in the failure of a request that the NetHSM rejected with 400.
var errBadRequest = errors.New("bad request")

// want returns the failure of a response with a status other than those, or nil.
func (r request) want(a *response, statuses ...int) error {
	if slices.Contains(statuses, a.status) {
		return nil
	}
	user := "nobody"
	if r.as != nil {
		user = r.as.user
	}
	switch a.status {
	case http.StatusBadRequest:
		f := failure.New(failure.Invalid, "%s failed: the NetHSM rejected the request (400)%s", r.what, reason(a)).
			WithHint("check the mechanisms of the key: it signs and decrypts only with those it was generated with")
		f.Err = errBadRequest
		return f
	case http.StatusForbidden:
		return failure.New(failure.Denied, "%s failed: user %s is not allowed to do this (403)%s", r.what, user, reason(a)).
			WithHint("check the role, the namespace and the tags of the user: see 'notation-hsm nethsm setup --help'")
	case http.StatusNotFound:
		f := failure.New(failure.NotFound, "%s failed: not found for user %s (404)%s", r.what, user, reason(a)).
			WithHint("check the name, and the NetHSM's version")
		if strings.HasPrefix(r.path, "/keys/") {
			f.Hint = "list the keys with 'notation-hsm key list --token nethsm:'; a user in a namespace sees those of that " +
				"namespace alone"
		}
		return f
	case http.StatusConflict:
		return failure.New(failure.Conflict, "%s failed: the name is in use (409)%s", r.what, reason(a)).
			WithHint("choose another name, or use what exists")
	case http.StatusPreconditionFailed:
		return failure.New(failure.Denied, "%s failed: a precondition is not met (412)%s", r.what, reason(a)).
			WithHint("see the NetHSM's documentation of this operation: something must be set first")
	}
	return failure.New(failure.Internal, "%s failed: the NetHSM responded with %d (%s)%s", r.what, a.status,
		http.StatusText(a.status), reason(a)).
		WithHint("check that the URL is that of a NetHSM, and its version")
}

// reason returns ": " and the quoted message of an error response, or "" if it has none.
func reason(a *response) string {
	var body struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(a.body, &body) != nil || body.Message == "" {
		return ""
	}
	return fmt.Sprintf(": %q", truncate(body.Message))
}

// truncate returns at most 200 bytes of a text from the NetHSM.
func truncate(text string) string {
	const limit = 200
	if len(text) > limit {
		return text[:limit] + "..."
	}
	return text
}

// decode reads a JSON response. It ignores fields that it does not know.
func decode(what string, body []byte, into any) error {
	if err := json.Unmarshal(body, into); err != nil {
		return malformed(what, err)
	}
	return nil
}

func malformed(what string, err error) error {
	return failure.New(failure.Internal, "%s failed: cannot read the response of the NetHSM: %w", what, err).
		WithHint("check that the URL is that of a NetHSM, and its version")
}
