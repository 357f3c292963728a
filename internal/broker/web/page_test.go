package web

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/repository"
)

// pagesOf are all pages of a person who has signed in.
func pagesOf(ids ...string) []string {
	all := []string{"/", "/requests", "/requests?q=registry.example.com/team/app&key=release&state=pending", "/keys",
		"/keys/release/block", "/keys/release/unblock", "/policy", "/approvers", "/log", "/signin", "/enrol", "/enrol/done",
		"/nothing"}
	for _, id := range ids {
		all = append(all, "/requests/"+id)
	}
	return all
}

// TestEmpty renders every page of a broker that has nothing.
func TestEmpty(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) {
		o.Checkpoint = func(context.Context) ([]byte, error) { return nil, nil }
	})
	p := f.signIn("alice")
	for _, path := range pagesOf() {
		_, body := p.do(p.request(http.MethodGet, path, "", nil))
		checkPage(t, path, body)
	}
	for path, text := range map[string]string{"/": "Nothing waits for you", "/requests": "There is no request yet",
		"/requests?q=x": "No request fits", "/log": "no checkpoint yet"} {
		if !strings.Contains(p.get(path), text) {
			t.Errorf("%s does not say %q", path, text)
		}
	}
}

// TestMany renders every page of a broker that has much, pages lists, and asks the broker as often as with little.
func TestMany(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i := range 3 {
		f.add(i)
	}
	p := f.signIn("alice")
	few := map[string]int{}
	calls := func(path string) int {
		f.broker.calls = 0
		p.get(path)
		return f.broker.calls
	}
	last := fmt.Sprintf("%032x", 2)
	paths := append(pagesOf(last)[:9], "/requests/"+last, "/credentials/"+p.id+"/remove")
	for _, path := range paths {
		few[path] = calls(path)
	}
	for i := 3; i < 10_000; i++ {
		f.add(i)
	}
	f.broker.people = 1000
	for _, path := range paths {
		if many := calls(path); many != few[path] || many > 12 {
			t.Errorf("%s: %d calls, and %d with few requests", path, many, few[path])
		}
		_, body := p.do(p.request(http.MethodGet, path, "", nil))
		checkPage(t, path, body)
	}
	for _, first := range []string{"/", "/requests", "/requests?state=pending&key=release", "/approvers"} {
		seen := map[string]bool{}
		next := first
		for range 3 {
			body := p.get(next)
			rows := regexp.MustCompile(`href="/requests/[0-9a-f]{32}"|id="person-[^"]+"`).FindAllString(body, -1)
			if len(rows) != perPage {
				t.Fatalf("%s has %d rows", next, len(rows))
			}
			for _, row := range rows {
				if seen[row] {
					t.Fatalf("%s has %s again", next, row)
				}
				seen[row] = true
			}
			link := regexp.MustCompile(`id="next" rel="next" href="([^"]+)"`).FindStringSubmatch(body)
			if link == nil {
				t.Fatalf("%s has no next page", next)
			}
			next = html.UnescapeString(link[1])
		}
	}
	if to := p.history(t, last); to != "/requests/"+last {
		t.Errorf("the search for an ID leads to %s", to)
	}
	if body := p.get("/requests?q=" + f.broker.requests[7].Artifact.Digest); strings.Count(body, "<tr>") != 2 {
		t.Error("the search for a digest")
	}
}

// history searches, and returns where the page leads.
func (p *person) history(t *testing.T, text string) string {
	t.Helper()
	answer, _ := p.do(p.request(http.MethodGet, "/requests?q="+text, "", nil))
	return answer.Header.Get("Location")
}

// hostile is a text that whoever asks can choose.
const hostile = "\"><script>alert(1)</script><img src=x onerror=alert(2)>\u202egnp.exe\u200b\x1b[31m{{.}}'--\n"

// TestHostile shows texts from outside as texts: with all that hides visible, and no link but https.
func TestHostile(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) {
		o.Details = func(context.Context, string, string) (*repository.Details, error) {
			image := repository.Image{Manifest: repository.Manifest{Digest: hostile, Platform: hostile},
				Layers: []repository.Layer{{Digest: hostile, Size: 1}}}
			return &repository.Details{Tags: []string{hostile}, Missing: []string{hostile}, Images: []repository.Image{image},
				Attached: []repository.Attached{{Kind: repository.Other, Type: hostile, Count: 2}}}, nil
		}
		o.Since = func(context.Context, string, string, string) (*repository.Changes, error) {
			return nil, fmt.Errorf("%s", hostile)
		}
	})
	f.add(1, func(r *brokerapi.Request) { r.State = brokerapi.Signed })
	long := strings.Repeat("a", 100_000)
	r := f.add(2, func(r *brokerapi.Request) {
		r.Artifact.MediaType, r.Artifact.Annotations = hostile, map[string]string{hostile: hostile, "long": long}
		r.Requester = brokerapi.Requester{Issuer: hostile, Subject: hostile}
		r.Claims = &brokerapi.Claims{Created: hostile, Source: "javascript:alert(1)", Revision: hostile, Version: hostile,
			Platforms: []string{hostile}, Size: 1}
		r.Why, r.Reason, r.Rule = hostile, hostile, hostile
		r.Approvals = []brokerapi.Approval{{Person: hostile, Decision: "approve", Kind: hostile, Reason: hostile,
			Why: hostile}}
		r.Needs[0].Key, r.Needs[0].Alternatives[0].Rule, r.Needs[0].Alternatives[0].Reason = hostile, hostile, hostile
		r.Needs[0].Alternatives[0].Groups[0].Group = hostile
		r.Needs[0].Alternatives[0].Groups[0].Members = []string{hostile}
		r.Proof = &brokerapi.Proof{Checkpoint: hostile, Entries: []brokerapi.ProvenEntry{{Entry: []byte(hostile)}}}
	})
	opening := approval.Opening{Issuer: "javascript:alert(1)",
		Claims: map[string]string{"repository": `"a/b"`, "x": hostile}}
	f.broker.evidence[r.ID].Opening, _ = opening.Encode()
	p := f.signIn("alice")
	for _, path := range []string{"/requests/" + r.ID, "/", "/requests"} {
		body := p.get(path)
		checkPage(t, path, body)
		for _, raw := range []string{"<script>alert", "<img src=x", "\u202e", "\u200b", "\x1b",
			"javascript:alert(1)\"", long} {
			if strings.Contains(body, raw) {
				t.Errorf("%s has %q", path, raw[:min(len(raw), 30)])
			}
		}
	}
	body := html.UnescapeString(p.get("/requests/" + r.ID))
	for _, want := range []string{"⟨U+202E⟩", "⟨U+200B⟩", "⟨U+001B⟩", "⟨U+000A⟩", "The image claims"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	for _, path := range []string{"/%22%3E%3Cscript%3E", "/keys/%3Cscript%3E/block", "/requests?q=%22%3E%3Cscript%3Ealert",
		"/requests?before=%22%3E%3Cscript%3E", "/?done=%3Cscript%3E", "/approvers?after=%3Cscript%3E",
		"/enrol/done?state=%3Cscript%3E", "/requests/%3Cscript%3E"} {
		if _, body := p.do(p.request(http.MethodGet, path, "", nil)); strings.Contains(body, "<script>") {
			t.Errorf("%s: %s", path, body)
		}
	}
}

// checkPage fails for a page with more or less than one h1, with an id twice, with script or style in it, with a field
// without a label, a table without headers, a link to another site that tells where it comes from, or a form without
// the token of the session.
func checkPage(t *testing.T, path, body string) {
	t.Helper()
	root, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	headings, ids, labels := 0, map[string]bool{}, map[string]bool{}
	for n := range root.Descendants() {
		if n.DataAtom == atom.Label {
			labels[attribute(n, "for")] = true
		}
	}
	for n := range root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		if id := attribute(n, "id"); id != "" && ids[id] {
			t.Errorf("%s: the id %q is there twice", path, id)
		} else if id != "" {
			ids[id] = true
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" {
				t.Errorf("%s: %s has the attribute %s", path, n.Data, a.Key)
			}
		}
		switch n.DataAtom {
		case atom.H1:
			headings++
		case atom.Script:
			if n.FirstChild != nil || !strings.HasPrefix(attribute(n, "src"), "/static/") {
				t.Errorf("%s: a script in the page", path)
			}
		case atom.Style, atom.Iframe, atom.Object:
			t.Errorf("%s: <%s>", path, n.Data)
		case atom.Input, atom.Textarea, atom.Select:
			if attribute(n, "type") != "hidden" && !labels[attribute(n, "id")] {
				t.Errorf("%s: the field %q has no label", path, attribute(n, "name"))
			}
		case atom.Table:
			if !strings.Contains(text(n, atom.Th), "x") {
				t.Errorf("%s: a table has no headers", path)
			}
		case atom.A:
			link := attribute(n, "href")
			if !strings.HasPrefix(link, "/") && !strings.HasPrefix(link, "#") &&
				(!strings.HasPrefix(link, "https://") || attribute(n, "rel") != "noopener noreferrer") {
				t.Errorf("%s: the link %q", path, link)
			}
		case atom.Form:
			if attribute(n, "method") == "post" && !strings.Contains(text(n, atom.Input), csrfField) {
				t.Errorf("%s: the form of %s has no token", path, attribute(n, "action"))
			}
		}
	}
	if headings != 1 || !ids["main"] {
		t.Errorf("%s: %d h1", path, headings)
	}
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// text returns the names of all elements of a kind in a node, and x for each that has none.
func text(n *html.Node, kind atom.Atom) (found string) {
	for d := range n.Descendants() {
		if d.DataAtom != kind {
			continue
		}
		if name := attribute(d, "name"); name != "" {
			found += name + " "
		} else {
			found += "x "
		}
	}
	return found
}

// TestChange shows what a proposed policy changes, in words, with the whole of it.
func TestChange(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	after := strings.Replace(testPolicy, "[dave, erin]", "[dave, erin, mallory]", 1)
	statement := approval.Statement{
		Subjects: []approval.Subject{{Name: "policy", Digest: map[string]string{"sha256": "00"}}},
		Predicate: approval.Predicate{Action: "modify", Policy: approval.Hash([]byte(testPolicy)),
			Change: &approval.Change{What: broker.ChangePolicy, Policy: approval.Hash([]byte(after))},
			Needs:  []approval.Need{{Action: "modify", Rules: []approval.RuleRef{}}}}}
	document, err := statement.Encode()
	if err != nil {
		t.Fatal(err)
	}
	r := f.add(1, func(r *brokerapi.Request) {
		r.What, r.Artifact, r.Key, r.Statement = broker.ChangePolicy, nil, "", approval.Hash(document)
	})
	f.broker.evidence[r.ID].Statement = document
	f.broker.evidence[r.ID].Documents = map[string][]byte{approval.Hash([]byte(testPolicy)): []byte(testPolicy),
		approval.Hash([]byte(after)): []byte(after)}
	p := f.signIn("alice")
	body := p.get("/requests/" + r.ID)
	for _, want := range []string{"Change the policy", "groups.<wbr>security", "mallory is added",
		"[dave, erin, mallory]"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// TestForms makes the requests of forms, and shows an invitation once.
func TestForms(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p, other := f.signIn("alice"), f.enrol("bob")
	for path, want := range map[string]broker.Change{
		"/keys/release/block":                  {What: broker.ChangeBlock, Key: "release"},
		"/keys/release/unblock":                {What: broker.ChangeUnblock, Key: "release"},
		"/credentials/" + other.id + "/remove": {What: broker.ChangeRemove, Credential: other.id},
	} {
		p.get(path)
		f.broker.changes = nil
		to := p.post(path, http.StatusSeeOther)
		if len(f.broker.changes) != 1 || f.broker.changes[0].What != want.What || f.broker.changes[0].Key != want.Key ||
			f.broker.changes[0].Credential != want.Credential {
			t.Errorf("%s: %+v", path, f.broker.changes)
		}
		body := p.get(to)
		if !strings.Contains(body, `id="cancel"`) || !strings.Contains(body, "others have to agree") {
			t.Errorf("%s: %s", to, body)
		}
	}
	id := f.broker.requests[len(f.broker.requests)-1].ID
	if to := p.post("/requests/"+id+"/cancel", http.StatusSeeOther); to != "/requests/"+id+"?done=cancelled" {
		t.Errorf("cancelled: %s", to)
	}
	if body := p.post("/approvers/bob/invite", http.StatusOK); !strings.Contains(body, base+"/enrol#token-of-bob") {
		t.Errorf("invited: %s", body)
	}
}

// TestYou says what a person can do: with a passkey on the page, by a command with a key, or nothing.
func TestYou(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := f.add(1)
	alice, dave, erin := f.signIn("alice"), f.signIn("dave"), f.signIn("erin")
	f.broker.add("erin", &approval.Credential{Kind: approval.SSH, Public: []byte("ssh")})
	f.broker.add("erin", &approval.Credential{Kind: approval.Key, Public: []byte("key")})
	page := "/requests/" + r.ID
	contains(t, alice.get(page), `id="decide"`, `id="approve"`, `id="reject"`)
	lacks(t, alice.get(page), `id="command-`, `id="not-asked"`, `id="withdraw"`)
	contains(t, dave.get(page), "enrolled nothing that counts", `id="reject"`)
	lacks(t, dave.get(page), `id="approve"`, `id="command-`)
	contains(t, erin.get(page), `hsm-broker approve `+r.ID+` --ssh KEY`, `hsm-broker approve `+r.ID+` --key`,
		`id="reject"`)
	lacks(t, erin.get(page), `id="approve"`)
	f.broker.late = map[string]bool{alice.id: true}
	contains(t, alice.get(page), "counts for requests that are made afterwards")
	lacks(t, alice.get(page), `id="decide"`)
	f.broker.late, f.broker.rule = nil, 1
	contains(t, alice.get(page), `id="emergency"`, `id="approve"`)
	f.broker.rule = 0
	lacks(t, alice.get(page), `id="emergency"`)

	found := f.broker.find(r.ID)
	found.Waiting = false
	found.Approvals = []brokerapi.Approval{{Person: "alice", Decision: "approve", Kind: "passkey", Counts: true}}
	contains(t, alice.get(page), "You have agreed", `id="withdraw"`, `id="reject"`)
	lacks(t, alice.get(page), `id="approve"`)
	contains(t, dave.get(page), "approval is not needed", `id="reject"`)
	lacks(t, dave.get(page), `id="approve"`, `id="withdraw"`)
	found.Needs[0].Alternatives[0].Reason = "its rule has changed"
	lacks(t, alice.get(page), `id="decide"`)
	found.Needs[0].Alternatives[0].Reason = ""
	found.State = brokerapi.Signed
	contains(t, alice.get(page), "nothing is left to decide")
	lacks(t, alice.get(page), `id="decide"`)
	found.State, found.Requester = brokerapi.Pending, brokerapi.Requester{Issuer: "approver", Subject: "dave"}
	contains(t, dave.get(page), "others have to agree", `id="cancel"`)
	lacks(t, dave.get(page), `id="decide"`)
}

// lacks fails for a page that has a text.
func lacks(t *testing.T, body string, all ...string) {
	t.Helper()
	for _, text := range all {
		if strings.Contains(body, text) {
			t.Errorf("the page has %s", text)
		}
	}
}
