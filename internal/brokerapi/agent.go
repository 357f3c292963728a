package brokerapi

import (
	"time"

	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// Paths of an agent. A broker of a team has none of them.
const (
	AgentPath     = "/v1/agent"
	AgentLockPath = AgentPath + "/lock"
	AgentStopPath = AgentPath + "/stop"
)

// Agent is the state of an agent. It is the answer to GET of AgentPath, and to POST, without a body, of AgentLockPath
// and AgentStopPath.
type Agent struct {
	Token    string           `json:"token"` // URI (RFC 7512): as the module describes it since the first login
	Label    string           `json:"label,omitempty"`
	Locked   bool             `json:"locked"` // it holds neither a PIN nor a login
	Formats  []payload.Format `json:"formats"`
	Confirm  bool             `json:"confirm"` // a person is asked for each use of a key
	Started  time.Time        `json:"started"`
	Unlocked time.Time        `json:"unlocked,omitzero"`   // when it logged in; none if it has not
	Uses     uint64           `json:"uses"`                // signatures and layer keys, since the start
	IdleLeft *int64           `json:"idle_left,omitempty"` // seconds until the agent ends, without a use; none: never
	Refused  *RefusedPIN      `json:"refused,omitempty"`   // the PIN is not tried again
}

// RefusedPIN is a PIN that must not be tried again: the token refused it, or nobody knows whether it did.
type RefusedPIN struct {
	Module string    `json:"module"` // path of the library
	Token  string    `json:"token"`  // URI
	Name   string    `json:"name"`   // of the token, for people
	Time   time.Time `json:"time"`
	Reason string    `json:"reason"`
	CKR    string    `json:"ckr,omitempty"` // PKCS#11 return value by name
}
