package store

// Query says which requests are listed. An empty field does not count.
type Query struct {
	IDs        []string // these alone, MaxLimit at most; nil does not count, and an empty list lists nothing
	Before     string   // ID: older ones alone
	Limit      int      // 1 to MaxLimit; with IDs, 0 is all of them
	Key        string
	State      string
	Requester  string
	Repository string
	Digest     string
}

// Page is a part of a list.
type Page struct {
	Requests []Request
	Before   string // Query.Before of the next page; "" on the last
}

// MaxLooked is the largest number of requests that a page is chosen from: those that an index finds by one field of the
// query. So a page can be short, or empty, and have a next one.
const MaxLooked = 2000

// Field is a column of requests and the value that it has in those that are listed.
type Field struct{ Column, Value string }

// Fits reports whether a request has the value.
func (f Field) Fits(r *Request) bool {
	return f.Value == map[string]string{"digest": r.Digest, "state": r.State, "requester": r.Requester,
		"repository": r.Repository, "key": r.Key}[f.Column]
}

// Fields returns the field by whose index requests are found, and the others, which are compared. by has no column when
// requests are found by their IDs. Few requests have the same digest, and few are open; any number can have the rest in
// common. There is no index of those that are signed, as nearly all are.
func (q *Query) Fields() (by Field, rest []Field) {
	var open, ended, signed string
	switch q.State {
	case "pending", "approved", "signing":
		open = q.State
	case "signed":
		signed = q.State
	default:
		ended = q.State
	}
	for _, f := range []Field{{"digest", q.Digest}, {"state", open}, {"requester", q.Requester},
		{"repository", q.Repository}, {"state", ended}, {"key", q.Key}, {"state", signed}} {
		if f.Value != "" {
			rest = append(rest, f)
		}
	}
	if q.IDs == nil && len(rest) > 0 && rest[0] != (Field{"state", signed}) {
		return rest[0], rest[1:]
	}
	return by, rest
}
