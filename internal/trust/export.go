package trust

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/notaryproject/notation-go/dir"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/notaryproject/notation-go/verifier/truststore"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// The order of an export: create the new trust stores, add the approvals and the roots of tags, replace the policy,
// remove the approvals and the roots of tags that are no more, remove the old stores. The name of a store has a part of
// its certificate's fingerprint, so a store is created once and never changed, and the replacement of the policy
// changes everything at one moment. An export that is killed leaves the complete old or new policy with all its stores;
// the next export removes the rest.
//
// Roots of tags only ever restrict what the policy accepts. So they are in force before a policy that needs them, and
// until after a policy that needed them: a reader that finds the same policy before and after it reads the tags has
// every root that was exported with this policy. For a repository that had a root before, it may have the new root and
// the new signers already; then a signature counts only if the old policy and the new signers accept it.
//
// Approvals only ever restrict, too. While the policy is replaced, both the old and the new ones are in force: the old
// policy with the new approvals could be less than either export says.

// Exported is the result of an export.
type Exported struct {
	Policy     string // path of the trust policy
	Statements int    // number of statements from the manifest
	Kept       int    // number of other statements
	Removed    bool   // the file was removed, as it had no statement left
	Tags       int    // number of repositories whose tags have a root

	// what Notation's own command does not know
	Restricted []string // names of signers with paths
	Approvals  []string // scopes whose signatures need approvals
}

// document is Notation's trust policy with its statements unparsed, so that other statements are kept unchanged.
type document struct {
	Version       string            `json:"version"`
	TrustPolicies []json.RawMessage `json:"trustPolicies"`
}

// folder is a configuration directory of Notation.
type folder struct {
	fs             dir.SysFS
	policy, stores string
	file, folder   fs.FileMode // of new ones
}

func openFolder(path string) (folder, error) {
	// Other users read a folder for a node or a cluster, such as a verifier that is not root. Nothing in it is secret.
	f := folder{file: 0o644, folder: 0o755}
	if path == "" {
		config, err := folders.NotationConfig()
		if err != nil {
			return folder{}, err
		}
		path, f.file, f.folder = config, 0o600, 0o700 // as Notation creates them for a user
	}
	f.fs = dir.NewSysFS(path)
	var err, storesErr error
	f.policy, err = f.fs.SysPath(dir.PathTrustPolicy)
	f.stores, storesErr = f.fs.SysPath(dir.X509TrustStoreDir(string(truststore.TypeCA)))
	if err = cmp.Or(err, storesErr); err != nil {
		return f, failure.New(failure.Internal, "cannot find the trust policy of Notation: %w", err).
			WithHint("name a folder with --to")
	}
	return f, nil
}

// Export writes a manifest as trust stores and trust policy of Notation into a folder, or, for "", into the user's own
// configuration directory.
func Export(ctx context.Context, manifest, to string) (*Exported, error) {
	target, err := openFolder(to)
	if err != nil {
		return nil, err
	}
	if _, err := Load(manifest); err != nil {
		return nil, err
	}
	unlock, err := state.Lock(ctx, filepath.Dir(manifest))
	if err != nil {
		return nil, err
	}
	defer unlock()
	m, err := Load(manifest)
	if err != nil {
		return nil, err
	}
	return m.export(ctx, target)
}

func (m *Manifest) export(ctx context.Context, target folder) (*Exported, error) {
	ours, err := m.statements()
	if err != nil {
		return nil, err
	}
	policy, others, err := readDocument(target.policy)
	if err != nil {
		return nil, err
	}
	data, err := policy.add(ours, others, target.policy)
	if err != nil {
		return nil, err
	}
	var tags []*Pinned
	var required *exportApprovals
	if data != nil {
		if tags, err = m.pinned(others); err != nil {
			return nil, err
		}
		if required, err = m.required(); err != nil {
			return nil, err
		}
	}
	removed, err := target.write(ctx, m, data, tags, required)
	if err != nil {
		return nil, err
	}
	if err := target.removeStores(m.Signers, others); err != nil {
		return nil, err
	}
	if data == nil && !removed {
		return nil, failure.New(failure.Invalid, "the trust manifest has no signer to export").
			WithHint("add one with: notation-hsm trust signer add")
	}
	done := &Exported{Policy: target.policy, Statements: len(ours), Kept: len(others), Removed: removed, Tags: len(tags)}
	for _, s := range m.Signers {
		if len(s.Paths) > 0 {
			done.Restricted = append(done.Restricted, s.Name)
		}
	}
	for _, a := range m.Approvals {
		done.Approvals = append(done.Approvals, a.Scope)
	}
	return done, nil
}

// write creates the trust stores, and replaces the trust policy, the approvals and the roots of tags.
func (f folder) write(ctx context.Context, m *Manifest, policy []byte, tags []*Pinned, required *exportApprovals,
) (removed bool, err error) {
	old, err := f.readPinned()
	if err != nil {
		return false, err
	}
	before, err := readExports(filepath.Join(filepath.Dir(f.policy), approvalsFile))
	if err != nil {
		return false, err
	}
	if before, err = withBefore(before, required); err != nil {
		return false, err
	}
	if err := f.writeExports(before); err != nil {
		return false, err
	}
	for _, s := range m.Signers {
		if err := f.makeStore(ctx, s); err != nil {
			return false, err
		}
	}
	if err := f.writePinned(withOld(tags, old)); err != nil {
		return false, err
	}
	if removed, err = f.replace(policy); err != nil {
		return false, err
	}
	var after []exportApprovals
	if required != nil {
		after = append(after, *required)
	}
	return removed, cmp.Or(f.writePinned(tags), f.writeExports(after))
}

// readDocument reads a trust policy without the statements that came from a manifest, and returns the other statements
// as Notation reads them. A missing policy is empty.
func readDocument(path string) (*document, []trustpolicy.TrustPolicy, error) {
	d := &document{}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		return nil, nil, failure.New(failure.Invalid,
			"the trust policy %s is not a regular file, which Notation refuses", path).
			WithHint("replace it by the file itself")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, failure.New(failure.Invalid, "cannot read the trust policy: %w", err).
			WithHint("check the file's permissions")
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields() // an unknown field would be lost
	if err := decoder.Decode(d); err != nil {
		return nil, nil, failure.New(failure.Invalid, "cannot parse the trust policy %s: %w", path, err).
			WithHint("correct the file")
	}
	var others []trustpolicy.TrustPolicy
	var kept []json.RawMessage
	for _, raw := range d.TrustPolicies {
		var statement trustpolicy.TrustPolicy
		if err := json.Unmarshal(raw, &statement); err != nil {
			return nil, nil, failure.New(failure.Invalid, "cannot parse a statement of the trust policy %s: %w", path, err).
				WithHint("correct the file")
		}
		if !strings.HasPrefix(statement.Name, statementPrefix) {
			others, kept = append(others, statement), append(kept, raw)
		}
	}
	d.TrustPolicies = kept
	return d, others, nil
}

// add returns the trust policy with the manifest's statements after the others, or nil when there is no statement.
func (d *document) add(ours, others []trustpolicy.TrustPolicy, path string) ([]byte, error) {
	if len(others)+len(ours) == 0 {
		return nil, nil
	}
	for _, our := range ours {
		for _, other := range others {
			scope := our.RegistryScopes[0]
			if slices.ContainsFunc(other.RegistryScopes, func(theirs string) bool { return oneRepository(theirs, scope) }) {
				return nil, failure.New(failure.Conflict,
					"the scope %q is in the statement %q of %s, and Notation allows no second one in %q", scope, other.Name,
					path, our.Name).
					WithHint("remove the scope from that statement, or from the signers: notation-hsm trust signer remove NAME " +
						"--scope " + scope)
			}
		}
	}
	merged := &document{Version: cmp.Or(d.Version, documentVersion), TrustPolicies: slices.Clone(d.TrustPolicies)}
	for _, statement := range ours {
		raw, err := json.Marshal(statement)
		if err != nil {
			return nil, err
		}
		merged.TrustPolicies = append(merged.TrustPolicies, raw)
	}
	whole := &trustpolicy.Document{Version: merged.Version, TrustPolicies: slices.Concat(others, ours)}
	if err := whole.Validate(); err != nil {
		return nil, failure.New(failure.Invalid, "Notation refuses the trust policy %s: %w", path, err).
			WithHint("correct the other statements in it")
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "    ")
	err := encoder.Encode(merged)
	return out.Bytes(), err
}

// replace writes the trust policy. Without data it removes the file: Notation refuses a policy without a statement.
func (f folder) replace(data []byte) (removed bool, err error) {
	if data != nil {
		return false, state.Write(f.policy, data, permissions(f.policy, f.file))
	}
	err = os.Remove(f.policy)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, failure.New(failure.Internal, "cannot remove the trust policy: %w", err).
			WithHint("check the folder's permissions")
	}
	return err == nil, nil
}

// permissions returns the permissions of an existing file, or those of a new one.
func permissions(path string, otherwise fs.FileMode) fs.FileMode {
	if info, err := os.Stat(path); err == nil {
		return info.Mode().Perm()
	}
	return otherwise
}

// unfinished is the suffix of a trust store that is being created. No statement names it.
const unfinished = ".unfinished"

var ourStores = sync.OnceValue(func() *regexp.Regexp { // not at the start, which every signature pays for
	return regexp.MustCompile(`^notation-hsm-([a-z0-9][a-z0-9._-]*)-[0-9a-f]+(\` + unfinished + `)?$`)
})

func storeName(s Signer) string {
	return "notation-hsm-" + s.Name + "-" + strings.TrimPrefix(s.Fingerprint, "sha256:")[:16]
}

// makeStore creates a signer's trust store in one step, and checks with Notation's code that it has the signer's
// certificate and nothing else.
func (f folder) makeStore(ctx context.Context, s Signer) error {
	name := storeName(s)
	path := filepath.Join(f.stores, name)
	holds := func() bool {
		found, err := truststore.NewX509TrustStore(f.fs).GetCertificates(ctx, truststore.TypeCA, name)
		return err == nil && len(found) == 1 && found[0].Equal(s.cert)
	}
	if holds() {
		return nil
	}
	if err := os.RemoveAll(path + unfinished); err != nil {
		return failure.New(failure.Internal, "cannot create the trust store %s: %w", path, err).
			WithHint("check the folder's permissions")
	}
	if err := os.MkdirAll(path+unfinished, f.folder); err != nil {
		return failure.New(failure.Internal, "cannot create the trust store %s: %w", path, err).
			WithHint("check the folder's permissions")
	}
	if err := state.Write(filepath.Join(path+unfinished, s.Name+".pem"), []byte(s.Certificate), f.file); err != nil {
		return err
	}
	if err := os.Rename(path+unfinished, path); err != nil || !holds() { // an empty folder in the way is replaced
		return failure.New(failure.Invalid,
			"the trust store %s has other content than the certificate of signer %q", path, s.Name).
			WithHint("move the content of the folder elsewhere")
	}
	return nil
}

// removeStores removes the trust stores of removed signers, but no file of others, and no store that another statement
// names.
func (f folder) removeStores(signers []Signer, others []trustpolicy.TrustPolicy) error {
	entries, err := os.ReadDir(f.stores)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failure.New(failure.Internal, "cannot list the trust stores: %w", err).
			WithHint("check the folder's permissions")
	}
	for _, entry := range entries {
		name := entry.Name()
		match := ourStores().FindStringSubmatch(name)
		used := slices.ContainsFunc(signers, func(s Signer) bool { return storeName(s) == name }) ||
			slices.ContainsFunc(others, func(p trustpolicy.TrustPolicy) bool {
				return slices.Contains(p.TrustStores, "ca:"+name)
			})
		if match == nil || used || !entry.IsDir() {
			continue
		}
		path := filepath.Join(f.stores, name)
		if match[2] == unfinished {
			err = os.RemoveAll(path)
		} else if err = os.Remove(filepath.Join(path, match[1]+".pem")); err == nil || errors.Is(err, fs.ErrNotExist) {
			if err = os.Remove(path); errors.Is(err, fs.ErrExist) { // not empty: another's file is in it
				err = nil
			}
		}
		if err != nil {
			return failure.New(failure.Internal, "cannot remove the old trust store %s: %w", path, err).
				WithHint("remove the folder: the policy no longer names it")
		}
	}
	return nil
}
