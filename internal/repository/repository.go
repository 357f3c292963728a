// Package repository verifies that a manifest is in the repository that a caller names, by fetching it there.
//
// No signature of Notation names a repository, so a policy that limits a key to a repository would otherwise rest on
// the caller's word. The caller chooses the name and whoever can push chooses the content: the broker connects to
// listed hosts alone, and everything it reads is bounded.
package repository

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	oras "oras.land/oras-go/v2/registry"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/scope"
)

// Registries are the registries of a configuration. It is safe for concurrent use.
type Registries struct {
	byName map[string]*registry
	checks *flights[artifact, *Claims]
	lists  *flights[artifact, []Manifest]
	looks  *flights[artifact, *Details]
	diffs  *flights[comparison, *Changes]
}

// New returns the registries of a configuration. The error joins every mistake.
func New(c Config) (*Registries, error) {
	registries, mistakes := c.read()
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	return &Registries{byName: registries,
		checks: newFlights(timeout, remembered, maxSuccess, artifact.name, (*Claims).clone),
		lists:  newFlights(timeout, remembered, maxSuccess, artifact.name, slices.Clone[[]Manifest]),
		looks:  newFlights(lookTimeout, lookedAt, maxLooked, artifact.name, (*Details).clone),
		diffs:  newFlights(lookTimeout, lookedAt, maxLooked, comparison.name, (*Changes).clone)}, nil
}

const (
	timeout       = 30 * time.Second // of one check, waiting included
	lookTimeout   = 5 * time.Second  // of what people look at
	maxName       = 255              // bytes of the name of a repository
	maxMediaType  = 255              // bytes, as in RFC 6838
	namingExample = "registry.example.com/team/app"
)

// Name returns the normal form of a repository's name, REGISTRY/PATH, which policies compare. It fails for names with a
// tag or a digest, and for names without a registry.
func Name(repository string) (string, error) {
	const hint = "name the repository with its registry and without tag and digest, such as " + namingExample
	if len(repository) > maxName {
		return "", failure.New(failure.Invalid, "the repository's name has %d bytes, more than %d", len(repository),
			maxName).WithHint(hint)
	}
	_, path, _ := strings.Cut(repository, "/")
	if strings.ContainsAny(path, ":@") {
		return "", failure.New(failure.Invalid, "the repository %q has a tag or a digest", repository).WithHint(hint)
	}
	if path != strings.ToLower(path) {
		return "", failure.New(failure.Invalid, "the path of the repository %q has upper-case letters", repository).
			WithHint("write the path as the registry does, in lower case")
	}
	name, err := scope.Canonical(repository)
	if err != nil {
		return "", failure.New(failure.Invalid, "invalid repository name: %w", err).WithHint(hint)
	}
	_, path, _ = strings.Cut(name, "/")
	if err := (oras.Reference{Repository: path}).ValidateRepository(); err != nil {
		return "", failure.New(failure.Invalid, "%q is not the name of a repository", repository).WithHint(hint)
	}
	return name, nil
}

// artifact is what is looked for.
type artifact struct {
	repository string // in normal form
	digest     digest.Digest
	mediaType  string
	size       int64
}

func (a artifact) name() string { return a.repository }

// Check fetches the manifest with this digest in a repository, and returns what it claims. It fails unless the manifest
// is there with this media type and size in bytes, if they are not "" and 0: with Denied if it is not, or if the
// repository's registry is not listed; with Unavailable, Throttled or Timeout if the registry gives no answer. A
// success is remembered for some minutes; simultaneous checks of the same manifest are one.
func (r *Registries) Check(ctx context.Context, repository, sum, mediaType string, size int64) (*Claims, error) {
	a, registry, err := r.find(repository, sum, mediaType, size)
	if err != nil {
		return nil, err
	}
	return r.checks.do(ctx, a, func(ctx context.Context) (*Claims, error) { return registry.check(ctx, a) })
}

// find returns what is looked for, and the registry that may have it. It fails for what cannot be a manifest, and if
// the registry is not listed.
func (r *Registries) find(repository, sum, mediaType string, size int64) (a artifact, from *registry, err error) {
	name, err := Name(repository)
	if err != nil {
		return a, nil, err
	}
	a = artifact{name, digest.Digest(sum), mediaType, size}
	if err := a.check(); err != nil {
		return a, nil, err
	}
	host, _, _ := strings.Cut(name, "/")
	if from = r.byName[host]; from == nil {
		return a, nil, failure.New(failure.Denied, "cannot check repository %s: the registry %s is not listed", name,
			host).WithHint("list the registry under registries in the broker's config file")
	}
	return a, from, nil
}

// check verifies that the artifact can be a manifest.
func (a artifact) check() error {
	refuse := func(format string, args ...any) error {
		return failure.New(failure.Invalid, "cannot check repository %s: %s", a.repository, fmt.Sprintf(format, args...)).
			WithHint("name the repository only when the artifact is a manifest in a registry")
	}
	if err := a.digest.Validate(); err != nil {
		return refuse("%.100q is not a digest", a.digest)
	}
	if parsed, parameters, err := mime.ParseMediaType(a.mediaType); a.mediaType != "" && (err != nil ||
		parsed != a.mediaType || len(parameters) > 0 || len(parsed) > maxMediaType) {
		return refuse("%.100q is not a media type", a.mediaType)
	}
	if a.size < 0 || a.size > maxManifest {
		return refuse("a manifest has 1 to %d bytes, not %d", maxManifest, a.size)
	}
	return nil
}

// check is Check without the cache.
func (r *registry) check(ctx context.Context, a artifact) (*Claims, error) {
	return inSession(ctx, r, r.checks, a, func(s *session) (*Claims, error) {
		data, served, err := s.get(ctx, manifests, a.mediaType, a.digest, a.size)
		if err != nil {
			return nil, err
		}
		a.mediaType = served
		claims, err := s.claims(ctx, a, data)
		if err != nil {
			return nil, err
		}
		claims.ManifestSize = int64(len(data))
		return claims, nil
	})
}

// inSession calls ask once one of the lane's slots is free. Errors of ask are those of fetching the artifact.
func inSession[V any](ctx context.Context, r *registry, l lane, a artifact, ask func(*session) (V, error)) (V, error) {
	var none V
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return none, failure.New(failure.Throttled, "registry %s: %d checks are under way", r.name, cap(l.slots)).
			WithHint("try again later")
	}
	_, path, _ := strings.Cut(a.repository, "/")
	s := &session{registry: r, client: r.client(), repository: a.repository, path: path, timeout: l.timeout}
	value, err := ask(s)
	if err != nil {
		return none, s.explain(ctx, a.digest, err)
	}
	return value, nil
}

// explain returns the failure for an error of fetching a manifest or what belongs to it.
func (s *session) explain(ctx context.Context, sum digest.Digest, err error) error {
	if errors.Is(err, errAbsent) {
		return failure.New(failure.Denied, "the repository %s has no manifest %s", s.repository, sum).
			WithHint("push the image to the repository before it is signed")
	}
	kind, hint, cause := s.cause(ctx, err)
	return failure.New(kind, "cannot fetch manifest %s from repository %s: %w", sum, s.repository, cause).WithHint(hint)
}

// cause returns what an error of a request means to people. It has no URLs of the registry, which may hold secrets.
func (s *session) cause(ctx context.Context, err error) (kind failure.Kind, hint string, cause error) {
	var refused *refusal
	var status statusError
	var bad *contentError
	var own *failure.Error
	switch {
	case errors.As(err, &refused):
		return failure.Denied, refused.hint, refused
	case errors.As(err, &bad):
		return failure.Denied, "compare the image in the repository with the one to be signed", bad
	case errors.As(err, &own): // of the credentials file, or of an index
		return own.Kind, own.Hint, own
	case errors.As(err, &status):
		switch status {
		case http.StatusUnauthorized, http.StatusForbidden:
			return failure.Denied, "check the repository's name, and credentials of " + s.registry.name, status
		case http.StatusTooManyRequests:
			return failure.Throttled, "try again later", status
		}
		return failure.Unavailable, reachable, status
	case ctx.Err() != nil:
		return failure.Timeout, "try again later", fmt.Errorf("no answer within %s", s.timeout)
	}
	return failure.Unavailable, reachable, innermost(err)
}

const reachable = "check that the registry can be reached from the broker"
