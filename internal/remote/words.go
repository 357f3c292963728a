package remote

import (
	"fmt"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// Describe returns what people want to know of a request: rows of a name and a value, the first with the ID.
func Describe(r brokerapi.Request) [][]string {
	rows := [][]string{{"REQUEST", r.ID}, {"state", string(r.State)}}
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name, value})
		}
	}
	at := func(name string, t *time.Time) {
		if t != nil {
			add(name, t.UTC().Format(time.RFC3339))
		}
	}
	add("reason", r.Reason)
	add("url", r.URL)
	add("key", r.Key)
	add("rule", r.Rule)
	if r.Artifact != nil {
		add("digest", r.Artifact.Digest)
	}
	for _, more := range r.More {
		add("and", more.Digest)
	}
	add("repository", r.Repository)
	add("changes", r.What)
	add("policy", r.Policy)
	add("person", r.Person)
	add("credential", r.Credential)
	add("requester", r.Requester.Subject)
	add("why", r.Why)
	for _, n := range r.Needs {
		add("needs", needed(n))
	}
	for _, a := range r.Approvals {
		text := fmt.Sprintf("%s: %s (%s)", a.Person, a.Decision, a.Kind)
		if a.Why != "" {
			text += ": does not count: " + a.Why
		}
		add("decided", text)
	}
	at("created", &r.Created)
	at("not before", r.NotBefore)
	at("not after", r.NotAfter)
	return rows
}

// maxNames is how many people of a group are named.
const maxNames = 12

// needed says who has to agree still, for any one of the alternatives; "" if one of them is allowed.
func needed(n brokerapi.Need) string {
	var all []string
	for _, a := range n.Alternatives {
		if a.Allowed {
			return ""
		}
		var parts []string
		for _, g := range a.Groups {
			if g.Lacking == 0 {
				continue
			}
			names := g.Members
			more := ""
			if len(names) > maxNames {
				names, more = names[:maxNames], fmt.Sprintf(" and %d more", len(names)-maxNames)
			}
			parts = append(parts, fmt.Sprintf("%d of %s (%s%s)", g.Lacking, g.Group, strings.Join(names, ", "), more))
		}
		text := strings.Join(parts, " and ")
		switch {
		case a.Reason != "":
			continue // it cannot be fulfilled
		case text == "" && a.NotBefore != nil:
			text = "its time lock"
		case text == "":
			text = "nobody"
		}
		all = append(all, text+" by rule "+a.Rule)
	}
	text := strings.Join(all, ", or ")
	if n.Action != "use" && text != "" {
		text = strings.TrimSpace(n.Action+" "+n.Key) + ": " + text
	}
	return text
}

// List returns what people want to know of many requests: a row each, after one with the names of the columns.
func List(page brokerapi.Requests) [][]string {
	rows := [][]string{{"ID", "STATE", "KEY", "ASKS FOR", "REQUESTER", "CREATED"}}
	for _, r := range page.Requests {
		subject := r.What
		if r.Artifact != nil {
			subject = r.Artifact.Digest
		}
		rows = append(rows, []string{r.ID, string(r.State), orDash(r.Key), orDash(subject), r.Requester.Subject,
			r.Created.UTC().Format(time.RFC3339)})
	}
	return rows
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
