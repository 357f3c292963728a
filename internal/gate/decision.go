package gate

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/notaryproject/notation-go"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/notaryproject/tspclient-go"
)

// The verdicts.
const (
	Pass   = "pass"
	Refuse = "refuse"
)

// Result is what was decided about an image, and why.
type Result struct {
	Reference string      `json:"reference"` // as it was given
	Digest    string      `json:"digest,omitempty"`
	Verdict   string      `json:"verdict"`
	Policy    string      `json:"policy,omitempty"`    // the statement of the trust policy
	Level     string      `json:"level,omitempty"`     // its level
	Signature *Signature  `json:"signature,omitempty"` // the one that counts
	Refused   []Signature `json:"refused,omitempty"`   // those that were looked at and don't
	Warnings  []string    `json:"warnings,omitempty"`  // what failed and is only logged at this level
	Reason    string      `json:"reason,omitempty"`    // one line: why not, or why without a signature
}

// Passed returns whether the image may run.
func (r Result) Passed() bool { return r.Verdict == Pass }

func (r Result) refuse(reason string) Result {
	r.Verdict, r.Reason = Refuse, oneLine(reason)
	return r
}

// Signature is what a signature says of itself. Only what is said of one that counts is known to be true.
type Signature struct {
	Digest      string     `json:"digest"`      // of its manifest in the registry
	Subject     string     `json:"subject"`     // of the certificate that it was made with
	Issuer      string     `json:"issuer"`      // of that certificate
	Fingerprint string     `json:"fingerprint"` // SHA-256 of that certificate, in hex
	SigningTime *time.Time `json:"signingTime,omitempty"`
	Expiry      *time.Time `json:"expiry,omitempty"`
	Timestamp   *Timestamp `json:"timestamp,omitempty"`
	Reason      string     `json:"reason,omitempty"` // why it does not count
}

// Timestamp is what a time stamping authority says of a signature (RFC 3161).
type Timestamp struct {
	Time     time.Time `json:"time"`
	Verified bool      `json:"verified"` // whether the trust policy had it verified
}

// String says who signed and why it does not count.
func (s Signature) String() string {
	if s.Subject == "" {
		return s.Reason
	}
	return fmt.Sprintf("the signature by %s is refused: %s", s.Subject, s.Reason)
}

// describe reads what a signature says of itself; of one that can't be read there is nothing but its digest.
func (e *examination) describe(outcome *notation.VerificationOutcome) Signature {
	s := Signature{Digest: e.current.String()}
	if outcome.EnvelopeContent == nil {
		return s
	}
	info := outcome.EnvelopeContent.SignerInfo
	if len(info.CertificateChain) > 0 {
		leaf := info.CertificateChain[0]
		fingerprint := sha256.Sum256(leaf.Raw)
		s.Subject, s.Issuer, s.Fingerprint = oneLine(leaf.Subject.String()), oneLine(leaf.Issuer.String()),
			hex.EncodeToString(fingerprint[:])
	}
	s.SigningTime, s.Expiry = notZero(info.SignedAttributes.SigningTime), notZero(info.SignedAttributes.Expiry)
	if token := info.UnsignedAttributes.TimestampSignature; len(token) > 0 {
		if at, err := timeOf(token, info.Signature); err == nil {
			s.Timestamp = &Timestamp{Time: at, Verified: e.verifiedTimestamp(outcome)}
		}
	}
	return s
}

func notZero(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func timeOf(token, signature []byte) (time.Time, error) {
	signed, err := tspclient.ParseSignedToken(token)
	if err != nil {
		return time.Time{}, err
	}
	info, err := signed.Info()
	if err != nil {
		return time.Time{}, err
	}
	timestamp, err := info.Validate(signature)
	if err != nil {
		return time.Time{}, err
	}
	return timestamp.Value.UTC(), nil
}

// verifiedTimestamp returns whether Notation verified the timestamp: if the policy names whom to trust for it, and,
// where it says afterCertExpiry, if a certificate has run out.
func (e *examination) verifiedTimestamp(outcome *notation.VerificationOutcome) bool {
	trusted := slices.ContainsFunc(e.statement.TrustStores,
		func(store string) bool { return strings.HasPrefix(store, "tsa:") })
	if e.statement.SignatureVerification.VerifyTimestamp == trustpolicy.OptionAfterCertExpiry {
		expired := false
		for _, cert := range outcome.EnvelopeContent.SignerInfo.CertificateChain {
			expired = expired || time.Now().After(cert.NotAfter)
		}
		trusted = trusted && expired
	}
	return trusted && slices.ContainsFunc(outcome.VerificationResults, func(r *notation.ValidationResult) bool {
		return r.Type == trustpolicy.TypeAuthenticTimestamp && r.Error == nil
	})
}

// warnings lists what failed on a signature that counts all the same, as the policy's level only logs it.
func warnings(outcome *notation.VerificationOutcome) (list []string) {
	for _, r := range outcome.VerificationResults {
		if r.Error != nil {
			list = append(list, oneLine(fmt.Sprintf("%s failed, which the trust policy only logs: %v", r.Type, r.Error)))
		}
	}
	return list
}

const longestLine = 2000 // bytes

// oneLine makes text from outside fit for a terminal and a log: one line, bounded, nothing that does not print.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || unicode.IsSpace(r) {
			return r
		}
		return '?'
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > longestLine {
		text = strings.ToValidUTF8(text[:longestLine], "") + "..."
	}
	return text
}
