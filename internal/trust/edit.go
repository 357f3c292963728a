package trust

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// exportedApprover is an approver as 'hsm-broker approver export' prints it.
type exportedApprover struct {
	Name        string   `json:"name"`
	ID          string   `json:"id"`
	Credentials [][]byte `json:"credentials"` // documents
}

// MaxApproversFile is the limit of the size in bytes of what 'hsm-broker approver export' prints.
const MaxApproversFile = 4 << 20

var exportedLimits = bound.Limits{Bytes: MaxApproversFile, Depth: bound.Depth, Elements: 100_000}

// ParseApprovers reads what 'hsm-broker approver export' prints: a JSON array. It fails with Invalid for anything else,
// and for credentials that are not in their canonical form.
func ParseApprovers(data []byte) ([]Approver, error) {
	all, err := parseApprovers(data)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the exported approvers: %w", err).
			WithHint("name a file that this command wrote: hsm-broker approver export")
	}
	return all, nil
}

func parseApprovers(data []byte) ([]Approver, error) {
	if err := bound.JSON(data, exportedLimits); err != nil {
		return nil, err
	}
	var exported []exportedApprover
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&exported); err != nil {
		return nil, err
	}
	var all []Approver
	for _, e := range exported {
		a := Approver{Name: e.Name, ID: e.ID}
		for i, document := range e.Credentials {
			c, err := readCredential(document, e.ID)
			if err != nil {
				return nil, fmt.Errorf("the credential %d of %.80q: %w", i+1, e.Name, err)
			}
			a.Credentials = append(a.Credentials, c)
		}
		all = append(all, a)
	}
	return all, readApprovers(all)
}

// AddApprovers adds approvers with all their credentials. It fails with Conflict if there is one of the same name with
// another id or other credentials, unless replace is set.
func AddApprovers(ctx context.Context, path string, list []Approver, replace bool) error {
	return change(ctx, path, func(m *Manifest) error {
		for _, a := range list {
			i := slices.IndexFunc(m.Approvers, func(other Approver) bool { return other.Name == a.Name })
			switch {
			case i < 0:
				m.Approvers = append(m.Approvers, a)
			case replace:
				m.Approvers[i] = a
			case !a.equal(m.Approvers[i]):
				return failure.New(failure.Conflict, "there is already an approver %q with another id or other credentials",
					a.Name).
					WithHint("compare the fingerprints with: notation-hsm trust approver list; then give --replace")
			}
		}
		return m.readApprovals()
	})
}

// equal reports whether two approvers of one name are the same person with the same credentials.
func (a Approver) equal(other Approver) bool {
	return a.ID == other.ID && slices.Equal(a.hashes(), other.hashes())
}

// hashes returns the names of an approver's credentials in order.
func (a Approver) hashes() []string {
	var all []string
	for _, c := range a.Credentials {
		all = append(all, c.Hash())
	}
	slices.Sort(all)
	return all
}

// RemoveApprover removes an approver. It fails with NotFound if there is none, and with Conflict if a group names them.
func RemoveApprover(ctx context.Context, path, name string) error {
	return change(ctx, path, func(m *Manifest) error {
		i := slices.IndexFunc(m.Approvers, func(a Approver) bool { return a.Name == name })
		if i < 0 {
			return failure.New(failure.NotFound, "there is no approver %q", name).
				WithHint("list them: notation-hsm trust approver list")
		}
		for _, a := range m.Approvals {
			if a.has(name) {
				return failure.New(failure.Conflict, "approver %q is in a group of the approvals of %q", name, a.Scope).
					WithHint("change the group first: notation-hsm trust approvals add " + a.Scope + " --replace ...")
			}
		}
		m.Approvers = slices.Delete(m.Approvers, i, i+1)
		return nil
	})
}

// AddApprovals adds the approvals of a scope. It fails with Conflict if the scope has others already, unless replace is
// set.
func AddApprovals(ctx context.Context, path string, a Approvals, replace bool) error {
	return change(ctx, path, func(m *Manifest) error {
		i := m.findApprovals(a.Scope)
		switch {
		case i < 0:
			m.Approvals = append(m.Approvals, a)
		case !replace:
			return failure.New(failure.Conflict, "the scope %q has approvals already", m.Approvals[i].Scope).
				WithHint("give --replace to replace all of them")
		default:
			m.Approvals[i] = a
		}
		return m.readApprovals()
	})
}

// RemoveApprovals removes the approvals of a scope. It fails with NotFound if there are none.
func RemoveApprovals(ctx context.Context, path, scope string) error {
	return change(ctx, path, func(m *Manifest) error {
		i := m.findApprovals(scope)
		if i < 0 {
			return failure.New(failure.NotFound, "the scope %q has no approvals", scope).
				WithHint("list the scopes that have some: notation-hsm trust approvals list")
		}
		m.Approvals = slices.Delete(m.Approvals, i, i+1)
		return nil
	})
}

// findApprovals returns the index of the approvals of a scope, however it is spelled, or -1.
func (m *Manifest) findApprovals(scope string) int {
	return slices.IndexFunc(m.Approvals, func(a Approvals) bool { return oneRepository(a.Scope, scope) })
}
