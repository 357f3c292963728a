package monitor

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
)

func digest(n int) string { return fmt.Sprintf("sha256:%064x", n) }

var (
	needs  = []entry.Need{{Action: "use", Key: "release", Rules: []entry.RuleName{{Digest: digest(7), Name: "release"}}}}
	listed = `
webhook: {url: http://127.0.0.1:9/}
policies: ["` + digest(1) + `"]
keys:
  release: {approvals: 2}
  nightly: {hours: {days: mon-fri, from: "08:00", to: "18:00", zone: Europe/Berlin}}
off: [credentials]
`
)

// story makes the events of one log.
type story []entry.Event

// begun is the beginning of a log, whose people are alice, bob and carol.
func begun() story {
	s := story{{Type: entry.Opened, Origin: origin, Policy: digest(1), Config: digest(2)}}
	for i, person := range []string{"alice", "bob", "carol"} {
		s = append(s, entry.Event{Type: entry.Enrolled, Approver: person, Credential: digest(100 + i), Kind: "ssh"})
	}
	return s
}

// plus returns the story with more events.
func (s story) plus(events ...entry.Event) story { return append(slices.Clone(s), events...) }

// asks is a request for image 1, by dave.
func asks() entry.Event {
	return entry.Event{Type: entry.Requested, Request: "r1", Key: "release", Leaf: digest(3), Policy: digest(1),
		Statement: digest(4), Subjects: []string{digest(11)}, Person: "dave", Needs: needs,
		NotAfter: noon.Add(24 * time.Hour).Unix()}
}

func approves(person string) entry.Event {
	credential := map[string]int{"alice": 100, "bob": 101, "carol": 102, "dave": 103}[person]
	return entry.Event{Type: entry.Approved, Request: "r1", Key: "release", Approver: person,
		Credential: digest(credential), Statement: digest(4)}
}

func intends(payload int) entry.Event {
	return entry.Event{Type: entry.Intended, Request: "r1", Key: "release", Leaf: digest(3), Policy: digest(1),
		Statement: digest(4), Subjects: []string{digest(11)}, Payload: digest(payload)}
}

func signs(payload int) entry.Event {
	return entry.Event{Type: entry.Signed, Request: "r1", Key: "release", Payload: digest(payload), Signature: digest(9)}
}

func with(e entry.Event, change func(*entry.Event)) entry.Event {
	change(&e)
	return e
}

// nightly is a use of the other key, which needs nobody.
func nightly(id string) entry.Event {
	return entry.Event{Type: entry.Intended, Request: id, Key: "nightly", Leaf: digest(3), Policy: digest(1),
		Subjects: []string{digest(12)}, Payload: digest(13), Needs: needs, Rule: "nightly"}
}

// alerts reads a story.
func (s story) alerts(t *testing.T, config string) []*Alert {
	t.Helper()
	c, err := ParseConfig("monitor.yaml", []byte("version: 1\n"+config))
	if err != nil {
		t.Fatal(err)
	}
	l := newLedger(t)
	l.add(t, s...)
	facts := newFacts()
	var all []*Alert
	for _, data := range l.entries {
		all = append(all, facts.read(c, origin, data, noon.Add(time.Hour))...)
	}
	return all
}

// TestRules has a story for each side of each rule.
func TestRules(t *testing.T) {
	t.Parallel()
	agreed := begun().plus(asks(), approves("alice"), approves("bob"))
	ended := func(state string) entry.Event {
		return entry.Event{Type: entry.Ended, Request: "r1", Key: "release", State: state}
	}
	failed := with(signs(20), func(e *entry.Event) { e.Type, e.Signature = entry.Failed, "" })
	lost := with(failed, func(e *entry.Event) { e.Type = entry.Lost })
	rejects := with(approves("carol"), func(e *entry.Event) { e.Type = entry.Rejected })
	withdraws := with(approves("bob"), func(e *entry.Event) { e.Type = entry.Withdrawn })
	blocks := entry.Event{Type: entry.Blocked, Key: "release"}
	unblocks := entry.Event{Type: entry.Unblocked, Key: "release"}
	removes := entry.Event{Type: entry.Removed, Credential: digest(101)}
	enrols := entry.Event{Type: entry.Enrolled, Approver: "dave", Credential: digest(103)}
	retry := with(intends(21), func(e *entry.Event) { e.Retry = true })
	nobodys := with(asks(), func(e *entry.Event) { e.Person = "" })
	at := func(e entry.Event, at time.Time) entry.Event {
		return with(e, func(e *entry.Event) { e.Time = at.UTC().Format(entry.TimeLayout) })
	}
	for name, one := range map[string]struct {
		story story
		want  []string
		text  string
	}{
		"two of two": {agreed.plus(intends(20), signs(20)), nil, ""},
		"one of two": {
			begun().plus(asks(), approves("alice"), intends(20), signs(20)), []string{Approvals}, "1 of 2",
		},
		"nobody": {begun().plus(asks(), intends(20), signs(20)), []string{Approvals}, "0 of 2"},
		"one person twice": {
			begun().plus(asks(), approves("bob"), approves("bob"), intends(20)), []string{Approvals}, "1 of 2",
		},
		"afterwards": {
			begun().plus(asks(), approves("bob"), intends(20), approves("alice"), signs(20)),
			[]string{Approvals}, "1 of 2",
		},
		"withdrawn":          {agreed.plus(withdraws, intends(20)), []string{Approvals}, "1 of 2"},
		"withdrawn, another": {agreed.plus(withdraws, approves("carol"), intends(20), signs(20)), nil, ""},
		"the requester": {
			begun().plus(enrols, asks(), approves("alice"), approves("dave"), intends(20)),
			[]string{Approvals}, "1 of 2",
		},
		"not enrolled": {
			begun().plus(asks(), approves("alice"), approves("dave"), intends(20)), []string{Approvals}, "1 of 2",
		},
		"of another person": {
			begun().plus(asks(), approves("alice"),
				with(approves("bob"), func(e *entry.Event) { e.Credential = digest(102) }), intends(20)),
			[]string{Approvals}, "1 of 2",
		},
		"enrolled later": {
			begun().plus(nobodys, enrols, approves("alice"),
				approves("dave"), intends(20)), []string{Approvals}, "1 of 2",
		},
		"removed": {agreed.plus(removes, intends(20)), []string{Approvals}, "1 of 2"},
		"of another statement": {
			begun().plus(asks(), approves("alice"),
				with(approves("bob"), func(e *entry.Event) { e.Statement = digest(5) }), intends(20)),
			[]string{Approvals}, "1 of 2",
		},
		"of no request": {
			begun().plus(with(intends(20), func(e *entry.Event) { e.Needs, e.Statement = needs, "" }), signs(20)),
			[]string{Approvals}, "0 of 2",
		},
		"a retry": {agreed.plus(intends(20), signs(20), retry, signs(21)), nil, ""},
		"a late retry": {
			agreed.plus(intends(20), signs(20), at(retry, noon.Add(16*time.Minute))), []string{Spent}, "15m",
		},
		"a retry of nothing": {agreed.plus(retry), []string{Spent}, "15m"},
		"a second use":       {agreed.plus(intends(20), signs(20), intends(21)), []string{Spent}, "2 times"},
		"two uses": {
			begun().plus(with(asks(), func(e *entry.Event) { e.Uses = 2 }), approves("alice"), approves("bob"),
				intends(20), signs(20), intends(21), signs(21)), nil, "",
		},
		"a use that failed":  {agreed.plus(intends(20), failed, intends(21), signs(21)), nil, ""},
		"a use that is lost": {agreed.plus(intends(20), lost, intends(21), signs(21)), nil, ""},
		"another artifact": {
			agreed.plus(with(intends(20), func(e *entry.Event) { e.Subjects = []string{digest(12)} })),
			[]string{Spent}, "does not have",
		},
		"another leaf": {
			agreed.plus(with(intends(20), func(e *entry.Event) { e.Leaf = digest(12) })),
			[]string{Unlogged}, "another key",
		},
		"another statement": {
			agreed.plus(with(intends(20), func(e *entry.Event) { e.Statement = digest(12) })),
			[]string{Unlogged}, "another key",
		},
		"another key": {
			agreed.plus(with(intends(20), func(e *entry.Event) { e.Key = "nightly" })),
			[]string{Unlogged}, "another key",
		},
		"the outcome of another key": {
			agreed.plus(intends(20), with(signs(20), func(e *entry.Event) { e.Key = "nightly" })),
			[]string{Unlogged}, "without an intent",
		},
		"rejected":                  {agreed.plus(rejects, intends(20)), []string{Rejected}, "rejected"},
		"rejected meanwhile":        {agreed.plus(intends(20), rejects, signs(20)), []string{Rejected}, "rejected"},
		"expired":                   {agreed.plus(ended("expired"), intends(20)), []string{Rejected}, "expired"},
		"no intent":                 {agreed.plus(signs(20)), []string{Unlogged}, "without an intent"},
		"a lost one without intent": {agreed.plus(lost), []string{Unlogged}, "without an intent"},
		"a failed one without it":   {agreed.plus(failed), nil, ""},
		"other bytes":               {agreed.plus(intends(20), signs(21)), []string{Unlogged}, "without an intent"},
		"signed twice": {
			agreed.plus(intends(20), signs(20), signs(20)), []string{Unlogged}, "without an intent",
		},
		"no request": {begun().plus(intends(20)), []string{Unlogged, Approvals}, "not in the log"},
		"intents without an outcome": {
			agreed.plus(intends(20), with(retry, func(e *entry.Event) { e.Retry = false })),
			[]string{Malformed, Spent}, "no outcome",
		},
		"a request made again": {begun().plus(asks(), asks()), []string{Malformed}, "again"},
		"a request of an unknown policy": {
			begun().plus(with(asks(), func(e *entry.Event) { e.Policy = digest(6) })),
			[]string{Unlogged}, "never in force",
		},
		"a use by an unknown policy": {
			agreed.plus(with(intends(20), func(e *entry.Event) { e.Policy = digest(6) })),
			[]string{Unlogged}, "never in force",
		},
		"blocked": {agreed.plus(blocks, intends(20)), []string{Blocks, BlockedKey}, "is blocked"},
		"blocked meanwhile": {
			agreed.plus(intends(20), blocks, signs(20)), []string{Blocks, BlockedKey}, "is blocked",
		},
		"blocked and lost": {agreed.plus(intends(20), blocks, lost), []string{Blocks}, ""},
		"unblocked":        {agreed.plus(blocks, unblocks, intends(20), signs(20)), []string{Blocks, Blocks}, ""},
		"an emergency": {
			begun().plus(with(asks(), func(e *entry.Event) { e.Why = "outage" }), approves("alice"),
				approves("bob"), intends(20), signs(20), retry, signs(21)), []string{BreakGlass}, "emergencies",
		},
		"another policy": {
			begun().plus(entry.Event{Type: entry.PolicySet, Policy: digest(6)}), []string{Policy}, digest(6),
		},
		"a listed policy": {begun().plus(entry.Event{Type: entry.PolicySet, Policy: digest(1)}), nil, ""},
		"another config": {
			begun().plus(entry.Event{Type: entry.ConfigSet, Config: digest(6)}), []string{ConfigSet}, digest(6),
		},
		"an epoch": {
			agreed.plus(entry.Event{Type: entry.EpochBegun, Epoch: 2}, intends(20)),
			[]string{Epoch, Rejected}, "epoch 2",
		},
		"void approvals": {
			agreed.plus(entry.Event{Type: entry.Voided, Index: 6}, intends(20)),
			[]string{Epoch, Approvals}, "from 6 to 6",
		},
		"a void request": {
			agreed.plus(entry.Event{Type: entry.Voided, Index: 4}, intends(20)),
			[]string{Epoch, Rejected, Approvals}, "from 4",
		},
		"a void unblocking": {
			agreed.plus(blocks, unblocks, entry.Event{Type: entry.Voided, Index: 8}, intends(20)),
			[]string{Blocks, Blocks, Epoch, BlockedKey}, "",
		},
		"a void credential": {
			begun().plus(enrols, entry.Event{Type: entry.Voided, Index: 4}, nobodys, approves("alice"), approves("dave"),
				intends(20)), []string{Epoch, Approvals}, "1 of 2",
		},
		"a credential": {begun().plus(enrols, nobodys, approves("alice"), approves("dave"), intends(20)), nil, ""},
		"voids what comes later": {
			begun().plus(entry.Event{Type: entry.Voided, Index: 5}), []string{Malformed}, "not before",
		},
		"a key that is not listed": {
			begun().plus(with(nightly("a"), func(e *entry.Event) { e.Key = "other" }),
				with(nightly("b"), func(e *entry.Event) { e.Key = "other" })), []string{UnlistedKey}, "other",
		},
		"within hours": {begun().plus(nightly("a")), nil, ""},
		"in the evening": {
			begun().plus(at(nightly("a"), noon.Add(5*time.Hour))), []string{Clock, OutsideHour}, "",
		},
		"before they begin": {
			story{at(begun()[0], noon.Add(-6*time.Hour))}.plus(at(nightly("a"), noon.Add(-5*time.Hour-time.Minute))),
			[]string{OutsideHour}, "07:59 CET",
		},
		"when they begin": {
			story{at(begun()[0], noon.Add(-6*time.Hour))}.plus(at(nightly("a"), noon.Add(-5*time.Hour))), nil, "",
		},
		"on Saturday": {
			story{at(begun()[0], noon.Add(-7*24*time.Hour))}.plus(at(nightly("a"), noon.Add(-6*24*time.Hour))),
			[]string{OutsideHour}, "Sat",
		},
		"backwards": {begun().plus(at(nightly("a"), noon)), []string{Clock}, "before"},
		"in the future": {
			begun().plus(at(nightly("a"), noon.Add(2*time.Hour)), at(nightly("b"), noon.Add(2*time.Hour))),
			[]string{Clock}, "future",
		},
		"a second beginning": {begun().plus(begun()[0]), []string{Malformed}, "entry 4 has the type open/v1"},
		"another beginning":  {begun()[1:], []string{Malformed}, "entry 0"},
		"a change": {
			begun().plus(with(asks(), func(e *entry.Event) { e.What = "policy" }), intends(20)),
			[]string{Unlogged, Approvals}, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			alerts := one.story.alerts(t, listed)
			got := classesOf(alerts)
			if !slices.Equal(got, one.want) || !strings.Contains(textOf(alerts), one.text) {
				t.Errorf("want %v with %q, got:%s", one.want, one.text, textOf(alerts))
			}
		})
	}
}

// TestCredentials alerts of each change of credentials, unless the config turns it off.
func TestCredentials(t *testing.T) {
	t.Parallel()
	s := begun().plus(entry.Event{Type: entry.Removed, Credential: digest(100)},
		entry.Event{Type: entry.Invited, Approver: "dave", NotAfter: noon.Unix()})
	alerts := s.alerts(t, `policies: ["`+digest(1)+`"]`)
	for i, text := range []string{"alice", "bob", "carol", digest(100)[:60], "dave was invited"} {
		if len(alerts) != 5 || alerts[i].Class != Credentials || !strings.Contains(alerts[i].What, text) {
			t.Fatalf("%s", textOf(alerts))
		}
	}
	if alerts := s.alerts(t, listed); len(alerts) > 0 {
		t.Errorf("%s", textOf(alerts))
	}
}
