package brokerapi

import (
	"net/url"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// Paths of a broker of a team. An agent has none of them.
const (
	RequestsPath = "/v1/requests"
	PolicyPath   = "/v1/policy"
	ConfigPath   = "/v1/config" // to which an empty body is posted, to propose the config that the broker started with
	EpochPath    = "/v1/epoch"  // likewise, for a new epoch of the log after entries were lost
	VersionPath  = "/v1/version"
	LogPath      = "/v1/log" // under which the log is served as C2SP tlog-tiles
	HealthPath   = "/healthz"
	ReadyPath    = "/readyz"
)

// RequestPath returns the path of a request. A GET with the parameter wait, in seconds, is answered once the request
// is settled, or after that time.
func RequestPath(id string) string { return RequestsPath + "/" + url.PathEscape(id) }

// CancelPath returns the path to which an empty body is posted to cancel a request.
func CancelPath(id string) string { return RequestPath(id) + "/cancel" }

// APIVersion is the version of the API's description.
const APIVersion = "1.0.0"

// MaxWait is the longest time that a GET of a request waits, in seconds.
const MaxWait = 60

// State is where a request is between its creation and its end.
type State string

// The states of a request.
const (
	Pending   State = "pending"   // people have to agree, or a time lock runs
	Approved  State = "approved"  // the signature can be made: a grant
	Signing   State = "signing"   // the intent to sign is in the log
	Signed    State = "signed"    // the signature was made
	Rejected  State = "rejected"  // a person has refused
	Expired   State = "expired"   // its time is over
	Cancelled State = "cancelled" // by its requester
	Lost      State = "lost"      // nobody knows whether the module signed: the broker stopped meanwhile
	Failed    State = "failed"    // the module did not sign
)

// States lists all states.
var States = []State{Pending, Approved, Signing, Signed, Rejected, Expired, Cancelled, Lost, Failed}

// Settled reports whether no more is decided about a request: it is signed or can be, or has ended without.
func (s State) Settled() bool { return s != Pending && s != Signing }

// Target is the artifact that a request names: what the payload to be signed will have.
type Target struct {
	Format      payload.Format    `json:"format"`
	MediaType   string            `json:"media_type"`
	Digest      string            `json:"digest"` // as ALGORITHM:HEX
	Size        int64             `json:"size"`   // in bytes
	Annotations map[string]string `json:"annotations,omitempty"`
}

// NewRequest asks for a request: for the wish to sign one artifact with one key, before its payload is known.
type NewRequest struct {
	Key        string `json:"key"`
	Artifact   Target `json:"artifact"`
	Expiry     int64  `json:"expiry,omitempty"`     // seconds from the signing time until the signature expires; 0: never
	Repository string `json:"repository,omitempty"` // which the broker checks: it fetches the digest there
	// Platforms asks for the manifests of an index as well: one request, and a signature of each.
	Platforms bool `json:"platforms,omitempty"`
	// Rule names a rule that is for emergencies, which is used only when it is named, with a reason.
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason,omitempty"` // of the requester, up to 1000 bytes; approvers see it, and the log has it
}

// Request is the wish to sign one artifact with one key, or to change the policy.
type Request struct {
	ID         string     `json:"id"`
	State      State      `json:"state"`
	Key        string     `json:"key,omitempty"`  // none for a change of the policy
	Rule       string     `json:"rule,omitempty"` // name of the rule that allows it
	Artifact   *Target    `json:"artifact,omitempty"`
	Expiry     int64      `json:"expiry,omitempty"`
	Repository string     `json:"repository,omitempty"`
	Claims     *Claims    `json:"claims,omitempty"`     // what the image says of itself
	More       []Target   `json:"more,omitempty"`       // artifacts that the request is for as well
	What       string     `json:"what,omitempty"`       // is changed: policy, config, block, unblock, epoch, enrol, remove
	Policy     string     `json:"policy,omitempty"`     // sha256:HEX of the policy that is proposed
	Credential string     `json:"credential,omitempty"` // sha256:HEX of the one that is added or removed
	Person     string     `json:"person,omitempty"`     // whose credential it is
	Why        string     `json:"why,omitempty"`        // the requester's reason
	Emergency  bool       `json:"emergency,omitempty"`  // it asks for a rule for emergencies
	Requester  Requester  `json:"requester"`
	Created    time.Time  `json:"created"`
	Changed    time.Time  `json:"changed"`
	NotBefore  *time.Time `json:"not_before,omitempty"` // a time lock: no signature before
	NotAfter   *time.Time `json:"not_after,omitempty"`  // it expires then
	Statement  string     `json:"statement,omitempty"`  // sha256:HEX of the statement that people agree to
	Reason     string     `json:"reason,omitempty"`     // why it waits, or has ended without a signature
	URL        string     `json:"url,omitempty"`        // of its page
	Proof      *Proof     `json:"proof,omitempty"`      // once a checkpoint covers its entries; not in lists
	Needs      []Need     `json:"needs,omitempty"`      // who must agree; while it is open, and not in lists
	Approvals  []Approval `json:"approvals,omitempty"`  // and who has; not in lists
	Waiting    bool       `json:"waiting,omitempty"`    // for the caller's approval
}

// Requester is who made a request, as the broker authenticated it.
type Requester struct {
	Issuer  string `json:"issuer"` // URL of an OIDC issuer, "mtls", "unix" or "approver"
	Subject string `json:"subject"`
	// Claims are those of its token that tell people from which workflow run or job it called. They decide nothing.
	Claims map[string]string `json:"claims,omitempty"`
}

// Claims are what an image says of itself. Nobody has verified them.
type Claims struct {
	Created   string   `json:"created,omitempty"`
	Source    string   `json:"source,omitempty"`
	Revision  string   `json:"revision,omitempty"`
	Version   string   `json:"version,omitempty"`
	Platforms []string `json:"platforms,omitempty"`
	Size      int64    `json:"size,omitempty"` // of all layers, in bytes
}

// Requests is a page of requests, newest first.
type Requests struct {
	Requests []Request `json:"requests"`
	Before   string    `json:"before,omitempty"` // parameter before of the next page; none on the last
}

// Proof shows that entries are in the log.
type Proof struct {
	Entries    []ProvenEntry `json:"entries"`
	Checkpoint string        `json:"checkpoint"` // a signed note (C2SP tlog-checkpoint)
}

// ProvenEntry is an entry of the log with its inclusion proof (RFC 6962 section 2.1.1) under the checkpoint.
type ProvenEntry struct {
	Index  int64    `json:"index"`
	Entry  []byte   `json:"entry"`
	Hashes [][]byte `json:"hashes"`
}

// NewPolicy proposes a policy.
type NewPolicy struct {
	Policy string `json:"policy"` // YAML
}

// Policy is the policy in force.
type Policy struct {
	Policy string    `json:"policy"` // YAML
	SHA256 string    `json:"sha256"` // sha256:HEX of its bytes
	Since  time.Time `json:"since"`
	Index  int64     `json:"index"` // of its entry in the log
}

// Version tells what runs.
type Version struct {
	Version string `json:"version"`
	API     string `json:"api"` // version of the API's description
}

// Readiness is the state of the parts of a broker.
type Readiness struct {
	Ready bool   `json:"ready"`
	Parts []Part `json:"parts"`
}

// Part is a part of a broker.
type Part struct {
	Name   string `json:"name"` // such as "store", "log", "key release", "issuer https://example.com"
	Ready  bool   `json:"ready"`
	Needed bool   `json:"needed"`           // the broker is not ready without it
	Detail string `json:"detail,omitempty"` // what is wrong
}
