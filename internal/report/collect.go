package report

import (
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
)

// grace is how long after its end a request can still be signed again: a broker signs the same artifact anew for some
// minutes.
const grace = time.Hour

// sweepEvery is after how many entries the collector forgets requests that have ended.
const sweepEvery = 4096

// collector makes lines of the entries of a log, in their order. It remembers requests while they are open, so that its
// memory does not grow with the log.
type collector struct {
	from, to time.Time // the period: from is in it, to is not

	requests map[string]*request
	intents  map[string]evidence // by request: without an outcome yet
	enrolled map[string]evidence // by credential
	seen     int64
}

// request is a request that was logged before it was signed.
type request struct {
	evidence
	approvals []evidence // that stand
}

func newCollector(from, to time.Time) *collector {
	return &collector{from: from, to: to, requests: map[string]*request{}, intents: map[string]evidence{},
		enrolled: map[string]evidence{}}
}

// add takes the next entry into account. It returns the line that it makes, and nil if it makes none in the period.
func (c *collector) add(e evidence) (*Line, error) {
	if c.seen++; c.seen%sweepEvery == 0 {
		c.sweep(e.event.At())
	}
	made := c.evidence(e)
	c.apply(e)
	if made == nil || e.event.At().Before(c.from) || !e.event.At().Before(c.to) {
		return nil, nil
	}
	return lineOf(made)
}

// evidence returns the entries of the line that an entry makes, and nil if it makes none.
func (c *collector) evidence(e evidence) []evidence {
	var all []evidence
	if whats[e.event.Type] == "" {
		return nil
	}
	if enrolled, exists := c.enrolled[e.event.Credential]; exists && e.event.Type == entry.Removed {
		all = append(all, enrolled)
	}
	if r := c.requests[e.event.Request]; r != nil && e.event.Request != "" {
		all = append(append(all, r.evidence), r.approvals...)
	}
	if intent, exists := c.intents[e.event.Request]; exists && (e.event.Type == entry.Signed ||
		e.event.Type == entry.Lost) {
		all = slices.DeleteFunc(all, func(a evidence) bool { return a.index > intent.index }) // too late
		all = append(all, intent)
	}
	return append(all, e)
}

// apply remembers what later lines need.
func (c *collector) apply(e evidence) {
	id := e.event.Request
	switch e.event.Type {
	case entry.Requested:
		c.requests[id] = &request{evidence: e}
	case entry.Approved:
		if r := c.requests[id]; r != nil && r.event.Statement == e.event.Statement {
			r.approvals = append(r.dropped(func(a evidence) bool { return a.event.Credential == e.event.Credential }), e)
		}
	case entry.Withdrawn:
		if r := c.requests[id]; r != nil {
			r.approvals = r.dropped(func(a evidence) bool { return a.event.Approver == e.event.Approver })
		}
	case entry.Rejected, entry.Ended:
		delete(c.requests, id)
	case entry.Intended:
		c.intents[id] = e
	case entry.Signed, entry.Lost, entry.Failed:
		delete(c.intents, id)
	case entry.Enrolled:
		c.enrolled[e.event.Credential] = e
	case entry.Removed:
		delete(c.enrolled, e.event.Credential)
		for _, r := range c.requests {
			r.approvals = r.dropped(func(a evidence) bool { return a.event.Credential == e.event.Credential })
		}
	case entry.Voided:
		c.void(e.event.Index)
	case entry.EpochBegun: // what was open has expired
		clear(c.requests)
	}
}

// dropped returns the approvals of a request without some.
func (r *request) dropped(is func(evidence) bool) []evidence {
	return slices.DeleteFunc(slices.Clone(r.approvals), is)
}

// void forgets what entries from an index on permit.
func (c *collector) void(from int64) {
	for id, r := range c.requests {
		if r.index >= from {
			delete(c.requests, id)
			continue
		}
		r.approvals = r.dropped(func(a evidence) bool { return a.index >= from })
	}
	for credential, e := range c.enrolled {
		if e.index >= from {
			delete(c.enrolled, credential)
		}
	}
}

// sweep forgets requests that ended before a time.
func (c *collector) sweep(now time.Time) {
	for id, r := range c.requests {
		if now.After(time.Unix(r.event.NotAfter, 0).Add(grace)) {
			delete(c.requests, id)
		}
	}
}
