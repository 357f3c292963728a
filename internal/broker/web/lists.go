package web

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// perPage is the number of rows on a page.
const perPage = 50

// maxSearch is the length of the longest text that is searched for, in bytes.
const maxSearch = 300

// listView is a list of requests.
type listView struct {
	Requests []row
	Next     string // URL of the next page
	Done     string
	Search   search
	States   []brokerapi.State
	Keys     []string
}

// row is a request in a list.
type row struct {
	brokerapi.Request
	Title string
}

// search is what the history is searched for.
type search struct {
	Text, Key, State string
	Any              bool // something is searched for
}

// waiting shows what waits for the approval of a person.
func (w *Web) waiting(r *http.Request, p *who) (*view, error) {
	before, err := before(r)
	if err != nil {
		return nil, err
	}
	page, err := w.options.Broker.Requests(r.Context(), p.caller(), broker.Query{Mine: true, Before: before,
		Limit: perPage})
	if err != nil {
		return nil, err
	}
	v := &listView{Requests: rows(page), Done: done(r)}
	if page.Before != "" {
		v.Next = "/?before=" + url.QueryEscape(page.Before)
	}
	return &view{Template: "waiting", Title: "Waiting for you", Section: "waiting", Data: v}, nil
}

func rows(page *brokerapi.Requests) []row {
	all := make([]row, len(page.Requests))
	for i, r := range page.Requests {
		all[i] = row{r, titleOf(&r)}
	}
	return all
}

func before(r *http.Request) (string, error) {
	id := r.URL.Query().Get("before")
	if len(id) > maxSearch {
		return "", failure.New(failure.Invalid, "the page does not exist").WithHint("begin at the first page")
	}
	return id, nil
}

// What a text that is searched for can be.
var (
	requestID = regexp.MustCompile(`^[0-9a-f]{32}$`)
	digestOf  = regexp.MustCompile(`^[a-z0-9]+:[0-9a-f]{32,128}$`)
)

// history lists requests, newest first, and searches them.
func (w *Web) history(r *http.Request, p *who) (*view, error) {
	values := r.URL.Query()
	s := search{Text: strings.TrimSpace(values.Get("q")), Key: values.Get("key"), State: values.Get("state")}
	s.Any = s.Text != "" || s.Key != "" || s.State != ""
	q := broker.Query{Key: s.Key, State: s.State, Limit: perPage}
	var err error
	if q.Before, err = before(r); err != nil {
		return nil, err
	}
	if len(s.Text) > maxSearch || len(s.Key) > maxSearch ||
		s.State != "" && !slices.Contains(brokerapi.States, brokerapi.State(s.State)) {
		return nil, failure.New(failure.Invalid, "cannot search for this").
			WithHint("search for an ID, a digest or a repository, and choose a key and a state of the lists")
	}
	switch {
	case requestID.MatchString(s.Text):
		if _, err := w.options.Broker.Request(r.Context(), p.caller(), s.Text); err == nil {
			return &view{Location: "/requests/" + s.Text}, nil
		} else if !failure.Is(err, failure.NotFound) {
			return nil, err
		}
		q.Digest = s.Text // none has it: the list is empty
	case digestOf.MatchString(s.Text):
		q.Digest = s.Text
	default:
		q.Repository = s.Text
	}
	page, err := w.options.Broker.Requests(r.Context(), p.caller(), q)
	if err != nil {
		return nil, err
	}
	v := &listView{Requests: rows(page), Search: s, States: brokerapi.States}
	for _, k := range w.options.Broker.Keys() {
		v.Keys = append(v.Keys, k.Name)
	}
	if page.Before != "" {
		next := url.Values{"before": {page.Before}}
		for name, value := range map[string]string{"q": s.Text, "key": s.Key, "state": s.State} {
			if value != "" {
				next.Set(name, value)
			}
		}
		v.Next = "/requests?" + next.Encode()
	}
	return &view{Template: "history", Title: "Requests", Section: "requests", Data: v}, nil
}
