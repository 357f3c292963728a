package notice

import (
	"encoding/json"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// message is what a notice says: the body of a webhook, and what texts are written from. All of its texts are clean and
// bounded, as much of it comes from callers and images.
type message struct {
	Type string    `json:"type"`
	Time time.Time `json:"timestamp"`
	Data data      `json:"data"`
}

// data is what a message says of a request.
type data struct {
	ID         string          `json:"id"`
	State      brokerapi.State `json:"state"`
	Emergency  bool            `json:"emergency,omitempty"`
	What       string          `json:"what,omitempty"` // is changed
	Key        string          `json:"key,omitempty"`
	Rule       string          `json:"rule,omitempty"`
	Artifact   *artifact       `json:"artifact,omitempty"`
	More       int             `json:"more_artifacts,omitempty"` // number of artifacts besides
	Repository string          `json:"repository,omitempty"`
	Person     string          `json:"person,omitempty"` // whose credential is added or removed
	Requester  requester       `json:"requester"`
	Why        string          `json:"why,omitempty"`    // the requester's reason
	Reason     string          `json:"reason,omitempty"` // why it waits or has ended
	Created    time.Time       `json:"created"`
	NotBefore  *time.Time      `json:"not_before,omitempty"`
	NotAfter   *time.Time      `json:"not_after,omitempty"`
	Needs      []need          `json:"needs,omitempty"`
	People     []string        `json:"people,omitempty"`      // who can approve it
	MorePeople int             `json:"more_people,omitempty"` // number of those besides
	URL        string          `json:"url"`                   // of its page
}

type artifact struct {
	MediaType string `json:"media_type"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

type requester struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
}

// need is an action that must be allowed: any one of its rules is enough.
type need struct {
	Action string `json:"action"`
	Key    string `json:"key,omitempty"`
	Rules  []rule `json:"rules"`
}

type rule struct {
	Rule   string  `json:"rule"`
	Groups []group `json:"groups"`
}

type group struct {
	Group   string `json:"group"`
	Lacking int    `json:"lacking"`
}

// Bounds of a message. Texts are counted in characters, of up to 6 bytes in JSON.
const (
	maxName    = 100
	maxValue   = 500
	maxReason  = 1000
	maxPeople  = 50
	maxRules   = 8  // of a need, and needs of a request
	maxGroups  = 40 // of all rules
	maxMessage = 32 << 10
)

// messageOf returns what a notice says.
func (n *Notices) messageOf(event *broker.Notice) *message {
	r := &event.Request
	m := &message{Type: event.Type, Time: event.Time.UTC(), Data: data{
		ID: clean(r.ID, maxName), State: r.State, Emergency: event.Everyone, What: clean(r.What, maxName),
		Key: clean(r.Key, maxName), Rule: clean(r.Rule, maxName), More: len(r.More),
		Repository: clean(r.Repository, maxValue), Person: clean(r.Person, maxName),
		Requester: requester{clean(r.Requester.Issuer, maxValue), clean(r.Requester.Subject, maxValue)},
		Why:       clean(r.Why, maxReason), Reason: clean(r.Reason, maxReason), Created: r.Created.UTC(),
		NotBefore: r.NotBefore, NotAfter: r.NotAfter, URL: n.pageOf(clean(r.ID, maxName)),
	}}
	if a := r.Artifact; a != nil {
		m.Data.Artifact = &artifact{clean(a.MediaType, maxName), clean(a.Digest, 2*maxName), a.Size}
	}
	if !waits(event.Type) {
		return m
	}
	m.Data.Needs = needsOf(r.Needs)
	for _, person := range event.People[:min(len(event.People), maxPeople)] {
		m.Data.People = append(m.Data.People, clean(person, maxName))
	}
	m.Data.MorePeople = len(event.People) - len(m.Data.People)
	return m
}

// waits reports whether notices of a type ask people to act.
func waits(event string) bool { return event == broker.NoticePending || event == broker.NoticeReminder }

// needsOf returns the needs of a request that lack approvals.
func needsOf(all []brokerapi.Need) (needs []need) {
	groups := 0
	for _, from := range all[:min(len(all), maxRules)] {
		n := need{Action: clean(from.Action, maxName), Key: clean(from.Key, maxName), Rules: []rule{}}
		for _, a := range from.Alternatives[:min(len(from.Alternatives), maxRules)] {
			if a.Reason != "" { // it cannot be fulfilled
				continue
			}
			one := rule{Rule: clean(a.Rule, maxName), Groups: []group{}}
			for _, g := range a.Groups {
				if groups++; g.Lacking > 0 && groups <= maxGroups {
					one.Groups = append(one.Groups, group{clean(g.Group, maxName), g.Lacking})
				}
			}
			n.Rules = append(n.Rules, one)
		}
		needs = append(needs, n)
	}
	return needs
}

// encode returns a message as JSON, of maxMessage bytes at most.
func (m *message) encode() []byte {
	data, err := json.Marshal(m)
	if err != nil {
		panic(err) // every field can be encoded
	}
	if len(data) <= maxMessage {
		return data
	}
	short := *m
	short.Data.MorePeople += len(short.Data.People)
	short.Data.Needs, short.Data.People = nil, nil
	if data, err = json.Marshal(&short); err != nil {
		panic(err)
	}
	return data
}

// decode reads a message that the store has.
func decode(body []byte) (*message, error) {
	m := &message{}
	return m, json.Unmarshal(body, m)
}

// clean returns text in one line, of limit characters at most. It replaces characters that cannot be seen, or that
// change how what follows is shown: controls, directions of writing, line separators, and bytes that are not UTF-8.
func clean(text string, limit int) string {
	var out strings.Builder
	count := 0
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		text = text[size:]
		if count++; count == limit && text != "" {
			out.WriteRune('…')
			break
		}
		if !unicode.IsPrint(r) {
			r = unicode.ReplacementChar
		}
		out.WriteRune(r)
	}
	return out.String()
}
