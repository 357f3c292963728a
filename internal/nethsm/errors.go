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

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// trouble is why an instance gave no answer that counts.
type trouble struct {
	instance string
	err      *failure.Error
	sent     bool // the request went out, so it may have had its effect
	waiting  bool // can help
	final    bool // no other instance is to be asked
	stranger bool // it has not shown that it is the NetHSM
}

func notOperational(instance string, state State) *trouble {
	t := &trouble{instance: instance}
	switch state {
	case Locked:
		t.err = failure.New(failure.Denied, "%s is Locked: it started and nobody has unlocked it yet", instance).
			WithHint("unlock it with its unlock passphrase: nitropy nethsm unlock, or POST /api/v1/unlock")
	case Unprovisioned:
		t.err = failure.New(failure.Denied, "%s is Unprovisioned: it has no keys and no users", instance).
			WithHint("set it up first: nitropy nethsm provision; or check that the URL is of the right one")
	case Failed:
		t.err = failure.New(failure.Internal, "%s is in the state Failed", instance).
			WithHint("see GET /api/v1/health/diagnose: its cluster has lost the quorum, or its storage is damaged")
	default:
		t.waiting = true
		t.err = failure.New(failure.Internal, "%s is not operational (412), and does not tell its state", instance).
			WithHint("see 'notation-hsm nethsm status'")
	}
	return t
}

// unreachable puts what the network said into words.
func unreachable(instance string, err error) *trouble {
	var unverified *tls.CertificateVerificationError
	var fingerprint errFingerprint
	var name *net.DNSError
	switch {
	case errors.As(err, &fingerprint):
		return &trouble{instance: instance, stranger: true, err: failure.New(failure.Denied,
			"%s is not the NetHSM that is expected: %w", instance, fingerprint).
			WithHint("if its certificate was replaced, ask its owner for the new fingerprint, and put that into " +
				"fingerprints under nethsm")}
	case errors.As(err, &unverified):
		return &trouble{instance: instance, stranger: true, err: failure.New(failure.Denied,
			"the TLS certificate of %s does not verify: %w", instance, unverified.Err).
			WithHint("a NetHSM's own certificate is self-signed: write ca-file, or fingerprints (sha256:...), under nethsm in the " +
				"config file")}
	case errors.As(err, &name) && name.IsNotFound:
		return &trouble{instance: instance, err: failure.New(failure.Invalid, "there is no host %s", name.Name).
			WithHint("check instances under nethsm")}
	case errors.Is(err, context.DeadlineExceeded):
		return &trouble{instance: instance, waiting: true,
			err: failure.New(failure.Timeout, "%s did not answer in time", instance).
				WithHint("check the network, or raise timeout")}
	}
	return &trouble{instance: instance, waiting: true, err: failure.New(failure.Timeout,
		"can't reach %s: %w", instance, root(err)).
		WithHint("check that it is on, that instances under nethsm has its right URL, and that a firewall lets you through")}
}

// root is the innermost error: those around it repeat the URL.
func root(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// warn tells of a stranger that stands where an instance should, and that another instance has made up for.
func (t *trouble) warn() {
	if t.stranger {
		warn(t.err.What + ". It was passed over: " + t.err.Hint)
	}
}

func worthWaiting(failed []*trouble) bool {
	return slices.ContainsFunc(failed, func(t *trouble) bool { return t.waiting })
}

// noneCould is the failure when no instance could do it.
func noneCould(what string, failed []*trouble) error {
	if len(failed) == 1 {
		f := *failed[0].err
		f.What = what + " failed: " + f.What
		return &f
	}
	var lines strings.Builder
	for _, t := range failed {
		lines.WriteString("\n  " + t.err.What)
	}
	first := failed[0].err
	return failure.New(first.Kind, "%s failed: none of the %d instances of the NetHSM could do it:%s", what,
		len(failed), lines.String()).
		WithHint(first.Hint)
}

// errRefused is in the failure of a request that was understood and not done (400).
var errRefused = errors.New("refused")

// want returns the failure of an answer that has none of the wanted statuses.
func (r request) want(a *answer, statuses ...int) error {
	for _, status := range statuses {
		if a.status == status {
			return nil
		}
	}
	user := "nobody"
	if r.as != nil {
		user = r.as.user
	}
	switch a.status {
	case http.StatusBadRequest:
		f := failure.New(failure.Invalid, "%s failed: the NetHSM refuses the request (400)%s", r.what, said(a)).
			WithHint("it did not take what was sent; a key signs and decrypts only in the ways (mechanisms) it was made for")
		f.Err = errRefused
		return f
	case http.StatusForbidden:
		return failure.New(failure.Denied, "%s failed: user %s may not do that (403)%s", r.what, user, said(a)).
			WithHint("it may have another role, be in another namespace, or lack the tag that the key is restricted to: see " +
				"'notation-hsm nethsm setup --help'")
	case http.StatusNotFound:
		if strings.HasPrefix(r.path, "/keys/") {
			return failure.New(failure.Invalid, "%s failed: there is no such key for user %s (404)", r.what, user).
				WithHint("see the keys with 'notation-hsm key list --token nethsm:'; a user in a namespace sees those of that " +
					"namespace alone")
		}
		return failure.New(failure.Invalid, "%s failed: there is no such thing for user %s (404)%s", r.what, user, said(a)).
			WithHint("check the name, and the NetHSM's version")
	case http.StatusConflict:
		return failure.New(failure.Invalid, "%s failed: the NetHSM has one of that name already (409)%s", r.what, said(a)).
			WithHint("choose another name, or use what is there")
	case http.StatusPreconditionFailed:
		return failure.New(failure.Denied, "%s failed: a precondition is not met (412)%s", r.what, said(a)).
			WithHint("it is operational, but something has to be set up first: see the NetHSM's documentation of this")
	}
	return failure.New(failure.Internal,
		"%s failed: the NetHSM answers %d (%s)%s", r.what, a.status, http.StatusText(a.status), said(a)).
		WithHint("check that the URL is a NetHSM's, and its version")
}

// said is the reason that an answer gives, if it has the form of ErrorResponse.
func said(a *answer) string {
	var reason struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(a.body, &reason) != nil || reason.Message == "" {
		return ""
	}
	return fmt.Sprintf(": %q", clip(reason.Message))
}

func clip(text string) string {
	const limit = 200
	if len(text) > limit {
		return text[:limit] + "..."
	}
	return text
}

// decode reads a JSON answer. What a newer NetHSM says beside it is passed over.
func decode(what string, body []byte, into any) error {
	if err := json.Unmarshal(body, into); err != nil {
		return malformed(what, err)
	}
	return nil
}

func malformed(what string, err error) error {
	return failure.New(failure.Internal, "%s failed: the NetHSM's answer can't be read: %w", what, err).
		WithHint("check that the URL is a NetHSM's, and its version")
}
