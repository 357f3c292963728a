package report

import (
	_ "embed"
	"encoding/hex"
	"html/template"
	"io"
	"strings"
)

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"hex": hex.EncodeToString, "when": when, "leaf": func(l *Line) []byte { return l.Proof[len(l.Proof)-1].Hash },
	"words": func(what string) string { return words[what] },
}).Parse(page))

// words are what people read of a line.
var words = map[string]string{Signature: "Signature", Lost: "Signature lost", Opened: "Log began",
	Policy: "Policy changed", Config: "Config changed", Block: "Key blocked", Unblock: "Key unblocked",
	Enrol: "Credential enrolled", Remove: "Credential removed", Invite: "Invitation to enrol a passkey",
	Epoch: "New epoch of the log", Void: "Entries voided", BreakGlass: "Break-glass signature",
	NoApprovals: "Signature without approvals", Missing: "Signature whose approvals are missing"}

// when returns a time for people, to the second.
func when(text string) string {
	date, rest, ok := strings.Cut(text, "T")
	if !ok || len(rest) < 8 {
		return text
	}
	return date + " " + rest[:8]
}

// shown is a line as the page shows it.
type shown struct {
	*Line

	Approvers []string
	By        string
	Whose     string
}

// signatures are those by a key and a rule, as the page shows them.
type signatures struct {
	Group

	ID          int
	Count       int
	NoApprovals int64
}

// WriteHTML writes a report as a page without scripts and without anything from elsewhere, for people and printers.
func (r *Report) WriteHTML(w io.Writer) error {
	var failed error
	each := func(lines func(yield func(*Line, error) bool)) func(func(*shown) bool) {
		return func(yield func(*shown) bool) {
			for l, err := range lines {
				if err != nil {
					failed = err
					return
				}
				if !yield(r.shown(l)) {
					return
				}
			}
		}
	}
	var groups []signatures
	plain := int64(0)
	for i, group := range r.Groups() {
		s := signatures{Group: group, ID: i + 1, Count: len(r.groups[group]), NoApprovals: r.without[group]}
		plain += s.NoApprovals
		groups = append(groups, s)
	}
	err := pageTemplate.Execute(w, map[string]any{"About": &r.About, "Groups": groups, "Other": r.About.Exceptions - plain,
		"NoApprovals": plain, "Whole": r.About.Last >= r.About.To, "From": when(r.About.From), "To": when(r.About.To),
		"Exceptions": each(func(yield func(*Line, error) bool) {
			for l, err := range r.Exceptions() {
				if err == nil && l.Exception == NoApprovals { // the page counts them
					continue
				}
				if !yield(l, err) {
					return
				}
			}
		}),
		"Of": func(s signatures) func(func(*shown) bool) { return each(r.Of(s.Group)) },
	})
	if err == nil {
		err = failed
	}
	return err
}

// shown returns a line as the page shows it.
func (r *Report) shown(l *Line) *shown {
	s := &shown{Line: l, By: l.requester(), Whose: r.name(l.Person)}
	for _, a := range l.Approvals {
		s.Approvers = append(s.Approvers, r.name(a.Approver)+", "+when(a.Time))
	}
	return s
}
