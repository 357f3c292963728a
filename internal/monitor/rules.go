package monitor

import (
	"fmt"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// reading is what is made of one entry.
type reading struct {
	*facts
	config *Config
	index  int64
	event  *entry.Event
	now    time.Time
	alert  func(class, format string, args ...any)
}

// maxAhead is how far the time of an entry can be ahead of the monitor's clock.
const maxAhead = 5 * time.Minute

// read takes the next entry into account, and returns the alerts about it.
func (f *facts) read(c *Config, log string, data []byte, now time.Time) (alerts []*Alert) {
	r := &reading{facts: f, config: c, index: f.Next, now: now}
	r.alert = func(class, format string, args ...any) {
		if slices.Contains(c.Off, class) {
			return
		}
		a := &Alert{Class: class, Log: log, What: fmt.Sprintf(format, args...), Index: &r.index, Found: now.UTC()}
		if e := r.event; e != nil {
			at := e.At()
			a.Time, a.Type, a.Key, a.Request = &at, clean(e.Type), clean(e.Key), clean(e.Request)
			for _, digest := range []string{e.Digest, e.Policy, e.Config, e.Credential} {
				if a.Digest == "" {
					a.Digest = clean(digest)
				}
			}
		}
		a.identify(r.index, len(alerts))
		alerts = append(alerts, a)
	}
	r.decode(data)
	f.Next++
	f.bound()
	return alerts
}

func (r *reading) decode(data []byte) {
	said, err := translog.Check(data)
	if err != nil {
		r.alert(Malformed, "entry %d is not valid: %s", r.index, clean(err.Error()))
		return
	}
	r.times(said.Time)
	if !slices.Contains(entry.Types, said.Type) {
		r.Unknown++
		return
	}
	e, err := entry.Decode(data)
	if err != nil {
		r.alert(Malformed, "entry %d of type %s is not one that a broker logs: %s", r.index, clean(said.Type),
			clean(err.Error()))
		return
	}
	r.event = e
	if (r.index == 0) != (e.Type == entry.Opened) {
		r.alert(Malformed, "entry %d has the type %s", r.index, e.Type)
	}
	r.take()
}

// times compares the time of an entry with that of the one before, and with the clock.
func (r *reading) times(at time.Time) {
	if at.Before(r.Last) {
		r.alert(Clock, "the time of entry %d, %s, is before that of an entry before it, %s", r.index,
			at.Format(entry.TimeLayout), r.Last.Format(entry.TimeLayout))
	}
	ahead := at.Sub(r.now) > maxAhead
	if ahead && !r.Ahead {
		r.alert(Clock, "the time of entry %d, %s, is in the future", r.index, at.Format(entry.TimeLayout))
	}
	r.Ahead = ahead
	r.Last = at
}

// take takes the event into account.
func (r *reading) take() {
	e := r.event
	switch e.Type {
	case entry.Opened, entry.PolicySet:
		r.Policies[mark(e.Policy)] = r.index
		if !slices.Contains(r.config.Policies, e.Policy) {
			r.alert(Policy, "the policy %s is in force, which the config does not list", clean(e.Policy))
		}
	case entry.ConfigSet:
		r.alert(ConfigSet, "the broker's config %s is in force", clean(e.Config))
	case entry.Blocked:
		if !r.remember(mark(e.Key), block{true, r.index}) {
			r.alert(Malformed, "more than %d keys are blocked: %q is not remembered", maxKept, clean(e.Key))
		}
		r.alert(Blocks, "the key %q is blocked", clean(e.Key))
	case entry.Unblocked:
		if _, kept := r.Blocked[mark(e.Key)]; kept {
			r.remember(mark(e.Key), block{false, r.index})
		}
		r.alert(Blocks, "the key %q is not blocked any more", clean(e.Key))
	case entry.Enrolled:
		r.Credentials[mark(e.Credential)] = credential{mark(e.Approver), r.index}
		r.alert(Credentials, "the person %s has a new credential of kind %s", clean(e.Approver), clean(e.Kind))
	case entry.Removed:
		delete(r.Credentials, mark(e.Credential))
		r.alert(Credentials, "the credential %s was removed", clean(e.Credential))
	case entry.Invited:
		r.alert(Credentials, "the person %s was invited to enrol a passkey", clean(e.Approver))
	case entry.EpochBegun:
		for _, one := range r.Requests {
			one.end("expired, as a new epoch began")
		}
		r.alert(Epoch, "epoch %d of the log begins: entries were lost", e.Epoch)
	case entry.Voided:
		if e.Index >= r.index || e.Index < 0 {
			r.alert(Malformed, "entry %d voids entry %d, which is not before it", r.index, e.Index)
			return
		}
		r.void(e.Index)
		r.alert(Epoch, "the entries from %d to %d are void: they permit nothing", e.Index, r.index-1)
	case entry.Requested:
		r.request()
	case entry.Approved, entry.Withdrawn, entry.Rejected, entry.Ended:
		r.decision()
	case entry.Intended:
		r.intent()
	case entry.Signed, entry.Failed, entry.Lost:
		r.outcome()
	}
}
