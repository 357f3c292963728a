package gate

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// memoryKey is a key in memory that signs as a module does.
type memoryKey struct {
	keystore.Key
	private *ecdsa.PrivateKey
}

func (k memoryKey) Public() crypto.PublicKey { return k.private.Public() }

func (k memoryKey) SignMessage(_ context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc().New()
	hash.Write(message)
	return ecdsa.SignASN1(rand.Reader, k.private, hash.Sum(nil))
}

func newTagSigner(t testing.TB) *tuf.Signer {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := tuf.NewSigner(memoryKey{private: private})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// files are published metadata.
type files map[string][]byte

func (f files) Read(_ context.Context, name string, _ int64) ([]byte, error) {
	if data, ok := f[name]; ok {
		return data, nil
	}
	return nil, failure.New(failure.NotFound, "there is no %s", name)
}

// tagged is a repository with tag metadata: the role of the targets keys, and the delegation "alice" for release-*.
type tagged struct {
	t                                         testing.TB
	root, targets, snapshot, timestamp, alice *tuf.Signer
	pin                                       []byte
	published                                 files
}

func one(s *tuf.Signer) tuf.RoleKeys { return tuf.RoleKeys{Keys: []*tuf.Key{s.Key}, Threshold: 1} }

func newTagged(t testing.TB) *tagged {
	t.Helper()
	w := &tagged{t: t, root: newTagSigner(t), targets: newTagSigner(t), snapshot: newTagSigner(t),
		timestamp: newTagSigner(t), alice: newTagSigner(t)}
	root, err := tuf.NewRoot(one(w.root), one(w.targets), one(w.snapshot), one(w.timestamp))
	w.must(err)
	w.must(root.Sign(t.Context(), []*tuf.Signer{w.root}))
	w.pin, err = root.Encode()
	w.must(err)
	first, err := tuf.Begin(t.Context(), root, []*tuf.Signer{w.targets, w.snapshot, w.timestamp})
	w.must(err)
	w.published = first.Files
	w.delegate(tuf.Delegation{Name: "alice", Paths: []string{"release-*"}, RoleKeys: one(w.alice)})
	return w
}

func (w *tagged) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *tagged) view() *tuf.View {
	w.t.Helper()
	v, err := tuf.Client{Root: w.pin, Dir: w.t.TempDir(), Expired: true}.Update(w.t.Context(), w.published)
	w.must(err)
	return v
}

// publish publishes a change, or the same again.
func (w *tagged) publish(change *tuf.Amended) {
	w.t.Helper()
	var pending []*tuf.Proposal
	if change != nil {
		p, err := tuf.ReadProposal("0", change.Files)
		w.must(err)
		pending = append(pending, p)
	}
	made, err := w.view().Publish(w.t.Context(), pending, []*tuf.Signer{w.snapshot, w.timestamp}, true)
	w.must(err)
	if len(made.Held) > 0 {
		w.t.Fatal(made.Held)
	}
	next := files(maps.Clone(made.Files))
	for _, name := range made.Keep {
		next[name] = w.published[name]
	}
	w.published = next
}

// sign lets a role sign a tag.
func (w *tagged) sign(role, tag string, image ocispec.Descriptor) {
	w.t.Helper()
	signer := w.targets
	if role == "alice" {
		signer = w.alice
	}
	change, err := w.view().Amend(w.t.Context(), nil, role,
		tuf.Change{Set: []tuf.Target{{Tag: tag, Digest: image.Digest, Size: image.Size}}}, []*tuf.Signer{signer})
	w.must(err)
	w.publish(change)
}

func (w *tagged) delegate(d tuf.Delegation) {
	w.t.Helper()
	change, err := w.view().AmendDelegations(w.t.Context(), nil, d, []*tuf.Signer{w.targets, w.alice})
	w.must(err)
	w.publish(change)
}

// snapshotName returns the name of the published snapshot.
func (w *tagged) snapshotName() string {
	w.t.Helper()
	for name := range w.published {
		if strings.HasSuffix(name, ".snapshot.json") {
			return name
		}
	}
	w.t.Fatal("no snapshot is published")
	return ""
}

// expire replaces the timestamp by the same, which has expired.
func (w *tagged) expire() {
	w.t.Helper()
	m, err := metadata.Timestamp().FromBytes(w.published["timestamp.json"])
	w.must(err)
	m.Signed.Expires = time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	m.Signed.Version++
	m.ClearSignatures()
	payload, err := metadataPayload(m)
	w.must(err)
	signature, err := w.timestamp.Sign(w.t.Context(), payload)
	w.must(err)
	m.Signatures = append(m.Signatures, metadata.Signature{KeyID: w.timestamp.ID, Signature: signature})
	w.published = maps.Clone(w.published)
	w.published["timestamp.json"], err = m.ToBytes(false)
	w.must(err)
}

// serve makes a registry serve metadata.
func (w *tagged) serve(h *oci.Hostile, published files) { w.serveWith(h, published, "timestamp.json") }

// serveWith is serve with one file embedded in the manifest.
func (w *tagged) serveWith(h *oci.Hostile, published files, embedded string) {
	w.t.Helper()
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: "application/vnd.notation-hsm.tuf.v1+json", Config: ocispec.DescriptorEmptyJSON}
	for _, name := range slices.Sorted(maps.Keys(published)) {
		d := h.Add("application/vnd.tuf.metadata+json", published[name])
		d.Annotations = map[string]string{ocispec.AnnotationTitle: name}
		if name == embedded {
			d.Data = published[name]
		}
		manifest.Layers = append(manifest.Layers, d)
	}
	data, err := json.Marshal(manifest)
	w.must(err)
	h.Tag(tufstore.Tag, h.Add(ocispec.MediaTypeImageManifest, data))
}

// trust writes the roots of tags into a trust directory.
func (w *tagged) trust(folder string, pinned trust.Pinned) {
	w.t.Helper()
	pinned.Root = w.pin
	data, err := json.Marshal(map[string]any{"version": 1, "repositories": []any{pinned}})
	w.must(err)
	put(w.t, filepath.Join(folder, "tags.json"), string(data), 0o600)
}

func signerOf(f *oci.Forger, paths ...string) trust.PinnedSigner {
	return trust.PinnedSigner{Name: "signer", Fingerprint: fmt.Sprintf("sha256:%x", sum256(f.Certificate.Raw)),
		Kind: trust.SelfSigned, Paths: paths}
}
