package approver

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// Table is a part of what people read of a request.
type Table struct {
	Header []string
	Rows   [][]string
}

func (t *Table) add(name, format string, args ...any) {
	t.Rows = append(t.Rows, []string{name, fmt.Sprintf(format, args...)})
}

// Tables returns what the evidence says: what is asked for and by whom, who must agree, who has decided, and what
// changes. person is whose credential is added or removed, as the broker says.
func (s *Seen) Tables(person string) []Table {
	all := []Table{s.asked(person), s.needed()}
	if len(s.Decisions) > 0 {
		all = append(all, s.decided())
	}
	if s.After != nil {
		all = append(all, s.policyChanges())
	}
	if s.Config != nil {
		all = append(all, configTable(s.Config))
	}
	return all
}

// asked says what is asked for, and by whom.
func (s *Seen) asked(person string) Table {
	p := s.Statement.Predicate
	t := Table{Header: []string{"REQUEST", s.ID}}
	if p.Change != nil {
		s.changes(&t, person)
	} else {
		s.signs(&t)
	}
	if s.erased != "" {
		t.add("not shown", "%s: the broker has erased it, so that nobody can approve the request", s.erased)
	}
	if s.Requester.Subject != "" {
		t.add("requester", "%s at %s", s.Requester.Subject, s.Requester.Issuer)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Requester.Claims)) {
		t.add("", "%s: %s", name, s.Requester.Claims[name])
	}
	if p.Reason != "" {
		t.add("reason", "%s", p.Reason)
	}
	t.add("broker", "%s", p.Broker)
	t.add("created", "%s", unix(p.Created))
	if p.NotAfter != 0 {
		t.add("expires", "%s", unix(p.NotAfter))
	}
	t.add("statement", "%s", s.Hash)
	if name := s.names[s.You]; name != "" {
		t.add("you are", "%s", name)
	}
	return t
}

// signs says which artifacts are to be signed.
func (s *Seen) signs(t *Table) {
	p := s.Statement.Predicate
	t.add("asks for", "a signature of %s", plural(len(p.Targets), "artifact"))
	if p.Key != nil {
		leaf := p.Key.Leaf
		if leaf == "" {
			leaf = "none"
		}
		t.add("key", "%s, certificate %s", p.Key.Name, leaf)
	}
	if p.Repository != "" {
		t.add("repository", "%s", p.Repository)
	}
	for i, target := range p.Targets {
		if target.Digest == "" { // of a payload that names no artifact
			t.add("to be signed", "%s", s.subject(i))
		} else {
			t.add("artifact", "%s", target.Digest)
		}
		t.add("", "%s, %d bytes, format %s", target.MediaType, target.Size, target.Format)
		if target.Name != "" {
			t.add("", "named %s by the signer", target.Name)
		}
		for _, name := range slices.Sorted(maps.Keys(target.Annotations)) {
			t.add("", "annotation %s=%s", name, target.Annotations[name])
		}
	}
	valid := "without an end"
	if p.Expiry > 0 {
		valid = (time.Duration(p.Expiry) * time.Second).String() + " from the signing time"
	}
	t.add("valid", "%s", valid)
}

// changes says what is to be changed.
func (s *Seen) changes(t *Table, person string) {
	p := s.Statement.Predicate
	name := ""
	if p.Key != nil {
		name = p.Key.Name
	}
	what := map[string]string{
		"policy": "another policy, see below", "config": "another config, see below",
		"block":   fmt.Sprintf("blocking the key %q", name),
		"unblock": fmt.Sprintf("unblocking the key %q", name),
		"epoch":   "a new epoch of the log: entries were lost",
		"enrol":   "a credential to be added", "remove": "a credential to be removed",
	}[p.Change.What]
	t.add("asks for", "%s", what)
	if p.Change.Policy != "" {
		t.add("policy", "%s", p.Change.Policy)
	}
	if c := s.Credential; c != nil {
		if known := s.names[c.Approver]; known != "" {
			t.add("person", "%s", known)
		} else {
			t.add("person", "%s, as the broker says: no rule of the request names the person", person)
		}
		t.add("credential", "%s", CredentialText(c))
		t.add("", "%s", p.Change.Credential)
	}
}

// needed says who must agree.
func (s *Seen) needed() Table {
	t := Table{Header: []string{"NEEDED FOR", "ANY OF", "DEMANDS", "LACKS"}}
	for _, n := range s.Needs {
		what := n.Need.Action
		if n.Need.Key != "" {
			what += " of " + n.Need.Key
		}
		for _, a := range n.Alternatives {
			rows := s.demands(&a)
			rows[0][0], rows[0][1] = what, a.Name
			t.Rows = append(t.Rows, rows...)
		}
	}
	return t
}

// demands says what a rule demands besides its condition, in a row each.
func (s *Seen) demands(a *approval.Alternative) (rows [][]string) {
	add := func(lacks, format string, args ...any) {
		rows = append(rows, []string{"", "", fmt.Sprintf(format, args...), lacks})
	}
	for i, g := range a.Groups {
		lacks := "nobody"
		if a.Lacking[i] > 0 {
			lacks = strconv.Itoa(a.Lacking[i])
		}
		add(lacks, "%d of %s (%s)%s", g.Quorum, g.Name, s.people(g.Members), kinds(g))
	}
	if lock := a.Rule.TimeLock; lock != nil {
		from := "the request"
		if lock.After == string(policy.AfterApprovals) {
			from = "the last approval"
		}
		add("", "%s after %s", time.Duration(lock.Seconds)*time.Second, from)
	}
	if a.Rule.Uses > 1 {
		add("", "up to %d signatures of each", a.Rule.Uses)
	}
	if a.Rule.BreakGlass {
		add("", "for emergencies")
	}
	if len(rows) == 0 {
		add("", "nothing")
	}
	return rows
}

// maxNames is how many people of a group are named.
const maxNames = 12

func (s *Seen) people(ids []string) string {
	var names []string
	for _, id := range ids {
		names = append(names, s.Name(id))
	}
	slices.Sort(names)
	if more := len(names) - maxNames; more > 0 {
		names = append(names[:maxNames], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// kinds says which approvals a group counts; "" for all.
func kinds(g approval.Group) string {
	var all []string
	for _, k := range g.Kinds {
		text := string(k)
		if k == approval.Passkey && g.Attested {
			text += " (attested)"
		}
		if k == approval.Passkey && g.DeviceBound {
			text += " (device-bound)"
		}
		all = append(all, text)
	}
	if len(all) == len(policy.Kinds) && !g.Attested && !g.DeviceBound {
		return ""
	}
	return " by " + strings.Join(all, ", ")
}

// decided says who has decided.
func (s *Seen) decided() Table {
	t := Table{Header: []string{"PERSON", "DECISION", "CREDENTIAL", "TIME", "REASON"}}
	for _, d := range s.Decisions {
		t.Rows = append(t.Rows, []string{s.Name(d.Approver), string(d.Decision), CredentialText(d.Credential),
			d.Time.UTC().Format(time.RFC3339), orText(d.Reason, "-")})
	}
	return t
}

// policyChanges says what a proposed policy changes.
func (s *Seen) policyChanges() Table {
	t := Table{Header: []string{"IN THE POLICY", "CHANGE"}}
	for _, c := range policy.Compare(s.Before, s.After).Changes {
		t.Rows = append(t.Rows, []string{c.Path, c.What})
	}
	if len(t.Rows) == 0 {
		t.Rows = [][]string{{"-", "the policies have the same effect"}}
	}
	return t
}

// configTable shows what counts of a config.
func configTable(config []byte) Table {
	t := Table{Header: []string{"IN THE CONFIG", "VALUE"}}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(config, &all); err != nil {
		return Table{Header: []string{"CONFIG"}, Rows: [][]string{{string(config)}}}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Rows = append(t.Rows, []string{name, string(all[name])})
	}
	return t
}

// Table returns what the registry says of an artifact.
func (a *Artifact) Table() Table {
	t := Table{Header: []string{"IN THE REGISTRY", a.Digest}}
	t.add("found", "digest, size and media type are those of the statement")
	if a.Layers > 0 {
		t.add("layers", "%d", a.Layers)
	}
	for _, p := range a.Platforms {
		t.add("platform", "%s", strings.TrimSpace(p.Name+" "+p.Digest))
	}
	for _, c := range a.Claims {
		t.add("claims "+c.Name, "%s", c.Value)
	}
	return t
}

// CredentialText names a credential by its kind and its fingerprint, and says what is known of a passkey.
func CredentialText(c *approval.Credential) string {
	text := string(c.Kind) + " " + c.Fingerprint()
	if c.Passkey == nil {
		return text
	}
	text += ", authenticator " + c.Passkey.AAGUID
	if c.Passkey.Attested {
		text += ", attested"
	}
	if c.Passkey.BackupEligible {
		return text + ", can be copied to other devices"
	}
	return text + ", device-bound"
}

func unix(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

func orText(text, none string) string {
	if text == "" {
		return none
	}
	return text
}
