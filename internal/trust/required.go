package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// approvalsFile is the file of a trust directory with what signatures need besides a signer. Notation does not read it.
const approvalsFile = "approvals.json"

const (
	approvalsVersion = 1
	maxApprovalsFile = 4 << 20 // bytes; while an export is under way, it has what two manifests need
	maxExports       = 4       // in the file: those that were interrupted, and the last
)

var approvalsLimits = bound.Limits{Bytes: maxApprovalsFile, Depth: bound.Depth, Elements: 200_000}

// requiredFile is the content of approvalsFile. A signature needs what each export says.
type requiredFile struct {
	Version int               `json:"version"`
	Exports []exportApprovals `json:"exports"`
}

// exportApprovals is what one manifest says of approvals.
type exportApprovals struct {
	Approvals []Approvals `json:"approvals"`
	Approvers []Approver  `json:"approvers"`
}

// Required is what signatures need besides a signer, by canonical scope: one map for each export in force, which is one
// but for the time of an export.
type Required []map[string]*Approvals

// Of returns all approvals that a signature in a repository needs; none if it needs none. The repository is its
// canonical name. In each export, the approvals of "*" are for every repository without approvals of its own.
func (r Required) Of(repository string) []*Approvals {
	var all []*Approvals
	for _, byScope := range r {
		if a := approvalsOf(byScope, repository); a != nil {
			all = append(all, a)
		}
	}
	return all
}

// ReadApprovals returns what signatures need besides a signer of a trust directory. Without the file they need nothing.
// It fails when the file cannot be read, is larger than allowed, or has anything that this version does not know: to
// ignore a part of it would be to trust more.
//
// Read the trust policy before and after: if it is the same, the approvals are not older than the policy (Export).
func ReadApprovals(dir string) (Required, error) {
	exports, err := readExports(filepath.Join(dir, approvalsFile))
	var all Required
	for _, e := range exports {
		byScope := map[string]*Approvals{}
		for i := range e.Approvals {
			byScope[e.Approvals[i].Scope] = &e.Approvals[i]
		}
		all = append(all, byScope)
	}
	return all, err
}

func readExports(path string) ([]exportApprovals, error) {
	data, err := bound.ReadFile(path, maxApprovalsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the approvals that signatures need: %w", err).
			WithHint("check the file's permissions")
	}
	exports, err := parseExports(data)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot use the approvals that signatures need in %s: %w", path, err).
			WithHint("remove the file and write it again with: notation-hsm trust export")
	}
	return exports, nil
}

func parseExports(data []byte) ([]exportApprovals, error) {
	if err := bound.JSON(data, approvalsLimits); err != nil {
		return nil, err
	}
	var file requiredFile
	if err := json.Unmarshal(data, &struct{ Version *int }{&file.Version}); err != nil {
		return nil, err
	}
	if file.Version != approvalsVersion {
		return nil, fmt.Errorf("version %d is not supported, only %d", file.Version, approvalsVersion)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&file); err != nil {
		return nil, err
	}
	if len(file.Exports) == 0 || len(file.Exports) > maxExports {
		return nil, fmt.Errorf("it has %d exports instead of 1 to %d", len(file.Exports), maxExports)
	}
	for _, e := range file.Exports {
		if err := e.read(); err != nil {
			return nil, err
		}
	}
	return file.Exports, nil
}

// read validates what the file has of an export, as the manifest is validated.
func (e exportApprovals) read() error {
	if len(e.Approvals) == 0 {
		return errors.New("an export has no approvals")
	}
	if err := readApprovers(e.Approvers); err != nil {
		return err
	}
	for _, a := range e.Approvals {
		if name, err := repository(a.Scope); err != nil || name != a.Scope {
			return fmt.Errorf("the scope %.200q is not the canonical name of a repository", a.Scope)
		}
	}
	return readApprovals(e.Approvals, e.Approvers)
}

// required returns what the trust directory gets: the approvals and the approvers that they need, or nil.
func (m *Manifest) required() (*exportApprovals, error) {
	if len(m.Approvals) == 0 {
		return nil, nil
	}
	e := &exportApprovals{Approvers: []Approver{}}
	for _, a := range m.Approvals {
		name, err := repository(a.Scope)
		if err != nil {
			return nil, err
		}
		a.Scope = name
		e.Approvals = append(e.Approvals, a)
	}
	for _, p := range m.Approvers {
		if slices.ContainsFunc(m.Approvals, func(a Approvals) bool { return a.has(p.Name) }) {
			e.Approvers = append(e.Approvers, p)
		}
	}
	return e, nil
}

// has reports whether an approver is a member of a group.
func (a *Approvals) has(name string) bool {
	return slices.ContainsFunc(a.Groups, func(g ApprovalGroup) bool { return slices.Contains(g.Members, name) })
}

// withBefore returns the exports of a file with the new one after them, each once.
func withBefore(before []exportApprovals, e *exportApprovals) ([]exportApprovals, error) {
	if e == nil {
		return before, nil
	}
	all := slices.DeleteFunc(slices.Clone(before), func(other exportApprovals) bool { return sameExport(other, *e) })
	if len(all) >= maxExports {
		return nil, failure.New(failure.Conflict, "%d exports of different approvals were interrupted", len(all)).
			WithHint("remove " + approvalsFile + " from the trust directory and export again")
	}
	return append(all, *e), nil
}

// sameExport reports whether two exports are the same in the file.
func sameExport(a, b exportApprovals) bool {
	one, oneErr := json.Marshal(a)
	other, otherErr := json.Marshal(b)
	return oneErr == nil && otherErr == nil && bytes.Equal(one, other)
}

// writeExports replaces the file, unless it has this content. Without an export it removes the file.
func (f folder) writeExports(exports []exportApprovals) error {
	e := extra{name: approvalsFile, what: "the approvals that signatures need", limit: maxApprovalsFile,
		check: func(data []byte) error { _, err := parseExports(data); return err }}
	if len(exports) == 0 {
		return f.removeExtra(e)
	}
	return f.writeExtra(e, requiredFile{approvalsVersion, exports})
}
