package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/report"
)

// requestPage is how many requests are asked for at a time: the most that a broker gives.
const requestPage = "100"

// tell asks the broker for what the log does not have: the names of people, and who made the requests of a report's
// lines, for which media type.
func (a *asker) tell(ctx context.Context, made *report.Report, to time.Time) error {
	people, err := a.Approvers(ctx, a.settings)
	if err != nil {
		return err
	}
	made.About.Names = map[string]string{}
	for _, p := range people {
		made.About.Names[p.ID] = p.Name
	}
	told := map[string]*report.Told{}
	made.Tell = func(request string) *report.Told { return told[request] }
	if made.Oldest() == "" {
		return nil
	}
	shared := map[report.Told]*report.Told{} // few requests differ in what is told
	query := url.Values{"limit": {requestPage}, "before": {fmt.Sprintf("%012x", to.UnixMilli())}}
	for {
		page, err := a.ListRequests(ctx, a.settings, query)
		if err != nil {
			return err
		}
		for i := range page.Requests {
			r := &page.Requests[i]
			t := toldOf(r)
			if shared[t] == nil {
				shared[t] = &t
			}
			told[r.ID] = shared[t]
		}
		if page.Before == "" || page.Before <= made.Oldest() || page.Before >= query.Get("before") {
			return nil
		}
		query.Set("before", page.Before)
	}
}

func toldOf(r *brokerapi.Request) report.Told {
	t := report.Told{Issuer: r.Requester.Issuer, Subject: r.Requester.Subject}
	if r.Artifact != nil {
		t.MediaType = r.Artifact.MediaType
	}
	return t
}
