// Package entry has the entries that a broker writes into its log: what each says, and its encoding.
package entry

import (
	"bytes"
	"encoding/json"
	"errors"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Types of events.
const (
	Opened     = "open/v1"      // the first entry: policy and config that are in force from the start
	PolicySet  = "policy/v1"    // a policy is in force
	ConfigSet  = "config/v1"    // a config is in force
	Requested  = "request/v1"   // a request was made: it is a grant, or waits for people or a time
	Intended   = "intent/v1"    // a module is about to sign
	Signed     = "signed/v1"    // it has signed
	Failed     = "failed/v1"    // it has not signed
	Lost       = "lost/v1"      // nobody knows whether it has signed
	Ended      = "ended/v1"     // a request has ended without a signature: its state says how
	Blocked    = "blocked/v1"   // a key signs nothing
	Unblocked  = "unblocked/v1" // it signs again
	Snapshot   = "snapshot/v1"  // the state after the entries before, by its SHA-256
	Voided     = "void/v1"      // the entries before it, from an index on, permit nothing
	EpochBegun = "epoch/v1"     // the log begins anew after entries were lost
	Approved   = "approved/v1"  // a person agrees to a request
	Withdrawn  = "withdrawn/v1" // a person takes that back
	Rejected   = "rejected/v1"  // a person refuses, which ends the request
	Enrolled   = "enrolled/v1"  // a person has a credential to sign approvals with
	Removed    = "removed/v1"   // a credential counts no more
	Invited    = "invited/v1"   // a person may enrol a passkey with a link
)

// Types are all types of events.
var Types = []string{Opened, PolicySet, ConfigSet, Requested, Intended, Signed, Failed, Lost, Ended, Blocked, Unblocked,
	Snapshot, Voided, EpochBegun, Approved, Withdrawn, Rejected, Enrolled, Removed, Invited}

// Event is an entry of the log: canonical JSON (RFC 8785) of one fact. Its fields are in the order of their names,
// which are those of the encoding. People and callers are in it by pseudonyms.
type Event struct {
	Approval   string   `json:"approval,omitempty"`   // sha256:HEX of an approval with its signature
	Approver   string   `json:"approver,omitempty"`   // id of a person
	Attested   bool     `json:"attested,omitempty"`   // a credential: see approval.WebAuthn
	Base       string   `json:"base,omitempty"`       // sha256:HEX of the policy that a proposal changes
	Caller     string   `json:"caller,omitempty"`     // pseudonym of issuer and subject
	Config     string   `json:"config,omitempty"`     // sha256:HEX
	Counter    int64    `json:"counter,omitempty"`    // of a passkey's signatures
	Credential string   `json:"credential,omitempty"` // sha256:HEX of its document
	Device     bool     `json:"device,omitempty"`     // a passkey cannot leave its authenticator
	Digest     string   `json:"digest,omitempty"`     // of the artifact
	Epoch      int64    `json:"epoch,omitempty"`      // of the log
	Format     string   `json:"format,omitempty"`     // of the payload
	Index      int64    `json:"index,omitempty"`      // of another entry
	Invitation string   `json:"invitation,omitempty"` // sha256:HEX of its token
	Key        string   `json:"key,omitempty"`        // its name in the policy
	Kind       string   `json:"kind,omitempty"`       // of a credential
	Leaf       string   `json:"leaf,omitempty"`       // sha256:HEX of its certificate in DER
	Needs      []Need   `json:"needs,omitempty"`      // of a request: what must be allowed
	NotAfter   int64    `json:"not_after,omitempty"`  // Unix time
	NotBefore  int64    `json:"not_before,omitempty"` // Unix time
	Origin     string   `json:"origin,omitempty"`     // of the log
	Payload    string   `json:"payload,omitempty"`    // sha256:HEX of the bytes that are signed
	Person     string   `json:"person,omitempty"`     // id of the requester, if it is a person of the policy
	Policy     string   `json:"policy,omitempty"`     // sha256:HEX
	Public     string   `json:"public,omitempty"`     // pseudonym of a public key
	Reason     string   `json:"reason,omitempty"`     // kind of a failure
	Replica    int64    `json:"replica,omitempty"`    // number of the one that has the module sign
	Repository string   `json:"repository,omitempty"` // that was checked
	Request    string   `json:"request,omitempty"`    // ID
	Requester  string   `json:"requester,omitempty"`  // pseudonym of issuer and of the claims in same
	Retry      bool     `json:"retry,omitempty"`      // another signature of the same use
	Rule       string   `json:"rule,omitempty"`       // name
	RuleDigest string   `json:"rule_digest,omitempty"`
	Same       []string `json:"same,omitempty"`      // claims of the requester
	Signature  string   `json:"signature,omitempty"` // sha256:HEX
	Signed     string   `json:"signed,omitempty"`    // sha256:HEX of an approval without its signature
	Snapshot   string   `json:"snapshot,omitempty"`  // sha256:HEX
	State      string   `json:"state,omitempty"`     // of the request
	Statement  string   `json:"statement,omitempty"` // sha256:HEX of what people agree to
	Subjects   []string `json:"subjects,omitempty"`  // sha256:HEX of what is signed, one for each artifact
	Time       string   `json:"time"`                // RFC 3339, in UTC, with milliseconds
	Token      string   `json:"token,omitempty"`     // sha256:HEX of a token that was used
	TokenEnds  int64    `json:"token_ends,omitempty"`
	Type       string   `json:"type"`
	Uses       int64    `json:"uses,omitempty"` // of each artifact; 0 means 1
	What       string   `json:"what,omitempty"` // what a request changes: see the Change constants
	Why        string   `json:"why,omitempty"`  // the requester's reason, in an emergency
}

// Need is an action that must be allowed: any one of its rules is enough. Its fields are in the order of their names.
type Need struct {
	Action string     `json:"action"`
	Key    string     `json:"key,omitempty"` // none for what belongs to no single key
	Rules  []RuleName `json:"rules"`
}

// RuleName names a rule as the policy had it when a request was made.
type RuleName struct {
	Digest string `json:"digest"` // sha256:HEX: approval.Commitment
	Name   string `json:"name"`
}

// Permits reports whether an event allows what was not allowed before it. Such an event counts once a signed checkpoint
// covers it. A snapshot stands for all events, and one that is void allows what the other has ended.
func (e *Event) Permits() bool {
	switch e.Type {
	case PolicySet, ConfigSet, Requested, Unblocked, EpochBegun, Snapshot, Voided, Approved, Enrolled, Invited:
		return true
	}
	return false
}

// maxEntry is the length of the longest entry, in bytes.
const maxEntry = 16 << 10

// Encode returns the entry of an event. It fails with Invalid for an event that is longer than the log takes, or has
// characters that Go encodes in another way than RFC 8785.
func (e *Event) Encode() ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e); err != nil {
		return nil, err
	}
	data := bytes.TrimSuffix(buffer.Bytes(), []byte("\n"))
	// Go escapes these two characters, which RFC 8785 does not, and writes the third for bytes that are not UTF-8.
	for _, escaped := range []string{`\u2028`, `\u2029`, `\ufffd`} {
		if bytes.Contains(data, []byte(escaped)) {
			return nil, failure.New(failure.Invalid, "cannot log the request: it has a line separator or is not UTF-8").
				WithHint("use names of printable characters")
		}
	}
	if len(data) > maxEntry {
		return nil, failure.New(failure.Invalid, "cannot log the request: it is longer than %d bytes", maxEntry).
			WithHint("use shorter names")
	}
	return data, nil
}

// Decode reads an entry. It fails for one that is not the one encoding of an event.
func Decode(entry []byte) (*Event, error) {
	if len(entry) > maxEntry {
		return nil, errors.New("the entry is too long")
	}
	decoder := json.NewDecoder(bytes.NewReader(entry))
	decoder.DisallowUnknownFields()
	e := &Event{}
	if err := decoder.Decode(e); err != nil {
		return nil, err
	}
	if _, err := time.Parse(TimeLayout, e.Time); err != nil {
		return nil, err
	}
	if again, err := e.Encode(); err != nil || !bytes.Equal(again, entry) {
		return nil, errors.New("the entry is not in its canonical form")
	}
	return e, nil
}

// TimeLayout is the layout of times in events.
const TimeLayout = "2006-01-02T15:04:05.000Z"

// At returns the time of an event. Decode has checked it.
func (e *Event) At() time.Time {
	at, _ := time.Parse(TimeLayout, e.Time)
	return at
}
