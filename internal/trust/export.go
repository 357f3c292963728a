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

// The order of an export: make the new trust stores, replace the policy, remove the old stores. A store's name holds a
// part of its certificate's fingerprint, so that a store is made once and never changed, and the policy's replacement
// is the one moment at which everything changes. An export that is killed leaves the old policy whole or the new one,
// with all their stores; the next export tidies up.

// Exported says what an export did.
type Exported struct {
	Policy     string // the file
	Statements int    // how many came from the manifest
	Kept       int    // how many are others'
	Removed    bool   // no statement was left, and so the file was removed
}

// document is Notation's trust policy with the statements as they stand in the file, so that others' are kept to the
// letter.
type document struct {
	Version       string            `json:"version"`
	TrustPolicies []json.RawMessage `json:"trustPolicies"`
}

// folder is a configuration directory of Notation's.
type folder struct {
	fs             dir.SysFS
	policy, stores string
	file, folder   fs.FileMode // of new ones
}

func openFolder(path string) (folder, error) {
	// A folder for a node or a cluster is read by whoever verifies there, such as a verifier that is not root. Nothing in
	// it is secret.
	f := folder{file: 0o644, folder: 0o755}
	if path == "" {
		config, err := folders.NotationConfig()
		if err != nil {
			return folder{}, err
		}
		path, f.file, f.folder = config, 0o600, 0o700 // as Notation makes them for a user
	}
	f.fs = dir.NewSysFS(path)
	var err, storesErr error
	f.policy, err = f.fs.SysPath(dir.PathTrustPolicy)
	f.stores, storesErr = f.fs.SysPath(dir.X509TrustStoreDir(string(truststore.TypeCA)))
	if err = cmp.Or(err, storesErr); err != nil {
		return f, failure.New(failure.Internal, "can't tell where Notation keeps its trust policy: %w", err).
			WithHint("name a folder with --to")
	}
	return f, nil
}

// Export writes the trust store and the trust policy of Notation from a manifest: into a folder, or, for "", for this
// user.
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
	for _, s := range m.Signers {
		if err := target.makeStore(ctx, s); err != nil {
			return nil, err
		}
	}
	removed, err := target.replace(data)
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
	return &Exported{Policy: target.policy, Statements: len(ours), Kept: len(others), Removed: removed}, nil
}

// readDocument reads a trust policy, without the statements that came from a manifest, and what Notation sees in the
// others. A policy that is not there is empty.
func readDocument(path string) (*document, []trustpolicy.TrustPolicy, error) {
	d := &document{}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		return nil, nil, failure.New(failure.Invalid,
			"the trust policy %s is not a regular file, which Notation refuses", path).
			WithHint("put the file itself there")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, failure.New(failure.Invalid, "can't read the trust policy: %w", err).
			WithHint("check the file's permissions")
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields() // what this program does not know, it could not keep
	if err := decoder.Decode(d); err != nil {
		return nil, nil, failure.New(failure.Invalid, "the trust policy %s can't be read: %w", path, err).
			WithHint("mend the file")
	}
	var others []trustpolicy.TrustPolicy
	var kept []json.RawMessage
	for _, raw := range d.TrustPolicies {
		var statement trustpolicy.TrustPolicy
		if err := json.Unmarshal(raw, &statement); err != nil {
			return nil, nil, failure.New(failure.Invalid, "a statement in the trust policy %s can't be read: %w", path, err).
				WithHint("mend the file")
		}
		if !strings.HasPrefix(statement.Name, statementPrefix) {
			others, kept = append(others, statement), append(kept, raw)
		}
	}
	d.TrustPolicies = kept
	return d, others, nil
}

// add returns the trust policy with our statements after the others, or nil when there are none at all.
func (d *document) add(ours, others []trustpolicy.TrustPolicy, path string) ([]byte, error) {
	if len(others)+len(ours) == 0 {
		return nil, nil
	}
	for _, our := range ours {
		for _, other := range others {
			scope := our.RegistryScopes[0]
			if slices.ContainsFunc(other.RegistryScopes, func(theirs string) bool { return oneRepository(theirs, scope) }) {
				return nil, failure.New(failure.Invalid,
					"the scope %q belongs to the statement %q in %s, and Notation allows no second one, %q", scope, other.Name, path,
					our.Name).
					WithHint("take the scope from that statement, or from the signers: notation-hsm trust signer remove NAME --scope " + scope)
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
		return nil, failure.New(failure.Invalid, "Notation would not accept the trust policy %s: %w", path, err).
			WithHint("mend the statements that are in it")
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "    ")
	err := encoder.Encode(merged)
	return out.Bytes(), err
}

// replace writes the trust policy, or, without data, removes the one that is there: Notation takes none without a
// statement.
func (f folder) replace(data []byte) (removed bool, err error) {
	if data != nil {
		return false, state.Write(f.policy, data, permissions(f.policy, f.file))
	}
	err = os.Remove(f.policy)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, failure.New(failure.Internal, "can't remove the trust policy: %w",
			err).
			WithHint("check the folder's permissions")
	}
	return err == nil, nil
}

// permissions are those of the file that is there, or else those of a new one.
func permissions(path string, otherwise fs.FileMode) fs.FileMode {
	if info, err := os.Stat(path); err == nil {
		return info.Mode().Perm()
	}
	return otherwise
}

// unfinished ends the name of a trust store that is being made. No statement ever names it.
const unfinished = ".unfinished"

var ourStores = sync.OnceValue(func() *regexp.Regexp { // not at the start, which every signature pays for
	return regexp.MustCompile(`^notation-hsm-([a-z0-9][a-z0-9._-]*)-[0-9a-f]+(\` + unfinished + `)?$`)
})

func storeName(s Signer) string {
	return "notation-hsm-" + s.Name + "-" + strings.TrimPrefix(s.Fingerprint, "sha256:")[:16]
}

// makeStore makes a signer's trust store in one step, and asks Notation whether it holds the signer's certificate and
// nothing else.
func (f folder) makeStore(ctx context.Context, s Signer) error {
	name := storeName(s)
	path := filepath.Join(f.stores, name)
	holds := func() bool {
		there, err := truststore.NewX509TrustStore(f.fs).GetCertificates(ctx, truststore.TypeCA, name)
		return err == nil && len(there) == 1 && there[0].Equal(s.cert)
	}
	if holds() {
		return nil
	}
	if err := os.RemoveAll(path + unfinished); err != nil {
		return failure.New(failure.Internal, "can't make the trust store %s: %w", path, err).
			WithHint("check the folder's permissions")
	}
	if err := os.MkdirAll(path+unfinished, f.folder); err != nil {
		return failure.New(failure.Internal, "can't make the trust store %s: %w", path, err).
			WithHint("check the folder's permissions")
	}
	if err := state.Write(filepath.Join(path+unfinished, s.Name+".pem"), []byte(s.Certificate), f.file); err != nil {
		return err
	}
	if err := os.Rename(path+unfinished, path); err != nil || !holds() { // an empty folder in the way is replaced
		return failure.New(failure.Invalid,
			"the trust store %s holds something that is not the certificate of signer %q", path, s.Name).
			WithHint("look into it, and move away what is in it")
	}
	return nil
}

// removeStores removes the trust stores of signers who are gone, but nothing that someone else put there, and none that
// someone else's statement names.
func (f folder) removeStores(signers []Signer, others []trustpolicy.TrustPolicy) error {
	entries, err := os.ReadDir(f.stores)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failure.New(failure.Internal, "can't look for old trust stores: %w", err).
			WithHint("check the folder's permissions")
	}
	for _, entry := range entries {
		name := entry.Name()
		match := ourStores().FindStringSubmatch(name)
		used := slices.ContainsFunc(signers, func(s Signer) bool { return storeName(s) == name }) ||
			slices.ContainsFunc(others, func(p trustpolicy.TrustPolicy) bool {
				return slices.Contains(p.TrustStores,
					"ca:"+name)
			})
		if match == nil || used || !entry.IsDir() {
			continue
		}
		path := filepath.Join(f.stores, name)
		if match[2] == unfinished {
			err = os.RemoveAll(path)
		} else if err = os.Remove(filepath.Join(path, match[1]+".pem")); err == nil || errors.Is(err, fs.ErrNotExist) {
			if err = os.Remove(path); errors.Is(err, fs.ErrExist) { // not empty: someone else's file is in it
				err = nil
			}
		}
		if err != nil {
			return failure.New(failure.Internal, "can't remove the old trust store %s: %w", path, err).
				WithHint("remove it by hand: the policy no longer names it")
		}
	}
	return nil
}
