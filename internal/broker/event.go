package broker

import (
	"fmt"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
)

// The events of the log, under the names that they have in this package.
type (
	Event    = entry.Event
	need     = entry.Need
	ruleName = entry.RuleName
)

// Types of events.
const (
	opened     = entry.Opened
	policySet  = entry.PolicySet
	configSet  = entry.ConfigSet
	requested  = entry.Requested
	intended   = entry.Intended
	signed     = entry.Signed
	failed     = entry.Failed
	lost       = entry.Lost
	ended      = entry.Ended
	blocked    = entry.Blocked
	unblocked  = entry.Unblocked
	snapshot   = entry.Snapshot
	voided     = entry.Voided
	epochBegun = entry.EpochBegun
	approved   = entry.Approved
	withdrawn  = entry.Withdrawn
	rejected   = entry.Rejected
	enrolled   = entry.Enrolled
	removed    = entry.Removed
	invited    = entry.Invited
)

// eventTime is the layout of times in events.
const eventTime = entry.TimeLayout

// decodeEvent reads an entry. It fails for one of a type that this version does not know: such an entry may decide.
func decodeEvent(data []byte) (*Event, error) {
	e, err := entry.Decode(data)
	if err == nil && !slices.Contains(entry.Types, e.Type) {
		return nil, fmt.Errorf("unknown type %.100q", e.Type)
	}
	return e, err
}
