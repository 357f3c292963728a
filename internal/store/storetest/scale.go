package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Months is for how many months there are requests in Row.
const Months = 24

var (
	firstMonth = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	endOfRows  = firstMonth.AddDate(0, Months, 0)
)

// ID returns the ID of a request that was made at a time, as a broker makes it, with a number.
func ID(at time.Time, n int) string { return fmt.Sprintf("%012x%020x", at.UnixMilli(), n) }

// Row returns request n of so many, of the same number in each month. Some values are those of nearly all, of many, of
// the first month alone, of the middle of the last month alone, and of one request.
func Row(n, count int) store.Request {
	at := firstMonth.Add(time.Duration(float64(endOfRows.Sub(firstMonth)) * float64(n) / float64(count)))
	r := store.Request{ID: ID(at, n), Created: at, Changed: at, Key: "most", State: "signed", Rule: "rule",
		Requester: fmt.Sprintf("one%d", n), Digest: fmt.Sprintf("sha256:%d", n/2), Repository: "most", Body: []byte("{}")}
	month := count / Months
	switch {
	case n == 0:
		r.Key, r.Requester, r.Repository, r.State = "once", "once", "once", "rejected"
	case n < month && n%2 == 0:
		r.Key, r.Requester, r.Repository = "old", "old", "old"
	case n > count-month*3/4 && n < count-month/2 && n%2 == 0:
		r.Key, r.Requester, r.Repository = "recent", "recent", "recent"
	case n%3 == 0:
		r.Key, r.Requester, r.Repository = "many", "many", "many"
	case n%7 == 0:
		r.Requester = "most"
	}
	switch {
	case n > count-20:
		r.State = "pending"
	case n > 0 && n < month && n%10 == 1:
		r.State = "failed"
	case n%20 == 2:
		r.State = "expired"
	}
	return r
}

// Lists returns a query for each set of fields and each kind of value in Row, from the beginning and from the middle.
func Lists() (all []store.Query) {
	kinds := []string{"", "many", "recent", "old", "most", "once", "none"}
	for _, before := range []string{"", ID(firstMonth.AddDate(0, Months/2, 0), 0)} {
		for _, state := range []string{"", "signed", "failed", "pending", "lost"} {
			add := func(key, requester, repository, digest string) {
				all = append(all, store.Query{Limit: 50, Before: before, State: state, Key: key, Requester: requester,
					Repository: repository, Digest: digest})
			}
			for i, key := range kinds {
				add(key, "", "", "")
				add(key, "", "", "sha256:5")
				for j, requester := range kinds[1:4] {
					add(key, requester, "", "")
					add(key, "", requester, "")
					add(key, requester, kinds[1+(i+j)%6], "")
				}
			}
		}
	}
	return all
}

// Scale fails if a list costs more with many requests than what most permits. cost returns what a list costs: rows or
// pages that are read. It returns the sum of all, to be compared.
func Scale(t *testing.T, cost func(store.Query) int64, most int64) (sum int64) {
	t.Helper()
	for _, q := range Lists() {
		n := cost(q)
		if sum += n; n > most {
			t.Errorf("%+v reads %d, more than %d", q, n, most)
		}
	}
	return sum
}
