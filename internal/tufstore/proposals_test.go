package tufstore

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// propose serves a proposal, and returns it with its tag.
func (a *attacker) propose(t *testing.T, all map[string]string) (tag string) {
	t.Helper()
	f := a.add(all)
	manifest, err := f.encode(proposedType)
	if err != nil {
		t.Fatal(err)
	}
	a.tags[f.proposalTag()] = manifest
	return f.proposalTag()
}

// lister answers requests for tags as some registry does, and returns how many there were.
func (a *attacker) lister(tags []string, honoursLast bool, most int) (pages *int) {
	pages = new(int)
	a.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/tags/list") {
			return false
		}
		*pages++
		rest := tags
		if last := r.URL.Query().Get("last"); last != "" && honoursLast {
			rest = rest[len(rest)-len(slices.DeleteFunc(slices.Clone(rest), func(tag string) bool { return tag <= last })):]
		}
		from, _ := strconv.Atoi(r.URL.Query().Get("from"))
		rest = rest[min(from, len(rest)):]
		if len(rest) > most {
			query := r.URL.Query()
			query.Set("from", fmt.Sprint(from+most))
			w.Header().Set("Link", "<"+r.URL.Path+"?"+query.Encode()+">; rel=\"next\"")
			rest = rest[:most]
		}
		writeTags(w, rest)
		return true
	}
	return pages
}

// TestListings verifies that proposals are found however a registry lists tags, and that a list is left early only
// where nothing can follow.
func TestListings(t *testing.T) {
	proposals := numbered(7, 30, proposalPrefix+"%032x")
	before, after := numbered(0, 100, "a%03d"), numbered(0, 100, "v%03d")
	sorted := slices.Concat(before, []string{Tag}, proposals, []string{"tuf-z"}, after)
	for name, c := range map[string]struct {
		tags        []string
		honoursLast bool
		most        int // tags of a page
		pages       int
	}{
		"as asked":                {sorted, true, 10, 4},
		"as asked, one by one":    {sorted, true, 1, 32},
		"as asked, in one page":   {sorted, true, 1000, 1},
		"ignores last":            {sorted, false, 10, 24},
		"ignores all":             {sorted, false, 1000, 1},
		"not published":           {slices.Concat(proposals, after), true, 10, 13},
		"newest first":            {reversed(sorted), false, 10, 24},
		"newest last":             {slices.Concat(after, []string{Tag}, proposals), false, 10, 14},
		"published first":         {slices.Concat([]string{Tag}, before, proposals), false, 10, 14},
		"published and then most": {slices.Concat([]string{Tag, "a"}, after, proposals), false, 10, 14},
		"each tag twice":          {slices.Concat(sorted, sorted), false, 10, 47},
	} {
		a := newAttacker(t)
		pages := a.lister(c.tags, c.honoursLast, c.most)
		got, _, err := a.store.proposalTags(t.Context())
		if err != nil || !slices.Equal(got, proposals) || *pages != c.pages {
			t.Errorf("%s: %d proposals in %d pages, not %d: %v", name, len(got), *pages, c.pages, err)
		}
	}
}

func reversed(tags []string) []string {
	tags = slices.Clone(tags)
	slices.Reverse(tags)
	return tags
}

// TestNotProposals verifies that what is not a proposal is told, hides no other, and is never deleted.
func TestNotProposals(t *testing.T) {
	a := newAttacker(t)
	good := a.propose(t, map[string]string{"4.alice.json": `{"a":1}`})
	tags := numbered(0, 4, proposalPrefix+"%032x")
	a.tags[tags[0]] = a.tags[good]
	a.tags[tags[1]] = []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`)
	a.tags[tags[2]] = make([]byte, maxManifest+1)
	a.tags[tags[3]] = []byte(strings.Repeat("[", 1000))
	a.tags[proposalPrefix+"x"], a.tags["v1"] = nil, nil
	lost := a.propose(t, map[string]string{"4.bob.json": "lost"})
	wrong := a.propose(t, map[string]string{"4.eve.json": "right"})
	a.answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodDelete:
			t.Errorf("%s is deleted", r.URL.Path)
		case strings.HasSuffix(r.URL.Path, sum([]byte("lost")).String()):
			http.NotFound(w, r)
			return true
		case strings.HasSuffix(r.URL.Path, sum([]byte("right")).String()):
			fmt.Fprint(w, "wrong")
			return true
		}
		return false
	}
	reasons := map[string]string{good: "", tags[0]: "its files are not those of its tag", tags[1]: "artifact type",
		tags[2]: "more than 262144", tags[3]: "deeper than 16", wrong: "mismatched digest"}
	proposals, err := a.store.Proposals(t.Context())
	if err != nil || len(proposals) != len(reasons) {
		t.Fatalf("%d proposals, not %d (without %s): %v", len(proposals), len(reasons), lost, err)
	}
	for _, p := range proposals {
		reason := reasons[p.Tag]
		if (p.Refused == nil) != (reason == "") || (p.Files == nil) != (reason != "") || p.Refused != nil &&
			!strings.Contains(p.Refused.Error(), reason) {
			t.Errorf("%s: %v, not %q, with %d files", p.Tag, p.Refused, reason, len(p.Files))
		}
		if p.Refused != nil {
			if err := a.store.Withdraw(t.Context(), p); err == nil { // the registry takes no note of it either
				t.Errorf("%s was withdrawn", p.Tag)
			}
		}
	}
}

// TestManyFiles verifies that proposals are read up to a number of bytes in all, and of files in each.
func TestManyFiles(t *testing.T) {
	a := newAttacker(t)
	text := strings.Repeat(" ", maxFile)
	for i := range 5 {
		all := map[string]string{}
		for j := range 15 {
			all[fmt.Sprintf("%d.role%d.json", j+1, i)] = text
		}
		a.propose(t, all)
	}
	_, err := a.store.Proposals(t.Context())
	a.expect(t, err, failure.Invalid, "all proposals have more than 67108864 bytes", 100, maxPending+inFlight)

	a = newAttacker(t)
	all := map[string]string{}
	for i := range maxProposed + 1 {
		all[fmt.Sprintf("%d.role.json", i+1)] = "{}"
	}
	a.propose(t, all)
	if p, err := a.store.Proposals(t.Context()); err != nil || len(p) != 1 || p[0].Refused == nil {
		t.Errorf("%d proposals: %v", len(p), err)
	}
}

// TestUnavailable verifies that a registry that fails in the middle does not make proposals look like none.
func TestUnavailable(t *testing.T) {
	for _, part := range []string{"/tags/list", "/manifests/", "/blobs/"} {
		a := newAttacker(t)
		a.propose(t, map[string]string{"4.alice.json": `{"a":1}`})
		a.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, part) {
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
			return false
		}
		if p, err := a.store.Proposals(t.Context()); !failure.Is(err, failure.Unavailable) {
			t.Errorf("%s: %d proposals, %v", part, len(p), err)
		}
	}
}
