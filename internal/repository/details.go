package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote/errcode"

	access "github.com/notation-hsm/notation-hsm/internal/registry"
)

// Details are what a registry says of an image besides its claims, for people who look at it. Nobody has verified them:
// whoever can push decides what is attached, and which tags there are.
type Details struct {
	Images     []Image // of an index, in its order; or the image itself
	MoreLayers bool    // there are more than maxLayers, so some are not in Images
	// Tags lead to the image or the index, at this moment. MoreTags says that not all tags were looked at.
	Tags     []string
	MoreTags bool
	// Attached are signatures and other artifacts that refer to the image, counted by their type. MoreAttached says that
	// there are more.
	Attached     []Attached
	MoreAttached bool
	Missing      []string // what could not be read, and why
}

// Image is an image for one platform.
type Image struct {
	Manifest
	Layers []Layer
	Bytes  int64 // of all layers
}

// Layer is a layer of an image, as its manifest names it.
type Layer struct {
	Digest string
	Size   int64 // bytes
}

const (
	lookedAt  = time.Minute // how long an answer counts
	maxLooked = 100         // answers that are remembered
	maxLayers = 1000        // layers of all images together
)

// lookLimits are for the lists of tags and referrers of one image.
var lookLimits = access.Limits{Requests: 150, Bytes: 32 << 20}

// clone returns a copy that shares nothing.
func (d *Details) clone() *Details {
	copied := *d
	copied.Images = cloneImages(d.Images)
	copied.Tags, copied.Attached = slices.Clone(d.Tags), slices.Clone(d.Attached)
	copied.Missing = slices.Clone(d.Missing)
	return &copied
}

func cloneImages(images []Image) []Image {
	copied := slices.Clone(images)
	for i := range copied {
		copied[i].Layers = slices.Clone(copied[i].Layers)
	}
	return copied
}

// Details asks a registry for what it knows of a manifest, for at most some seconds. Parts that cannot be read are
// named in Missing. It fails as Check does for names, and if the registry has too much to do. An answer is remembered
// for a minute.
func (r *Registries) Details(ctx context.Context, repository, sum string) (*Details, error) {
	a, from, err := r.find(repository, sum, "", 0)
	if err != nil {
		return nil, err
	}
	return r.looks.do(ctx, a, func(ctx context.Context) (*Details, error) {
		return inSession(ctx, from, from.looks, a, func(s *session) (*Details, error) {
			return s.details(ctx, a, &lists{r.Repository(a.repository, lookLimits), a.digest}), nil
		})
	})
}

// details asks for all parts at once.
func (s *session) details(ctx context.Context, a artifact, from *lists) *Details {
	d := &Details{}
	var inIndex []Attached
	parts := []struct {
		name string
		read func() error
	}{
		{"layers", func() (err error) {
			d.Images, inIndex, err = s.layers(ctx, a)
			return err
		}},
		{"tags", func() (err error) {
			d.Tags, d.MoreTags, err = from.tags(ctx)
			return err
		}},
		{"referrers", func() (err error) {
			d.Attached, d.MoreAttached, err = from.attached(ctx)
			return err
		}},
	}
	missing := make([]string, len(parts))
	var group sync.WaitGroup
	for i, part := range parts {
		group.Go(func() {
			if err := part.read(); err != nil {
				missing[i] = part.name + ": " + s.why(ctx, err)
			}
		})
	}
	group.Wait()
	for _, text := range missing {
		if text != "" {
			d.Missing = append(d.Missing, text)
		}
	}
	d.Attached = append(d.Attached, inIndex...)
	d.MoreLayers = cut(d.Images)
	return d
}

// why returns a cause as text for people. The registry's own words are not in it.
func (s *session) why(ctx context.Context, err error) string {
	var response *errcode.ErrorResponse
	switch {
	case errors.As(err, &response):
		err = statusError(response.StatusCode)
	case errors.Is(err, errAbsent):
		return "the repository does not have the manifest"
	}
	_, _, cause := s.cause(ctx, err)
	return printable(fmt.Sprint(cause))
}

// cut removes layers after the first maxLayers, and reports whether there were any.
func cut(images []Image) bool {
	left, more := maxLayers, false
	for i := range images {
		if len(images[i].Layers) > left {
			images[i].Layers, more = images[i].Layers[:left:left], true
		}
		left -= len(images[i].Layers)
	}
	return more
}
