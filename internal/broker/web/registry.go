package web

import (
	"context"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/repository"
)

// registryView is what the registry says of the image of a request.
type registryView struct {
	*repository.Details
	Changes *repository.Changes // since the last one that was signed; nil if there is none
	Last    *brokerapi.Request  // that one
	Failure string              // why nothing is known
}

// registryTime is how long a page waits for the registry.
const registryTime = 12 * time.Second

// registryOf asks the registry about the image of a request: nil if the request names no repository. A registry that
// does not answer leaves the rest of the page.
func (w *Web) registryOf(ctx context.Context, p *who, r *brokerapi.Request) (*registryView, error) {
	if r.Repository == "" || r.Artifact == nil || w.options.Details == nil {
		return nil, nil
	}
	v := &registryView{}
	var err error
	if v.Last, err = w.lastSigned(ctx, p, r); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, registryTime)
	defer cancel()
	if v.Details, err = w.options.Details(ctx, r.Repository, r.Artifact.Digest); err != nil {
		v.Failure = failure.From(err).What
		return v, nil
	}
	if v.Last != nil {
		if v.Changes, err = w.options.Since(ctx, r.Repository, r.Artifact.Digest, v.Last.Artifact.Digest); err != nil {
			v.Missing = append(v.Missing, "new layers: "+failure.From(err).What)
		}
	}
	return v, nil
}

// lastSigned returns the newest request before another one under whose key and repository an image was signed, and nil
// if there is none among the last few.
func (w *Web) lastSigned(ctx context.Context, p *who, r *brokerapi.Request) (*brokerapi.Request, error) {
	page, err := w.options.Broker.Requests(ctx, p.caller(), broker.Query{State: string(brokerapi.Signed), Key: r.Key,
		Repository: r.Repository, Before: r.ID, Limit: 10})
	if err != nil {
		return nil, err
	}
	for i := range page.Requests {
		if last := &page.Requests[i]; last.What == "" && last.Artifact != nil && last.Artifact.Digest != r.Artifact.Digest {
			return last, nil
		}
	}
	return nil, nil
}
