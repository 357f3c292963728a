package tags

import (
	"context"
	"os"
	"path/filepath"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// Status is what is published and proposed in a repository.
type Status struct {
	Repository string         `json:"repository"`
	Roles      []tuf.RoleInfo `json:"roles"`
	Proposals  []Pending      `json:"proposals,omitempty"`
	Held       []string       `json:"held,omitempty"`    // why proposals cannot be published
	Refused    []string       `json:"refused,omitempty"` // why what looks like a proposal is none
}

// Pending is a proposal that waits for signatures or the publisher.
type Pending struct {
	Tag   string   `json:"tag"` // where it is
	Roles []string `json:"roles"`
}

// Status returns the state of the repository.
func (r *Repository) Status(ctx context.Context) (*Status, error) {
	c, err := r.read(ctx)
	if err != nil {
		return nil, err
	}
	s := &Status{Repository: r.Name, Refused: c.refused}
	if s.Roles, err = c.view.Status(ctx); err != nil {
		return nil, err
	}
	for _, p := range c.pending {
		s.Proposals = append(s.Proposals, Pending{p.ID, p.Roles()})
	}
	s.Held, err = c.view.Held(ctx, c.pending)
	return s, err
}

// Export writes the published metadata into a folder, as any TUF client reads them: metadata/*.json. Files that are
// there already are replaced; others stay.
func (r *Repository) Export(ctx context.Context, to string) (*tuf.View, error) {
	v, published, err := r.View(ctx, false)
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(to, "metadata")
	if err := os.MkdirAll(folder, 0o755); err != nil { //nolint:gosec // nothing in it is secret
		return nil, failure.New(failure.FileKind(err), "cannot make the folder %s: %w", folder, err).
			WithHint("check the folder's permissions")
	}
	names, err := v.FileNames(ctx)
	if err != nil {
		return nil, err
	}
	for version := int64(1); version < v.Versions().Root; version++ {
		names = append(names, tuf.RootName(version))
	}
	for _, name := range names {
		data, err := published.Read(ctx, name, maxExport)
		if err != nil {
			return nil, err
		}
		if err := state.Write(filepath.Join(folder, name), data, 0o644); err != nil {
			return nil, err
		}
	}
	return v, nil
}

const maxExport = 1 << 20 // bytes of a file, the most that the store has
