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

// Decision is the verdict about an image, with its reasons. All texts are single lines without control characters.
type Decision struct {
	Reference string      `json:"reference"` // the image, as it was named
	Digest    string      `json:"digest,omitempty"`
	Tag       *Tag        `json:"tag,omitempty"`       // if TUF metadata resolved the tag in the name
	Verdict   string      `json:"verdict"`             // Pass or Refuse
	Policy    string      `json:"policy,omitempty"`    // name of the statement of the trust policy
	Level     string      `json:"level,omitempty"`     // verification level of the statement
	Signature *Signature  `json:"signature,omitempty"` // the valid signature
	Approvals *Approvals  `json:"approvals,omitempty"` // of it, if the trust directory demands them
	Refused   []Signature `json:"refused,omitempty"`   // the signatures that were verified before and are not valid
	Warnings  []string    `json:"warnings,omitempty"`  // checks that failed and are only logged, and remembered metadata
	Reason    string      `json:"reason,omitempty"`    // why the image is refused, or passes without a verified signature
}

// Passed reports whether the image may run.
func (d Decision) Passed() bool { return d.Verdict == Pass }

// refuse returns the decision as a refusal.
func (d Decision) refuse(reason string) Decision {
	d.Verdict, d.Reason = Refuse, sanitize(reason)
	return d
}

// Signature describes a signature by what its envelope says, which is authenticated only if the signature is valid.
type Signature struct {
	Digest      string     `json:"digest"`      // of the signature's manifest
	Subject     string     `json:"subject"`     // of the signing certificate
	Issuer      string     `json:"issuer"`      // of the signing certificate
	Fingerprint string     `json:"fingerprint"` // SHA-256 of the signing certificate, in hex
	SigningTime *time.Time `json:"signingTime,omitempty"`
	Expiry      *time.Time `json:"expiry,omitempty"`
	Timestamp   *Timestamp `json:"timestamp,omitempty"`
	Reason      string     `json:"reason,omitempty"` // why it is refused
}

// Timestamp is the countersignature of a time stamping authority (RFC 3161).
type Timestamp struct {
	Time     time.Time `json:"time"`
	Verified bool      `json:"verified"` // Notation verified it, as the trust policy says
}

// String returns the signer and why the signature is refused.
func (s Signature) String() string {
	if s.Subject == "" {
		return s.Reason
	}
	return fmt.Sprintf("the signature by %s is refused: %s", s.Subject, s.Reason)
}

// describe returns what the envelope of the current signature says. Of an envelope that cannot be read, only the digest
// of the manifest is known.
func (e *examination) describe(outcome *notation.VerificationOutcome) Signature {
	s := Signature{Digest: e.current.String()}
	if outcome.EnvelopeContent == nil {
		return s
	}
	info := outcome.EnvelopeContent.SignerInfo
	if len(info.CertificateChain) > 0 {
		leaf := info.CertificateChain[0]
		fingerprint := sha256.Sum256(leaf.Raw)
		s.Subject, s.Issuer, s.Fingerprint = sanitize(leaf.Subject.String()), sanitize(leaf.Issuer.String()),
			hex.EncodeToString(fingerprint[:])
	}
	s.SigningTime, s.Expiry = utcOrNil(info.SignedAttributes.SigningTime), utcOrNil(info.SignedAttributes.Expiry)
	if token := info.UnsignedAttributes.TimestampSignature; len(token) > 0 {
		if at, err := timestampTime(token, info.Signature); err == nil {
			s.Timestamp = &Timestamp{Time: at, Verified: e.verifiedTimestamp(outcome)}
		}
	}
	return s
}

// utcOrNil returns a time in UTC, or nil for the zero time.
func utcOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// timestampTime returns the time in a token of a time stamping authority. It fails if the token is not for the
// signature.
func timestampTime(token, signature []byte) (time.Time, error) {
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

// verifiedTimestamp reports whether Notation verified the timestamp: it does if the statement names a tsa store, and
// with afterCertExpiry only if a certificate of the chain has expired.
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

// warnings lists the checks that failed for a valid signature, and that the verification level only logs.
func warnings(outcome *notation.VerificationOutcome) (list []string) {
	for _, r := range outcome.VerificationResults {
		if r.Error != nil {
			list = append(list, sanitize(fmt.Sprintf("%s failed, which the trust policy only logs: %v", r.Type, r.Error)))
		}
	}
	return list
}

const maxText = 2000 // bytes

// sanitize returns text from outside for a terminal or a log: a single line of maxText bytes at most, without
// characters that do not print.
func sanitize(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || unicode.IsSpace(r) {
			return r
		}
		return '?'
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	return text
}
