package web

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// requestView is everything that the broker knows of a request.
type requestView struct {
	*brokerapi.Request
	Done      string
	Targets   []brokerapi.Target
	Document  []byte              // the statement; nil if nobody has to agree
	Predicate *approval.Predicate // of the statement
	Run       link                // from which the requester called
	Shared    []named             // claims of the requester, by name
	Policy    *policyView         // that is proposed
	Passkey   *credentialView     // or another credential that is added or removed
	Config    string              // that is proposed
	Registry  *registryView
	Emergency bool // by a rule for emergencies
	You       *you
}

// Expires returns how long signatures are valid, in words.
func (v *requestView) Expires() string { return secondsOf(v.Expiry) }

// link is a link to another site.
type link struct{ Text, URL string }

// named is a name with a value.
type named struct{ Name, Value string }

// policyView is a policy that is proposed, beside the one that was in force when it was.
type policyView struct {
	Changes []policy.Change
	Text    string
	Failure string // why they cannot be compared
}

// credentialView is a credential that is added or removed.
type credentialView struct {
	*approval.Credential
	ID     string
	Label  string
	Person string
}

// request shows a request.
func (w *Web) request(r *http.Request, p *who) (*view, error) {
	id := r.PathValue("id")
	found, err := w.options.Broker.Request(r.Context(), p.caller(), id)
	if err != nil {
		return nil, err
	}
	v := &requestView{Request: found, Done: done(r)}
	if found.Artifact != nil {
		v.Targets = append([]brokerapi.Target{*found.Artifact}, found.More...)
	}
	all, err := w.options.Broker.CredentialsOf(r.Context(), p.Person)
	if err != nil {
		return nil, err
	}
	var rules []*approval.Rule
	if found.Statement == "" {
		v.addClaims(&approval.Opening{})
	} else {
		evidence, err := w.addEvidence(r.Context(), p, v)
		if err != nil {
			return nil, err
		}
		if rules, err = rulesOf(evidence); err != nil {
			return nil, err
		}
		v.Emergency = emergency(rules)
	}
	if v.Registry, err = w.registryOf(r.Context(), p, found); err != nil {
		return nil, err
	}
	v.You = youOf(p.Person, found, all, listed(rules, all))
	return &view{Template: "request", Title: titleOf(found), Section: "requests", Data: v}, nil
}

// addEvidence adds what the statement and the documents beside it say, and returns them.
func (w *Web) addEvidence(ctx context.Context, p *who, v *requestView) (*brokerapi.Evidence, error) {
	evidence, err := w.options.Broker.Evidence(ctx, p.caller(), v.ID)
	if err != nil {
		return nil, err
	}
	statement, err := approval.DecodeStatement(evidence.Statement)
	if err != nil {
		return nil, err
	}
	if hash := approval.Hash(evidence.Statement); hash != v.Statement {
		return nil, failure.New(failure.Internal, "the statement of request %s is not the one of the log", v.ID)
	}
	v.Document, v.Predicate = evidence.Statement, &statement.Predicate
	var opening approval.Opening
	if json.Unmarshal(evidence.Opening, &opening) == nil {
		v.addClaims(&opening)
	}
	if c := statement.Predicate.Change; c != nil {
		v.addChange(c, statement.Predicate.Policy, evidence.Documents)
	}
	return evidence, nil
}

// addChange adds what is proposed.
func (v *requestView) addChange(c *approval.Change, current string, documents map[string][]byte) {
	if c.Policy != "" {
		v.Policy = comparePolicies(documents[current], documents[c.Policy])
	}
	if c.Config != "" {
		v.Config = string(documents[c.Config])
	}
	if c.Credential != "" {
		if read, err := approval.DecodeCredential(documents[c.Credential]); err == nil {
			v.Passkey = &credentialView{Credential: read, ID: c.Credential, Label: labelOf(read), Person: v.Person}
		}
	}
}

// comparePolicies returns what a new policy changes, in words.
func comparePolicies(before, after []byte) *policyView {
	v := &policyView{Text: string(after)}
	old, err := policy.Parse(before)
	if err == nil {
		var proposed *policy.Policy
		if proposed, err = policy.Parse(after); err == nil {
			v.Changes = policy.Compare(old, proposed).Changes
			return v
		}
	}
	v.Failure = failure.From(err).What
	return v
}

// addClaims adds the claims of the requester: those of its token that tell where it comes from, and those that the
// statement binds.
func (v *requestView) addClaims(o *approval.Opening) {
	values := maps.Clone(v.Requester.Claims)
	if values == nil {
		values = map[string]string{}
	}
	for name, text := range o.Claims {
		var plain string
		if json.Unmarshal([]byte(text), &plain) != nil {
			plain = text
		}
		values[name] = plain
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		v.Shared = append(v.Shared, named{name, values[name]})
	}
	v.Run = runOf(v.Requester.Issuer, values)
}

// What links to workflow runs are made of.
var (
	projectPath = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){1,20}$`)
	number      = regexp.MustCompile(`^[0-9]{1,20}$`)
)

// gitHub is the issuer of tokens of github.com; that of a GitHub Enterprise Server ends with enterprise.
const (
	gitHub     = "https://token.actions.githubusercontent.com"
	enterprise = "/_services/token"
)

// runOf returns a link to the workflow run or the job that a token was for, by its claims.
func runOf(issuer string, claims map[string]string) link {
	server := issuer
	project, isGitHub := claims["repository"], true
	switch {
	case issuer == gitHub || strings.HasPrefix(issuer, gitHub+"/"):
		server = "https://github.com"
	case strings.HasSuffix(issuer, enterprise):
		server = strings.TrimSuffix(issuer, enterprise)
	default:
		project, isGitHub = claims["project_path"], false
	}
	if https(server) == "" || !projectPath.MatchString(project) {
		return link{}
	}
	page := server + "/" + project
	switch {
	case isGitHub && number.MatchString(claims["run_id"]):
		return link{"workflow run " + claims["run_id"] + " of " + project, page + "/actions/runs/" + claims["run_id"]}
	case !isGitHub && number.MatchString(claims["job_id"]):
		return link{"job " + claims["job_id"] + " of " + project, page + "/-/jobs/" + claims["job_id"]}
	case !isGitHub && number.MatchString(claims["pipeline_id"]):
		return link{"pipeline " + claims["pipeline_id"] + " of " + project, page + "/-/pipelines/" + claims["pipeline_id"]}
	}
	return link{project, page}
}

// titleOf says in a few words what a request is for.
func titleOf(r *brokerapi.Request) string {
	switch r.What {
	case broker.ChangePolicy:
		return "Change the policy"
	case broker.ChangeConfig:
		return "Change the config"
	case broker.ChangeBlock:
		return "Block the key " + r.Key
	case broker.ChangeUnblock:
		return "Unblock the key " + r.Key
	case broker.ChangeEpoch:
		return "Begin a new epoch of the log"
	case broker.ChangeEnrol:
		return "Enrol a credential of " + r.Person
	case broker.ChangeRemove:
		return "Remove a credential of " + r.Person
	}
	switch {
	case r.Repository != "":
		return "Sign " + r.Repository
	case r.Artifact != nil && r.Artifact.Digest != "":
		return "Sign " + short(r.Artifact.Digest)
	}
	return "Sign with the key " + r.Key
}

// you is what a person can do about a request.
type you struct {
	Approve  bool   // with a passkey, on the page
	Reject   bool   // likewise
	Withdraw bool   // likewise
	Cancel   bool   // it is the person's own
	Key, SSH bool   // with a command
	Lacks    bool   // a credential that counts, although one is asked for
	Late     bool   // credentials, but none that was enrolled before the request
	Why      string // no approval is asked of the person; "" otherwise
}

// youOf returns what a person can do about a request. all are their credentials, and those of them that count for this
// request are listed.
func youOf(person string, r *brokerapi.Request, all, listed map[string]*approval.Credential) *you {
	y := &you{}
	if r.State != brokerapi.Pending && r.State != brokerapi.Approved {
		return y
	}
	own := r.Requester.Issuer == callerOf(person).Issuer && r.Requester.Subject == person
	if own {
		y.Cancel, y.Why = true, "You have asked for it: others have to agree."
		return y
	}
	asked := groupsOf(person, r)
	if len(asked) == 0 {
		y.Why = "Your approval is not needed."
		return y
	}
	y.Late = len(listed) == 0 && len(all) > 0
	y.Reject = has(listed, approval.Passkey)
	y.Key, y.SSH = has(listed, approval.Key), has(listed, approval.SSH)
	agreed := slices.ContainsFunc(r.Approvals, func(a brokerapi.Approval) bool {
		return a.Person == person && a.Decision == string(approval.Approve) && a.Counts
	})
	y.Withdraw = agreed && y.Reject
	switch {
	case agreed:
		y.Why = "You have agreed."
	case r.State == brokerapi.Approved:
		y.Why = "Enough people have agreed."
	case !r.Waiting:
		y.Why = "Your approval is not needed."
	default:
		y.choose(asked, listed)
	}
	return y
}

// groupsOf returns the groups of a person in the rules by which a request can still be allowed.
func groupsOf(person string, r *brokerapi.Request) (groups []brokerapi.GroupNeed) {
	for _, need := range r.Needs {
		for _, alternative := range need.Alternatives {
			for _, g := range alternative.Groups {
				if alternative.Reason == "" && slices.Contains(g.Members, person) {
					groups = append(groups, g)
				}
			}
		}
	}
	return groups
}

// choose finds what a person can sign with, so that it counts for one of their groups.
func (y *you) choose(groups []brokerapi.GroupNeed, listed map[string]*approval.Credential) {
	y.Key, y.SSH = false, false
	for _, c := range listed {
		if !slices.ContainsFunc(groups, func(g brokerapi.GroupNeed) bool { return counts(&g, c) }) {
			continue
		}
		y.Approve = y.Approve || c.Kind == approval.Passkey
		y.Key = y.Key || c.Kind == approval.Key
		y.SSH = y.SSH || c.Kind == approval.SSH
	}
	y.Lacks = !y.Approve && !y.Key && !y.SSH
}

// listed returns those credentials of a person that the rules of a request list: the ones enrolled before it was made.
func listed(rules []*approval.Rule, all map[string]*approval.Credential) map[string]*approval.Credential {
	found := map[string]*approval.Credential{}
	for id, c := range all {
		if slices.ContainsFunc(rules, func(r *approval.Rule) bool { return r.Has(c.Approver, id) }) {
			found[id] = c
		}
	}
	return found
}

// rulesOf returns the rules of a request.
func rulesOf(e *brokerapi.Evidence) (all []*approval.Rule, err error) {
	for _, document := range e.Rules {
		rule, _, err := approval.DecodeRule(document)
		if err != nil {
			return nil, err
		}
		all = append(all, rule)
	}
	return all, nil
}

// emergency reports whether one of the rules of a request is for emergencies.
func emergency(rules []*approval.Rule) bool {
	return slices.ContainsFunc(rules, func(r *approval.Rule) bool { return r.BreakGlass })
}

// counts reports whether approvals with a credential count for a group.
func counts(g *brokerapi.GroupNeed, c *approval.Credential) bool {
	vote := c.Vote()
	return slices.Contains(g.Kinds, string(c.Kind)) && (c.Kind != approval.Passkey ||
		(vote.Attested || !g.Attested) && (vote.DeviceBound || !g.DeviceBound))
}

func has(all map[string]*approval.Credential, kind approval.Kind) bool {
	return slices.ContainsFunc(values(all), func(c *approval.Credential) bool { return c.Kind == kind })
}

func values(all map[string]*approval.Credential) []*approval.Credential {
	return slices.Collect(maps.Values(all))
}

// cancel ends a request of the person's own.
func (w *Web) cancel(_ http.ResponseWriter, r *http.Request, p *who) (*view, error) {
	id := r.PathValue("id")
	if _, err := w.options.Broker.Cancel(r.Context(), p.caller(), id); err != nil {
		return nil, err
	}
	return &view{Location: brokerapi.PagePath(id) + "?done=cancelled"}, nil
}

// proof returns the entries of a request with their proofs, as a file.
func (w *Web) proof(r *http.Request, p *who) (*view, error) {
	id := r.PathValue("id")
	found, err := w.options.Broker.Request(r.Context(), p.caller(), id)
	if err != nil {
		return nil, err
	}
	if found.Proof == nil {
		return nil, failure.New(failure.Unavailable, "no checkpoint covers the entries of request %.40q yet", id).
			WithHint("try again in a second")
	}
	data, err := json.MarshalIndent(found.Proof, "", "  ")
	if err != nil {
		return nil, err
	}
	return &view{Raw: data, Name: "proof-" + safeName(id) + ".json"}, nil
}

// safeName returns what a name of a file may have of an ID.
func safeName(id string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, id)
}
