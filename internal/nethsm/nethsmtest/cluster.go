package nethsmtest

import (
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
)

// member is a member of the cluster.
type member struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	URLs    []string `json:"urls"`
	Learner bool     `json:"learner"`
}

// addMember is called with the lock held.
func (s *state) addMember(url string) *member {
	id := hex.EncodeToString(randomBytes(8))
	m := &member{ID: id, Name: id, URLs: []string{url}}
	s.members = append(s.members, m)
	return m
}

func listMembers(c *call) *reply { return answer(c.state.members) }

type memberRequest struct {
	URLs []string `json:"urls"`
}

func (c *call) memberURLs() ([]string, *reply) {
	var wanted memberRequest
	if refusal := c.decode(&wanted); refusal != nil {
		return nil, refusal
	}
	for _, url := range wanted.URLs {
		if rest, https := strings.CutPrefix(url, "https://"); !https || rest == "" || len(url) > 1024 {
			return nil, fail(http.StatusBadRequest, "%q is no peer URL", url)
		}
	}
	if len(wanted.URLs) == 0 {
		return nil, fail(http.StatusBadRequest, "no peer URL")
	}
	return wanted.URLs, nil
}

// postMember adds a member as a learner without an instance. Server.Instance starts an instance.
func postMember(c *call) *reply {
	urls, refusal := c.memberURLs()
	if refusal != nil {
		return refusal
	}
	if c.state.backupPassphrase == nil {
		return fail(http.StatusPreconditionFailed, "configure a backup passphrase before adding cluster members")
	}
	m := c.state.addMember(urls[0])
	m.URLs, m.Learner, m.Name = urls, true, ""
	r := answer(map[string]any{"members": c.state.members, "joinerKit": encode64(randomBytes(96))})
	r.status = http.StatusCreated
	return r
}

func (c *call) member() (int, *reply) {
	i := slices.IndexFunc(c.state.members, func(m *member) bool { return m.ID == c.params["MemberID"] })
	if i < 0 {
		return 0, fail(http.StatusNotFound, "no cluster member %s", c.params["MemberID"])
	}
	return i, nil
}

func promoteMember(c *call) *reply {
	i, refusal := c.member()
	if refusal != nil {
		return refusal
	}
	if !c.state.members[i].Learner {
		return fail(http.StatusBadRequest, "cluster error: the member is no learner")
	}
	c.state.members[i].Learner = false
	return done()
}

func updateMember(c *call) *reply {
	i, refusal := c.member()
	if refusal != nil {
		return refusal
	}
	urls, refusal := c.memberURLs()
	if refusal != nil {
		return refusal
	}
	c.state.members[i].URLs = urls
	return done()
}

func deleteMember(c *call) *reply {
	i, refusal := c.member()
	if refusal != nil {
		return refusal
	}
	c.state.members = slices.Delete(c.state.members, i, i+1)
	return done()
}
