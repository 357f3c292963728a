package gate

import (
	"context"
	"crypto/x509"
	"math"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/notaryproject/notation-core-go/signature"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-go"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
)

// TestSanitize verifies that a text from outside is one line, bounded, and printable.
func TestSanitize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain": "plain", " a\n\tb\r\nc ": "a b c", "a\x1b[2J\x00b": "a?[2J?b", "a\u202eb": "a?b",
		"ümläut": "ümläut", "a\xffb": "a\ufffdb", strings.Repeat("a", maxText): strings.Repeat("a", maxText),
		strings.Repeat("a", maxText+1):     strings.Repeat("a", maxText) + "...",
		"a" + strings.Repeat("ü", maxText): "a" + strings.Repeat("ü", maxText/2-1) + "...",
	} {
		if got := sanitize(text); got != want || !utf8.ValidString(got) {
			t.Errorf("%.50q became %.50q of %d bytes, want %.50q of %d", text, got, len(got), want, len(want))
		}
	}
}

// TestLimitMemory verifies that the memory of the Go runtime is limited, and that a lower limit stays.
func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	for limit, want := range map[int64]int64{math.MaxInt64: memoryTarget, memoryTarget - 1: memoryTarget - 1} {
		debug.SetMemoryLimit(limit)
		LimitMemory()
		if got := debug.SetMemoryLimit(-1); got != want {
			t.Errorf("a limit of %d became %d, want %d", limit, got, want)
		}
	}
}

// TestWarnings verifies that what a level only logs is told, in the decision and in a node's log.
func TestWarnings(t *testing.T) {
	a := newAttack(t)
	a.Sign(t, a.mallory, jws.MediaTypeEnvelope, a.image, nil)
	a.gate = openGate(t, Options{TrustDir: trusting(t, "audit", a.alice)})
	d := a.verify(t)
	if !d.Passed() || len(d.Warnings) == 0 ||
		!strings.Contains(d.Warnings[0], "authenticity failed, which the trust policy only logs") {
		t.Errorf("%+v", d)
	}
	if d = (Node{}).explain(d); !d.Passed() || !strings.Contains(d.Reason, "authenticity failed") {
		t.Errorf("%+v", d)
	}
}

// TestVerifiedTimestamp verifies that a timestamp counts as verified only if the trust policy had Notation verify it.
func TestVerifiedTimestamp(t *testing.T) {
	t.Parallel()
	valid, expired := *newForger(t).Certificate, *newForger(t).Certificate
	expired.NotAfter = time.Now().Add(-time.Hour)
	outcome := func(err error, certificate *signatureChain) *notation.VerificationOutcome {
		return &notation.VerificationOutcome{
			EnvelopeContent: &signature.EnvelopeContent{SignerInfo: signature.SignerInfo{CertificateChain: *certificate}},
			VerificationResults: []*notation.ValidationResult{{Type: trustpolicy.TypeIntegrity},
				{Type: trustpolicy.TypeAuthenticTimestamp, Error: err}}}
	}
	for name, c := range map[string]struct {
		stores []string
		option trustpolicy.TimestampOption
		err    error
		chain  signatureChain
		want   bool
	}{
		"verified":   {[]string{"ca:a", "tsa:b"}, trustpolicy.OptionAlways, nil, signatureChain{&valid}, true},
		"by default": {[]string{"ca:a", "tsa:b"}, "", nil, signatureChain{&valid}, true},
		"no store":   {[]string{"ca:a"}, trustpolicy.OptionAlways, nil, signatureChain{&valid}, false},
		"it failed": {[]string{"tsa:b"}, trustpolicy.OptionAlways, os.ErrInvalid,
			signatureChain{&valid}, false},
		"not expired": {[]string{"tsa:b"}, trustpolicy.OptionAfterCertExpiry, nil,
			signatureChain{&valid}, false},
		"expired": {[]string{"tsa:b"}, trustpolicy.OptionAfterCertExpiry, nil,
			signatureChain{&expired}, true},
		"the issuer expired": {[]string{"tsa:b"}, trustpolicy.OptionAfterCertExpiry, nil,
			signatureChain{&valid, &expired}, true},
		"expired, and it failed": {[]string{"tsa:b"}, trustpolicy.OptionAfterCertExpiry, os.ErrInvalid,
			signatureChain{&expired}, false},
		"expired, but no store's": {[]string{"ca:a"}, trustpolicy.OptionAfterCertExpiry, nil,
			signatureChain{&expired}, false},
	} {
		statement := &trustpolicy.TrustPolicy{TrustStores: c.stores}
		statement.SignatureVerification.VerifyTimestamp = c.option
		e := &examination{statement: statement}
		if got := e.verifiedTimestamp(outcome(c.err, &c.chain)); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestInterrupted verifies that no image passes after an interruption, and that no verification is begun.
func TestInterrupted(t *testing.T) {
	a := newAttack(t)
	a.Sign(t, a.alice, jws.MediaTypeEnvelope, a.image, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d := a.gate.Verify(ctx, []string{a.Name(a.image)}, "", time.Minute)[0]; d.Passed() || d.Reason != "interrupted" {
		t.Errorf("%+v", d)
	}
	if n, _ := a.Count("/"); n > 0 {
		t.Errorf("there were %d requests", n)
	}
}

// TestManyImages verifies that decisions are in the order of the images.
func TestManyImages(t *testing.T) {
	a := newAttack(t)
	a.Sign(t, a.alice, jws.MediaTypeEnvelope, a.image, nil)
	unsigned := a.PushImage("unsigned")
	names := make([]string, 3*maxConcurrent)
	for i := range names {
		names[i] = a.Name(a.image)
		if i%3 == 0 {
			names[i] = a.Name(unsigned)
		}
	}
	for i, d := range a.gate.Verify(t.Context(), names, "", time.Minute) {
		if d.Reference != names[i] || d.Passed() != (i%3 != 0) {
			t.Errorf("%d: %+v", i, d)
		}
	}
}

type signatureChain = []*x509.Certificate
