package notice

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
)

// line is a line of the text of a notice.
type line struct{ label, value string }

// title says in one line what a notice is about.
func (m *message) title() string {
	title := ""
	switch m.Type {
	case broker.NoticePending:
		title = "Approval needed for " + m.asked()
	case broker.NoticeReminder:
		title = "Approval still needed for " + m.asked()
	case broker.NoticeApproved:
		title = "Approved: " + m.asked()
	case broker.NoticeRejected:
		title = "Rejected: " + m.asked()
	case broker.NoticeExpired:
		title = "Expired: " + m.asked()
	case broker.NoticeCancelled:
		title = "Cancelled: " + m.asked()
	case broker.NoticeSigned:
		title = "Signed with the key " + m.Data.Key
	default:
		title = clean(m.Type, maxName) + ": " + m.asked()
	}
	if m.Data.Emergency {
		title = "Emergency: " + title
	}
	return title
}

// asked says what a request asks for.
func (m *message) asked() string {
	d := &m.Data
	switch d.What {
	case "":
		return "a signature with the key " + d.Key
	case broker.ChangePolicy:
		return "a change of the policy"
	case broker.ChangeConfig:
		return "a change of the config"
	case broker.ChangeBlock:
		return "blocking the key " + d.Key
	case broker.ChangeUnblock:
		return "unblocking the key " + d.Key
	case broker.ChangeEpoch:
		return "a new epoch of the log"
	case broker.ChangeEnrol:
		return "a new credential of " + d.Person
	case broker.ChangeRemove:
		return "the removal of a credential of " + d.Person
	}
	return "a change: " + d.What
}

// lines says what a notice has to say, but its page.
func (m *message) lines() (all []line) {
	d := &m.Data
	add := func(label, value string) {
		if value != "" {
			all = append(all, line{label, value})
		}
	}
	if d.Emergency {
		add("Emergency", "an emergency rule was used, and everyone is told")
	}
	add("Request", d.ID)
	if a := d.Artifact; a != nil {
		add("Artifact", a.Digest)
		add("Media type", a.MediaType+", "+strconv.FormatInt(a.Size, 10)+" bytes")
	}
	if d.More > 0 {
		add("More artifacts", strconv.Itoa(d.More))
	}
	add("Repository", d.Repository)
	if d.Requester.Subject != "" {
		add("Requested by", d.Requester.Subject+" ("+d.Requester.Issuer+")")
	}
	add("Their reason", unlinked(d.Why))
	add("Rule", d.Rule)
	for _, n := range d.Needs {
		add("Needed for "+n.Action, n.String())
	}
	if people := strings.Join(d.People, ", "); people != "" {
		if d.MorePeople > 0 {
			people += fmt.Sprintf(" and %d more", d.MorePeople)
		}
		add("Who can approve", people)
	}
	add("Not before", timeOf(d.NotBefore))
	if waits(m.Type) || m.Type == broker.NoticeApproved {
		add("Until", timeOf(d.NotAfter))
	} else {
		add("Why", unlinked(d.Reason))
	}
	return all
}

// unlinked returns text in which no program finds a link.
func unlinked(text string) string { return strings.ReplaceAll(text, "://", "[:]//") }

// String says whose approvals are needed.
func (n need) String() string {
	var rules []string
	for _, r := range n.Rules {
		var groups []string
		for _, g := range r.Groups {
			groups = append(groups, fmt.Sprintf("%d of %s", g.Lacking, g.Group))
		}
		text := strings.Join(groups, " and ")
		if text == "" {
			text = "nobody"
		}
		rules = append(rules, text+" (rule "+r.Rule+")")
	}
	return strings.Join(rules, ", or ")
}

// timeOf returns a time as people read it, or "" for none.
func timeOf(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04 UTC")
}

// closing says what a reader does next.
func (m *message) closing() string {
	if waits(m.Type) {
		return "To approve or reject it, open the page, or run: hsm-broker approve " + m.Data.ID
	}
	return ""
}
