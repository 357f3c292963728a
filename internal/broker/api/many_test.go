package api

import (
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// TestMany lists and pages 10,000 open requests and 1,000 approvers, and reads the store no more often for a page than
// with 10 of them.
func TestMany(t *testing.T) {
	t.Parallel()
	few, many := newCrowd(t, 10, 10), newCrowd(t, 1000, 10000)
	few.everyPage(10)
	many.everyPage(maxPage)
	for _, path := range []string{brokerapi.RequestsPath, brokerapi.RequestsPath + "?limit=5",
		brokerapi.RequestsPath + "?mine=true", brokerapi.RequestsPath + "?mine=true&limit=5",
		brokerapi.RequestsPath + "?state=pending&key=release&mine=false", brokerapi.RequestsPath + "?state=signed",
		brokerapi.RequestsPath + "?repository=registry.example.com/app",
		brokerapi.RequestsPath + "?digest=" + newRequest(3).Artifact.Digest, brokerapi.RequestPath(few.one),
		brokerapi.EvidencePath(few.one), brokerapi.ApproversPath, brokerapi.ApproversPath + "?limit=5&after=person-0003",
		brokerapi.CredentialsPath + "?limit=5&removed=true"} {
		least, most := few.reads(path), many.reads(strings.Replace(path, few.one, many.one, 1))
		if least == 0 && !strings.HasPrefix(path, brokerapi.ApproversPath) || most > least {
			t.Errorf("%s reads the store %d times, and with many %d times", path, least, most)
		}
	}
}

// crowd is a fixture with many people and requests that are open.
type crowd struct {
	*fixture
	client   *client // of one person
	requests int
	one      string // ID of a request
}

func newCrowd(t *testing.T, people, requests int) *crowd {
	t.Helper()
	f := prepare(t)
	f.people = map[string]*person{}
	var names []string
	for i := range people {
		names = append(names, fmt.Sprintf("person-%04d", i))
		f.people[names[i]] = newPerson(t, approval.SSH)
	}
	f.policy = strings.NewReplacer("{group: managers, quorum: 2}",
		"{group: managers, quorum: 2}, {group: others, quorum: 1}",
		"[alice, bob, carol]", fmt.Sprintf("[%s]\n  others: [%s]", strings.Join(names[:people/2], ", "),
			strings.Join(names[people/2:], ", "))).Replace(testPolicy)
	f.limits = identity.Limits{Open: requests, Requests: identity.Rate{Count: 10 * requests, Per: time.Minute}}
	f.start("{}")
	c := &crowd{fixture: f, client: f.signedIn(names[people/2]), requests: requests}
	caller := identity.Caller{Issuer: f.issuer.URL, Subject: "people"}
	var group sync.WaitGroup
	const workers = 100
	for worker := range workers {
		group.Go(func() {
			for i := worker; i < requests; i += workers {
				made, err := f.api.options.Broker.Create(t.Context(), caller, newRequest(i))
				if err != nil {
					t.Error(err)
					return
				}
				if i == 0 {
					c.one = made.ID
				}
			}
		})
	}
	group.Wait()
	return c
}

// reads returns how often the store is read for an answer.
func (c *crowd) reads(path string) int64 {
	c.Helper()
	before := c.store.reads.Load()
	c.client.want(200, get(path))
	return c.store.reads.Load() - before
}

// everyPage fails unless the pages of each list have everything once.
func (c *crowd) everyPage(size int) {
	c.Helper()
	for _, list := range []string{"?", "?mine=true&"} {
		seen, before := map[string]bool{}, ""
		for pages := 0; pages == 0 || before != ""; pages++ {
			query := url.Values{"limit": {fmt.Sprint(size)}}
			if before != "" {
				query.Set("before", before)
			}
			page := read[brokerapi.Requests](c.T, c.client.want(200, get(brokerapi.RequestsPath+list+query.Encode())))
			for _, r := range page.Requests {
				if seen[r.ID] {
					c.Fatalf("%s is on two pages", r.ID)
				}
				seen[r.ID] = true
			}
			before = page.Before
		}
		if len(seen) != c.requests {
			c.Errorf("%s lists %d requests of %d", list, len(seen), c.requests)
		}
	}
	seen, after := 0, ""
	for pages := 0; pages == 0 || after != ""; pages++ {
		query := url.Values{"limit": {fmt.Sprint(size)}, "after": {after}}
		page := read[brokerapi.Approvers](c.T, c.client.want(200, get(brokerapi.ApproversPath+"?"+query.Encode())))
		for _, a := range page.Approvers {
			if a.Name <= after || len(a.Credentials) != 1 {
				c.Errorf("%+v after %s", a, after)
			}
			after = a.Name
			seen++
		}
		after = page.After
	}
	if seen != len(c.people) {
		c.Errorf("%d approvers are listed of %d", seen, len(c.people))
	}
}
