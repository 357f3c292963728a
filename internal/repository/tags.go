package repository

import (
	"cmp"
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/mod/semver"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"

	access "github.com/notation-hsm/notation-hsm/internal/registry"
)

// lists are the lists of a repository that name an image.
type lists struct {
	repository *remote.Repository
	digest     digest.Digest
}

const (
	maxTagPages = 20   // pages of tags
	maxTags     = 5000 // tags
	maxHeads    = 50   // tags that are looked up
	maxAtOnce   = 8    // of them at a time
)

var (
	// validTag is what the distribution specification allows.
	validTag = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	// otherTag are tags that programs make for signatures (cosign, the referrers tag schema) and for tags' metadata.
	otherTag = regexp.MustCompile(`^(sha(256|512)-[0-9a-f]{64}|tuf-)`)
)

// errEnough ends a list that is long enough.
var errEnough = errors.New("enough")

// tags returns the tags that lead to the image, in the order of candidates, and whether there may be more: it reads at
// most maxTags tags, and looks up maxHeads of them.
func (l *lists) tags(ctx context.Context) (found []string, more bool, err error) {
	var all []string
	pages, total := 0, 0
	err = access.Tags(ctx, l.repository, "", func(page []string) error {
		pages, total = pages+1, total+len(page)
		for _, tag := range page {
			if validTag.MatchString(tag) && !otherTag.MatchString(tag) {
				all = append(all, tag)
			}
		}
		if total >= maxTags || pages >= maxTagPages {
			more = true
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errdef.ErrNotFound) || errors.Is(err, errEnough) {
		err = nil
	}
	if err != nil && len(all) == 0 {
		return nil, false, err
	}
	all = candidates(all)
	if len(all) > maxHeads {
		all, more = all[:maxHeads], true
	}
	found, failed := l.lookUp(ctx, all)
	return found, more, cmp.Or(err, failed)
}

// lookUp returns those of the tags that lead to the image. The error is that of the first one that could not be looked
// up.
func (l *lists) lookUp(ctx context.Context, tags []string) (found []string, err error) {
	leads, failed := make([]bool, len(tags)), make([]error, len(tags))
	var group sync.WaitGroup
	slots := make(chan struct{}, maxAtOnce)
	for i, tag := range tags {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			d, err := l.repository.Resolve(ctx, tag)
			leads[i] = err == nil && d.Digest == l.digest
			if !errors.Is(err, errdef.ErrNotFound) { // it was there a moment ago
				failed[i] = err
			}
		})
	}
	group.Wait()
	for i, tag := range tags {
		if leads[i] {
			found = append(found, tag)
		}
		err = cmp.Or(err, failed[i])
	}
	return found, err
}

// candidates sorts tags so that those come first that most likely lead to a new image: in turn the newest version, and
// the next of the others, which are names such as latest before those with digits, such as dates and commits.
func candidates(tags []string) []string {
	slices.Sort(tags)
	tags = slices.Compact(tags)
	var versions, others []string
	for _, tag := range tags {
		if semver.IsValid(version(tag)) {
			versions = append(versions, tag)
		} else {
			others = append(others, tag)
		}
	}
	slices.SortStableFunc(versions, func(a, b string) int { return semver.Compare(version(b), version(a)) })
	slices.SortStableFunc(others, func(a, b string) int {
		digits := func(tag string) int { return min(strings.IndexAny(tag, "0123456789"), 0) }
		return cmp.Or(cmp.Compare(digits(a), digits(b)), cmp.Compare(b, a))
	})
	var sorted []string
	for len(versions) > 0 && len(others) > 0 {
		sorted = append(sorted, versions[0], others[0])
		versions, others = versions[1:], others[1:]
	}
	return append(append(sorted, versions...), others...)
}

// version returns a tag as the semver package reads it.
func version(tag string) string { return "v" + strings.TrimPrefix(tag, "v") }
