package tuf

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// items are what a targets file says, by name, each as JSON: tags of a role that lists tags, delegations of
// targets.json. In changes, an empty value is an item that is removed.
type items map[string]string

// delegation is a delegation with its keys.
type delegation struct {
	Role metadata.DelegatedRole   `json:"role"`
	Keys map[string]*metadata.Key `json:"keys"`
}

// tagItems returns the tags of files.
func tagItems(files ...*targetsFile) items {
	all := items{}
	for _, m := range files {
		if m == nil {
			continue
		}
		for tag, target := range m.Signed.Targets {
			all[tag] = mustJSON(target)
		}
	}
	return all
}

// delegationItems returns the delegations of targets.json.
func delegationItems(m *targetsFile) items {
	all := items{}
	if m == nil || m.Signed.Delegations == nil {
		return all
	}
	for _, r := range m.Signed.Delegations.Roles {
		d := delegation{Role: r, Keys: map[string]*metadata.Key{}}
		for _, id := range r.KeyIDs {
			d.Keys[id] = m.Signed.Delegations.Keys[id]
		}
		all[r.Name] = mustJSON(d)
	}
	return all
}

// mustJSON encodes what was decoded from JSON, or made here, which cannot fail.
func mustJSON(value any) string {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// changes returns what leads from base to the items.
func (i items) changes(base items) items {
	all := items{}
	for name, value := range i {
		if base[name] != value {
			all[name] = value
		}
	}
	for name := range base {
		if _, ok := i[name]; !ok {
			all[name] = ""
		}
	}
	return all
}

// with returns the items after changes.
func (i items) with(changes ...items) items {
	all := maps.Clone(i)
	for _, c := range changes {
		for name, value := range c {
			if value == "" {
				delete(all, name)
			} else {
				all[name] = value
			}
		}
	}
	return all
}

// covers reports whether changes say something of every item that others change.
func (i items) covers(others items) bool {
	for name := range others {
		if _, ok := i[name]; !ok {
			return false
		}
	}
	return true
}

// ErrPending is the cause when a change cannot be proposed before a proposal of the same item is published.
var ErrPending = errors.New("it is proposed, and not published yet")

// undone fails with ErrPending if the changes of a proposal are undone by what is wanted: if what is wanted of an item
// is what is published, and the changes make it something else. A file shows no difference then, so that nobody could
// tell whether its signer knew of the proposal.
func (i items) undone(published, want items) error {
	for name, value := range want {
		if said, ok := i[name]; ok && said != value && published[name] == value {
			return failure.New(failure.Conflict, "cannot change %s back: %w", name, ErrPending).
				WithHint("wait until the publisher has published it: hsm-image tag status")
		}
	}
	return nil
}

// targets returns the tags as targets.
func (i items) targets() (map[string]*metadata.TargetFiles, error) {
	all := map[string]*metadata.TargetFiles{}
	for tag, value := range i {
		t := &metadata.TargetFiles{}
		if err := json.Unmarshal([]byte(value), t); err != nil {
			return nil, invalid("cannot read the target of tag %s: %w", tag, err)
		}
		all[tag] = t
	}
	return all, nil
}

// delegations returns delegations, in the order of base and then by name.
func (i items) delegations(base *targetsFile) (*metadata.Delegations, error) {
	all := &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{}}
	var order []string
	if base != nil && base.Signed.Delegations != nil {
		for _, r := range base.Signed.Delegations.Roles {
			order = append(order, r.Name)
		}
	} else {
		order = []string{Tags}
	}
	for _, name := range slices.Sorted(maps.Keys(i)) {
		if !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	for _, name := range order {
		value, ok := i[name]
		if !ok {
			continue
		}
		var d delegation
		if err := json.Unmarshal([]byte(value), &d); err != nil {
			return nil, invalid("cannot read the delegation %s: %w", name, err)
		}
		all.Roles = append(all.Roles, d.Role)
		maps.Copy(all.Keys, d.Keys)
	}
	return all, nil
}
