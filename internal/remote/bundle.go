package remote

import (
	"context"
	"net/url"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
)

// Bundle returns the bundle of approvals of a request, in its encoding. Nothing of it has been verified.
func (b *Backend) Bundle(ctx context.Context, s *config.Settings, id string) ([]byte, error) {
	var answer brokerapi.Bundle
	err := b.read(ctx, s, brokerapi.BundlePath(id), &answer)
	return answer.Bundle, err
}

// maxLooked is the number of requests that are looked at for those of an artifact.
const maxLooked = 2000

// SignedRequests returns the IDs of the requests of the caller with signatures of an artifact, newest first. It looks
// at the newest 2,000 requests: an artifact that is signed with others, such as the image of one platform, has no list
// of its own.
func (b *Backend) SignedRequests(ctx context.Context, s *config.Settings, digest string) (ids []string, err error) {
	query := url.Values{"limit": {"100"}}
	for looked := 0; looked < maxLooked; {
		page, err := b.ListRequests(ctx, s, query)
		if err != nil {
			return nil, err
		}
		for _, r := range page.Requests {
			targets := r.More
			if r.Artifact != nil {
				targets = append(targets, *r.Artifact)
			}
			if slices.ContainsFunc(targets, func(t brokerapi.Target) bool { return t.Digest == digest }) {
				ids = append(ids, r.ID)
			}
		}
		looked += len(page.Requests)
		if page.Before == "" || len(page.Requests) == 0 {
			break
		}
		query.Set("before", page.Before)
	}
	return ids, nil
}
