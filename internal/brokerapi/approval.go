package brokerapi

import (
	"net/url"
	"time"
)

// Paths of a broker of a team for those who approve.
const (
	ApproversPath   = "/v1/approvers"
	SessionsPath    = "/v1/sessions"    // to which a Login is posted, without a credential besides
	CredentialsPath = "/v1/credentials" // to which a NewCredential is posted, and from which an Export is got
)

// EvidencePath returns the path of all that shows who agrees to a request.
func EvidencePath(id string) string { return RequestPath(id) + "/evidence" }

// BundlePath returns the path of the bundle of approvals of a request.
func BundlePath(id string) string { return RequestPath(id) + "/bundle" }

// ApprovalsPath returns the path to which a SignedApproval is posted.
func ApprovalsPath(id string) string { return RequestPath(id) + "/approvals" }

// CredentialPath returns the path of a credential: a POST to its /remove proposes to remove it.
func CredentialPath(id string) string { return CredentialsPath + "/" + url.PathEscape(id) }

// InvitationsPath returns the path to which an empty body is posted to invite a person to enrol a passkey.
func InvitationsPath(person string) string {
	return ApproversPath + "/" + url.PathEscape(person) + "/invitations"
}

// ForgetPath returns the path to which an empty body is posted to erase the name of a person who has left.
func ForgetPath(person string) string {
	return ApproversPath + "/" + url.PathEscape(person) + "/forget"
}

// PagePath returns the path of the page of a request, for people.
func PagePath(id string) string { return "/requests/" + url.PathEscape(id) }

// EnrolPath returns the path of the page on which an invited person enrols a passkey. The token is in the fragment,
// which browsers do not send: no log has it.
func EnrolPath(token string) string { return "/enrol#" + token }

// Need is an action that must be allowed: any one of its alternatives is enough.
type Need struct {
	Action       string        `json:"action"` // use, block, unblock, modify
	Key          string        `json:"key,omitempty"`
	Alternatives []Alternative `json:"alternatives"`
}

// Alternative is a rule, and what it still lacks.
type Alternative struct {
	Rule      string      `json:"rule"`
	Groups    []GroupNeed `json:"groups,omitempty"`
	NotBefore *time.Time  `json:"not_before,omitempty"` // its time lock, once it is known
	NotAfter  *time.Time  `json:"not_after,omitempty"`  // its timeout
	TimeLock  int64       `json:"time_lock,omitempty"`  // seconds after the last approval
	Allowed   bool        `json:"allowed"`              // it lacks nothing
	Reason    string      `json:"reason,omitempty"`     // why it can't be fulfilled any more
}

// GroupNeed is how many people of a group must agree.
type GroupNeed struct {
	Group       string   `json:"group"`
	Members     []string `json:"members"` // names
	Quorum      int      `json:"quorum"`
	Lacking     int      `json:"lacking"`
	Kinds       []string `json:"kinds"`
	Attested    bool     `json:"attested,omitempty"`
	DeviceBound bool     `json:"device_bound,omitempty"`
}

// Approval is a decision of a person about a request.
type Approval struct {
	Person     string    `json:"person"` // name
	Decision   string    `json:"decision"`
	Kind       string    `json:"kind"`
	Credential string    `json:"credential"` // sha256:HEX
	Reason     string    `json:"reason,omitempty"`
	Time       time.Time `json:"time"` // of the broker
	Counts     bool      `json:"counts"`
	Why        string    `json:"why,omitempty"` // it does not count
}

// SignedApproval is an approval with its signature.
type SignedApproval struct {
	Envelope Bytes `json:"envelope"` // approval.Envelope
}

// Evidence is all that shows what a request is, and who agreed to it. Documents are canonical JSON of
// internal/approval.
type Evidence struct {
	Statement   []byte            `json:"statement"`
	Opening     []byte            `json:"opening"`     // of the requester's commitment; empty if it was erased
	Rules       map[string][]byte `json:"rules"`       // by sha256:HEX
	Names       map[string][]byte `json:"names"`       // of the rules, but those that were erased; by sha256:HEX
	Credentials map[string][]byte `json:"credentials"` // of those who decided, and of the caller; by sha256:HEX
	Approvals   [][]byte          `json:"approvals"`   // envelopes, in the order of the log
	// Documents are what the request changes: policies (the proposed one and that in force), configs, the credential; by
	// sha256:HEX.
	Documents map[string][]byte `json:"documents,omitempty"`
	Proof     *Proof            `json:"proof,omitempty"`
	// You is the id of the caller, as approvals have it; "" for one who cannot approve.
	You string `json:"you,omitempty"`
}

// Bundle is what shows to others that people agreed to the signatures of a request.
type Bundle struct {
	Bundle []byte `json:"bundle"` // proof.Bundle in its encoding
}

// Login asks for a session of an approver. The key that signed it is named by itself: only the broker knows which
// credential it is enrolled as.
type Login struct {
	Envelope Bytes  `json:"envelope"` // approval.Envelope of a login, without a credential
	Kind     string `json:"kind"`     // key or ssh; a passkey signs in on the page
	Public   Bytes  `json:"public"`   // as approval.Credential has it
}

// Session is a credential of an approver for a short time: a bearer token.
type Session struct {
	Token   string    `json:"token"`
	Person  string    `json:"person"` // name
	Expires time.Time `json:"expires"`
}

// Approver is a person whom the policy names, and what they sign approvals with.
type Approver struct {
	Name        string       `json:"name"`
	ID          string       `json:"id"` // as approvals have it
	Groups      []string     `json:"groups"`
	Credentials []Credential `json:"credentials"`
}

// Approvers is a page of approvers, by name.
type Approvers struct {
	Approvers []Approver `json:"approvers"`
	After     string     `json:"after,omitempty"` // parameter after of the next page; none on the last
}

// Credential is what an approver signs with.
type Credential struct {
	ID          string    `json:"id"` // sha256:HEX
	Kind        string    `json:"kind"`
	Label       string    `json:"label"` // such as the fingerprint of an SSH key
	Enrolled    time.Time `json:"enrolled"`
	Attested    bool      `json:"attested,omitempty"`
	DeviceBound bool      `json:"device_bound,omitempty"`
}

// Exported is a person with the documents of credentials: what verifiers need who trust the person's approvals.
type Exported struct {
	Name        string   `json:"name"` // the id if the policy in force does not have the person
	ID          string   `json:"id"`   // as approvals have it
	Credentials [][]byte `json:"credentials"`
}

// Export is a page of people with their credentials, by name.
type Export struct {
	Approvers []Exported `json:"approvers"`
	After     string     `json:"after,omitempty"` // parameter after of the next page; none on the last
}

// Forgotten is what was erased of a person.
type Forgotten struct {
	Documents int `json:"documents"` // with names of people, and policies
	Requests  int `json:"requests"`  // that named the person
}

// NewCredential proposes a credential of a person: what the person made with the private key shows that they have it.
type NewCredential struct {
	Person     string `json:"person"` // name
	Kind       string `json:"kind"`   // key or ssh; a passkey is enrolled on the page
	Public     Bytes  `json:"public"`
	Possession Bytes  `json:"possession"` // approval.LoginEnvelope by the new key
}

// Invitation lets a person enrol a passkey on the page, once.
type Invitation struct {
	URL     string    `json:"url"`
	Expires time.Time `json:"expires"`
}
