package broker

import (
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// Types of notices.
const (
	NoticePending   = "request.pending"   // people have to agree
	NoticeReminder  = "request.reminder"  // they still have to, a day later
	NoticeApproved  = "request.approved"  // enough have agreed: it is a grant, or the change is made
	NoticeRejected  = "request.rejected"  // one has refused
	NoticeExpired   = "request.expired"   // its time is over, or its rule has changed
	NoticeCancelled = "request.cancelled" // by its requester
	NoticeSigned    = "request.signed"    // its signature was made
)

// Notice is news of a request.
type Notice struct {
	ID        string // unique: the same event has the same ID, however often it is told
	Type      string
	Time      time.Time
	Request   brokerapi.Request
	Requester string   // name of the person who asked; "" for a caller whom the policy does not name
	People    []string // names of those who can act on it
	Everyone  bool     // it is an emergency: all people of the policy are told
}
