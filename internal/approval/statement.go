package approval

import (
	"errors"
	"fmt"
)

// Types of a statement: an in-toto Statement v1 with a predicate of our own.
const (
	statementType = "https://in-toto.io/Statement/v1"
	predicateType = "https://github.com/notation-hsm/notation-hsm/request/v1"
)

// Statement is what people agree to. Its fields are in the order of their names.
type Statement struct {
	Type          string    `json:"_type"`
	Predicate     Predicate `json:"predicate"`
	PredicateType string    `json:"predicateType"`
	Subjects      []Subject `json:"subject"`
}

// Subject names an artifact, or what is changed.
type Subject struct {
	Digest map[string]string `json:"digest"` // hex by algorithm
	Name   string            `json:"name"`   // repository, or what is changed
}

// Predicate says what is asked for, by whom, and who must agree.
type Predicate struct {
	Action     string    `json:"action"` // use, block, unblock, modify
	Broker     string    `json:"broker"` // its public URL
	Change     *Change   `json:"change,omitempty"`
	Created    int64     `json:"created"` // Unix time
	Expiry     int64     `json:"expiry"`  // seconds that signatures are valid; 0 without an end
	Key        *KeyName  `json:"key,omitempty"`
	Log        string    `json:"log"` // origin of the broker's log
	Needs      []Need    `json:"needs"`
	Nonce      string    `json:"nonce"`     // 32 random bytes, hex
	NotAfter   int64     `json:"not_after"` // Unix time
	Policy     string    `json:"policy"`    // sha256:HEX of the one in force; for information
	Reason     string    `json:"reason,omitempty"`
	Repository string    `json:"repository,omitempty"` // in which the broker found all targets
	Request    string    `json:"request"`              // ID
	Requester  Requester `json:"requester"`
	Targets    []Target  `json:"targets,omitempty"`
}

// KeyName is the key of a request, and its certificate.
type KeyName struct {
	Formats []string `json:"formats"` // that it signs
	Leaf    string   `json:"leaf"`    // sha256:HEX of its certificate in DER; "" if it has none
	Name    string   `json:"name"`    // in the policy
}

// Target is an artifact to be signed.
type Target struct {
	Annotations map[string]string `json:"annotations,omitempty"`
	Digest      string            `json:"digest"` // as ALGORITHM:HEX
	Format      string            `json:"format"`
	MediaType   string            `json:"media_type"`
	Name        string            `json:"name,omitempty"` // as the signer claims it
	Size        int64             `json:"size"`           // in bytes
}

// Change is what a request changes.
type Change struct {
	Config     string `json:"config,omitempty"`     // sha256:HEX of the config that is proposed
	Credential string `json:"credential,omitempty"` // sha256:HEX of the one that is added or removed
	Policy     string `json:"policy,omitempty"`     // sha256:HEX of the policy that is proposed
	What       string `json:"what"`                 // policy, config, block, unblock, epoch, enrol, remove
}

// Need is an action that must be allowed: any one of its rules is enough.
type Need struct {
	Action string    `json:"action"`
	Key    string    `json:"key,omitempty"` // none for what belongs to no single key
	Rules  []RuleRef `json:"rules"`
}

// RuleRef names a rule document.
type RuleRef struct {
	Digest string `json:"digest"` // sha256:HEX
	Name   string `json:"name"`   // for information: it is not in the document
}

// Requester is who asked, as a commitment: SHA-256 of an Opening that only the broker and those whom it tells know.
type Requester struct {
	Commitment string `json:"commitment"` // sha256:HEX of the Opening
	ID         string `json:"id"`         // the same for all that may use the grant
}

// Opening is who asked. Its fields are in the order of their names.
type Opening struct {
	Claims  map[string]string `json:"claims,omitempty"` // those that whoever uses the grant shares, as JSON texts
	Issuer  string            `json:"issuer"`
	Run     map[string]string `json:"run,omitempty"` // claims that tell people from which workflow run or job it came
	Salt    string            `json:"salt"`          // 32 random bytes, hex
	Subject string            `json:"subject"`
}

// Encode returns an opening as canonical JSON.
func (o *Opening) Encode() ([]byte, error) { return canonical(o) }

// DecodeOpening reads an opening. It fails with Invalid for bytes that are not the one encoding of an opening.
func DecodeOpening(data []byte) (*Opening, error) {
	o := &Opening{}
	if err := strict(data, 64<<10, o); err != nil {
		return nil, invalid("opening", err)
	}
	if again, err := o.Encode(); err != nil || string(again) != string(data) {
		return nil, invalid("opening", errors.New("it is not in its canonical form"))
	}
	return o, nil
}

// Opens fails with Denied unless an opening, in its encoding, is who asked for the statement.
func (s *Statement) Opens(opening []byte) error {
	if Hash(opening) != s.Predicate.Requester.Commitment {
		return wrong(errors.New("the requester is another than the statement's"))
	}
	return nil
}

// Encode returns a statement as canonical JSON, with its types.
func (s *Statement) Encode() ([]byte, error) {
	typed := *s
	typed.Type, typed.PredicateType = statementType, predicateType
	return canonical(typed)
}

// DecodeStatement reads a statement. It fails with Invalid for bytes that are not the one encoding of a statement.
func DecodeStatement(data []byte) (*Statement, error) {
	s := &Statement{}
	if err := strict(data, maxDocument, s); err != nil {
		return nil, invalid("statement", err)
	}
	switch {
	case s.Type != statementType:
		return nil, invalid("statement", fmt.Errorf("its type is %.80q", s.Type))
	case s.PredicateType != predicateType:
		return nil, invalid("statement", fmt.Errorf("its predicate is of type %.80q", s.PredicateType))
	case len(s.Subjects) == 0 || len(s.Predicate.Needs) == 0:
		return nil, invalid("statement", errors.New("it has no subject, or needs nobody"))
	}
	if again, err := s.Encode(); err != nil || string(again) != string(data) {
		return nil, invalid("statement", errors.New("it is not in its canonical form"))
	}
	return s, nil
}
