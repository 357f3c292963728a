package monitor

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// facts are what the entries of a log add up to, as far as rules need them. They are bounded, and are kept between
// runs. Names in them are marks: 32 characters that stand for texts of any length.
type facts struct {
	Next        int64                 `json:"next"`        // index of the entry that comes next
	Last        time.Time             `json:"last"`        // time of the newest entry
	Ahead       bool                  `json:"ahead"`       // that time was in the future
	Policies    map[string]int64      `json:"policies"`    // index of the entry that put it into force
	Blocked     map[string]block      `json:"blocked"`     // by key
	Credentials map[string]credential `json:"credentials"` // that are enrolled
	Requests    map[string]*request   `json:"requests"`    // by ID
	Keys        map[string]int64      `json:"keys"`        // that the config does not list: index of the first use
	Unknown     int64                 `json:"unknown"`     // number of entries of unknown types
	Forgotten   int64                 `json:"forgotten"`   // number of requests forgotten because there were too many
	Weight      int64                 `json:"weight"`      // of all requests
}

// block says whether a key is blocked.
type block struct {
	Now   bool  `json:"now"`
	Index int64 `json:"index"` // of the entry that said so last
}

type credential struct {
	Person string `json:"person"`
	Index  int64  `json:"index"`
}

// request is a request to sign: one that an entry asks for, or one that its intent makes.
type request struct {
	Index     int64              `json:"index"`
	Key       string             `json:"key"`
	Leaf      string             `json:"leaf,omitempty"`
	Statement string             `json:"statement,omitempty"`
	Person    string             `json:"person,omitempty"`
	Emergency bool               `json:"emergency,omitempty"`
	Uses      int64              `json:"uses"` // of each subject
	Subjects  map[string]subject `json:"subjects"`
	Votes     []vote             `json:"votes,omitempty"`
	State     string             `json:"state,omitempty"`  // how it has ended
	Intent    *intent            `json:"intent,omitempty"` // without an outcome yet
	Ends      int64              `json:"ends"`             // Unix time when it is forgotten
}

// subject is an artifact of a request.
type subject struct {
	Count int64 `json:"count,omitempty"` // uses
	First int64 `json:"first,omitempty"` // Unix time of the first signature of the newest use
}

// vote is an approval.
type vote struct {
	Person     string `json:"person"`
	Credential string `json:"credential"`
	Index      int64  `json:"index"`
}

type intent struct {
	Payload  string   `json:"payload"`
	Subjects []string `json:"subjects"`
	Retry    bool     `json:"retry,omitempty"`
}

// Bounds of what is kept of a log.
const (
	maxWeight      = 65_536 // of all requests
	maxSubjects    = 256    // of a request: more do not fit into an entry
	maxVotes       = 32     // of a request
	maxCredentials = 10_000
	maxKept        = 10_000 // policies, and keys
)

const (
	retryWindow = 15 * time.Minute // in which a broker signs the same artifact again for the same use
	grace       = 20 * time.Minute // for which a request is remembered after its end
)

func newFacts() *facts {
	return &facts{Policies: map[string]int64{}, Blocked: map[string]block{}, Credentials: map[string]credential{},
		Requests: map[string]*request{}, Keys: map[string]int64{}}
}

// weight returns what a request weighs: about the number of its texts.
func (r *request) weight() int64 { return int64(2 + len(r.Subjects) + len(r.Votes)) }

// boundRequests forgets requests that are over. If the others weigh too much, it forgets the oldest, and first those
// that nobody has to agree to, of which a busy broker has many.
func (f *facts) boundRequests() {
	now := f.Last.Unix()
	maps.DeleteFunc(f.Requests, func(_ string, r *request) bool { return r.Ends < now })
	f.Weight = 0
	for _, r := range f.Requests {
		f.Weight += r.weight()
	}
	if f.Weight <= maxWeight {
		return
	}
	oldest := slices.SortedFunc(maps.Keys(f.Requests), func(a, b string) int {
		one, other := f.Requests[a], f.Requests[b]
		if one.Statement == "" != (other.Statement == "") {
			return map[bool]int{true: -1, false: 1}[one.Statement == ""]
		}
		return cmp.Compare(one.Index, other.Index)
	})
	for _, id := range oldest {
		if f.Weight <= maxWeight*3/4 {
			return
		}
		f.Weight -= f.Requests[id].weight()
		delete(f.Requests, id)
		f.Forgotten++
	}
}

// trim forgets what is the oldest of a map that has more than limit values, a quarter at once.
func trim[V any](all map[string]V, limit int, index func(V) int64) {
	if len(all) <= limit {
		return
	}
	oldest := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return cmp.Compare(index(all[a]), index(all[b]))
	})
	oldest = oldest[:len(all)-limit*3/4]
	for _, name := range oldest {
		delete(all, name)
	}
}

// bound forgets what is over, and what is beyond the bounds.
func (f *facts) bound() {
	if f.Weight > maxWeight || f.Next%1024 == 0 {
		f.boundRequests()
	}
	same := func(index int64) int64 { return index }
	trim(f.Policies, maxKept, same)
	trim(f.Keys, maxKept, same)
	trim(f.Credentials, maxCredentials, func(c credential) int64 { return c.Index })
}

// remember remembers that a key is blocked, or is not any more. It reports false when there is no place for it: no
// key that is blocked is forgotten.
func (f *facts) remember(key string, b block) bool {
	if _, kept := f.Blocked[key]; !kept && len(f.Blocked) >= maxKept {
		maps.DeleteFunc(f.Blocked, func(_ string, other block) bool { return !other.Now })
		if len(f.Blocked) >= maxKept {
			return false
		}
	}
	f.Blocked[key] = b
	return true
}

// void takes back what entries from index first on have permitted.
func (f *facts) void(first int64) {
	maps.DeleteFunc(f.Credentials, func(_ string, c credential) bool { return c.Index >= first })
	for _, r := range f.Requests {
		if r.Index >= first {
			r.end("void")
		}
		r.Votes = slices.DeleteFunc(r.Votes, func(v vote) bool { return v.Index >= first })
	}
	for key, b := range f.Blocked {
		if !b.Now && b.Index >= first {
			f.Blocked[key] = block{true, b.Index}
		}
	}
}

// agreed returns how many people have agreed to a request: each with a credential that is enrolled since before the
// request, and none of them its requester.
func (f *facts) agreed(r *request) int {
	people := map[string]bool{}
	for _, v := range r.Votes {
		c, enrolled := f.Credentials[v.Credential]
		if enrolled && c.Person == v.Person && c.Index < r.Index && v.Person != r.Person {
			people[v.Person] = true
		}
	}
	return len(people)
}
