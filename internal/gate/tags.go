package gate

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
)

// In a repository whose tags have a root in the trust directory, TUF metadata say which digest a tag has, and the
// registry is not believed. A node remembers the versions that it saw, so that no registry can go back.

// Tag says which metadata resolved the tag of an image.
type Tag struct {
	Name  string `json:"name"`
	Role  string `json:"role"`            // that signed the tag: "tags", which is of the targets keys, or a delegation
	Stale bool   `json:"stale,omitempty"` // from remembered metadata, since the registry gave none

	Versions Versions `json:"versions"`
}

// Versions are the versions of the metadata of the top roles.
type Versions struct {
	Root      int64 `json:"root"`
	Timestamp int64 `json:"timestamp"`
	Snapshot  int64 `json:"snapshot"`
	Targets   int64 `json:"targets"`
}

// String returns the tag and the role, for people.
func (t *Tag) String() string {
	stale := ""
	if t.Stale {
		stale = ", remembered"
	}
	return fmt.Sprintf("%s (role %s, timestamp %d%s)", t.Name, t.Role, t.Versions.Timestamp, stale)
}

// findTagsDir returns the folder of what is remembered about tags: that of the options, or the user's.
func (o Options) findTagsDir() (string, error) {
	if o.TagsDir != "" {
		return o.TagsDir, nil
	}
	return folders.Tags()
}

// TagsFolder is the name of the folder of what is remembered about tags, in a folder for state.
const TagsFolder = "tags"

// tagIn returns the tag in an image's name, of which named is the parsed form, or "". A name may have a digest too.
func tagIn(text string, named reference.Named) string {
	if tagged, ok := named.(reference.Tagged); ok {
		return tagged.Tag()
	}
	// ParseDockerRef drops the tag of a name with a digest.
	if whole, err := reference.ParseNormalizedNamed(text); err == nil {
		if tagged, ok := whole.(reference.Tagged); ok {
			return tagged.Tag()
		}
	}
	return ""
}

// resolved is what the metadata say of a tag.
type resolved struct {
	tuf.Target
	versions tuf.Versions
	pinned   *trust.Pinned
	warning  string // why the metadata are remembered ones
}

// note adds the tag to a decision.
func (r *resolved) note(d *Decision) {
	if r == nil {
		return
	}
	d.Tag = &Tag{Name: r.Tag, Role: r.Role, Stale: r.Stale, Versions: Versions(r.versions)}
	if r.warning != "" {
		d.Warnings = append(d.Warnings, sanitize(r.warning))
	}
}

// checkSize fails if a manifest has another size than the metadata say.
func (r *resolved) checkSize(manifest ocispec.Descriptor) error {
	if r == nil || r.Size == manifest.Size {
		return nil
	}
	return fmt.Errorf("its manifest has %d bytes, and %d in the tag metadata", manifest.Size, r.Size)
}

// allows fails unless a signer with the certificate chain may sign the tag.
func (r *resolved) allows(chain []*x509.Certificate) error {
	if r == nil {
		return nil
	}
	if err := r.pinned.Allows(r.Tag, chain); err != nil {
		return fmt.Errorf("the signature does not count for the tag %s: %w", r.Tag, err)
	}
	return nil
}

// resolveTag resolves a tag by the metadata in the sources. It asks one source after the other until one has valid
// metadata in which the tag has the digest that is wanted, or any if want is "". A source with older metadata than were
// seen before, or with none, is skipped: versions only increase, so the next one cannot bring older ones back. If no
// source has valid metadata and one could not be read, remembered metadata count as long as the root's entry says.
func (g *Gate) resolveTag(ctx context.Context, pinned *trust.Pinned, tag string, want digest.Digest,
	sources ...source) (*resolved, error) {
	folder, err := g.options.findTagsDir()
	if err != nil {
		return nil, err
	}
	if len(sources) == 0 {
		return nil, errNoRegistry
	}
	client := tuf.Client{Root: pinned.Root, Dir: tuf.Folder(folder, pinned.Scope), Stale: pinned.Stale()}
	r := &resolution{client: client, pinned: pinned, tag: tag, want: want}
	for i, s := range sources {
		ctx, cancel := shareDeadline(ctx, len(sources)-i+1) // the signatures need time as well
		found := r.ask(ctx, s, len(sources) > 1)
		cancel()
		if found != nil {
			return found, nil
		}
	}
	return r.remembered(ctx)
}

// resolution is the search for a tag in several sources.
type resolution struct {
	client  tuf.Client
	pinned  *trust.Pinned
	tag     string
	want    digest.Digest
	reasons []string
	given   bool      // a source has given metadata
	failed  error     // why a source could not be read
	stale   *resolved // from remembered metadata
}

// ask returns the tag as the metadata of a source have it, or notes why there is none.
func (r *resolution) ask(ctx context.Context, s source, named bool) *resolved {
	found, err := r.read(ctx, s)
	if err == nil {
		return found
	}
	reason := err.Error()
	if named {
		reason = s.name + ": " + reason
	}
	r.reasons = append(r.reasons, reason)
	return nil
}

func (r *resolution) read(ctx context.Context, s source) (*resolved, error) {
	published, err := tufstore.New(s.remote).Published(ctx)
	if err != nil {
		if r.failed == nil || failure.From(err).Kind != failure.NotFound {
			r.failed = err
		}
		return nil, err
	}
	view, err := r.client.Update(ctx, published)
	if err != nil {
		r.note(err)
		return nil, err
	}
	found, err := r.resolve(ctx, view)
	if err != nil {
		r.note(err)
		return nil, err
	}
	if !found.Stale {
		return found, nil
	}
	r.stale = found
	r.failed = failure.New(failure.Unavailable, "the registry gave not all of its metadata")
	return nil, r.failed
}

// note remembers whether the metadata of a source were refused, or could not be read as a whole.
func (r *resolution) note(err error) {
	switch failure.From(err).Kind {
	case failure.Unavailable, failure.Timeout, failure.Throttled:
		r.failed = err
	default:
		r.given = true
	}
}

// resolve resolves the tag in valid metadata.
func (r *resolution) resolve(ctx context.Context, view *tuf.View) (*resolved, error) {
	target, err := view.Resolve(ctx, r.tag)
	if err != nil {
		return nil, err
	}
	if r.want != "" && r.want != target.Digest {
		return nil, failure.New(failure.Denied, "the tag %s is %s in the tag metadata (role %s), and not %s", r.tag,
			target.Digest, target.Role, r.want)
	}
	return &resolved{Target: target, versions: view.Versions(), pinned: r.pinned}, nil
}

// remembered returns the tag as remembered metadata have it, if no source could be read, or one could not and no other
// had valid metadata.
func (r *resolution) remembered(ctx context.Context) (*resolved, error) {
	refused := errors.New(strings.Join(r.reasons, "; "))
	if r.failed == nil || r.given && failure.From(r.failed).Kind == failure.NotFound {
		return nil, refused
	}
	found := r.stale
	if found == nil {
		view, err := r.client.Update(ctx, unreadable{refused})
		if err != nil {
			return nil, err
		}
		if found, err = r.resolve(ctx, view); err != nil {
			return nil, err
		}
	}
	found.warning = fmt.Sprintf("the tag is from remembered metadata: %v", refused)
	return found, nil
}

// unreadable are the files of a registry that gives none.
type unreadable struct{ reason error }

// Read fails.
func (u unreadable) Read(context.Context, string, int64) ([]byte, error) {
	return nil, failure.New(failure.Unavailable, "%w", u.reason)
}
