package tags

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// withSigners calls do, in this process, with the signers of keys on the token "signing".
func (s *scene) withSigners(labels []string, do func([]*tuf.Signer)) {
	s.t.Helper()
	softhsmtest.InProcess(s.t, func() {
		ks := backends.Keystore()
		defer ks.Close()
		var signers []*tuf.Signer
		for _, label := range labels {
			at, err := ks.Resolve(s.uri(label), nil, config.Flags)
			if err != nil {
				s.t.Fatal(err)
			}
			store, err := at.Open(s.t.Context())
			if err != nil {
				s.t.Fatal(err)
			}
			defer store.Close()
			private, err := store.Key(s.t.Context(), nil)
			if err != nil {
				s.t.Fatal(err)
			}
			signer, err := tuf.NewSigner(private)
			if err != nil {
				s.t.Fatal(err)
			}
			signers = append(signers, signer)
		}
		do(signers)
	})
}

// repositoryAt returns the repository through an address of its registry, for someone who has seen nothing yet.
func (s *scene) repositoryAt(address string) *tags.Repository {
	s.t.Helper()
	registries := registry.New(registry.Options{PlainHTTP: true, Limits: tufstore.Round})
	s.t.Cleanup(registries.Close)
	return &tags.Repository{Name: address + "/" + repository, Registries: registries,
		Root: []byte(softhsmtest.Read(s.t, s.root)), Dir: s.t.TempDir()}
}

// published returns the published files.
func (s *scene) published() map[string][]byte {
	s.t.Helper()
	published, err := openStore(s.t, s.registry).Published(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, name := range published.Names() {
		if files[name], err = published.Read(s.t.Context(), name, 1<<20); err != nil {
			s.t.Fatal(err)
		}
	}
	return files
}

// expire publishes a timestamp that expired a second ago, signed by its key, as if the publisher had stopped long ago.
func (s *scene) expire() {
	s.t.Helper()
	s.withSigners([]string{"timestamp"}, func(signers []*tuf.Signer) {
		m, err := metadata.Timestamp().FromBytes(s.published()["timestamp.json"])
		if err != nil {
			s.t.Fatal(err)
		}
		m.Signed.Version++
		m.Signed.Expires = time.Now().UTC().Truncate(time.Second).Add(-time.Second)
		payload, err := cjson.EncodeCanonical(m.Signed)
		if err != nil {
			s.t.Fatal(err)
		}
		signature, err := signers[0].Sign(s.t.Context(), payload)
		if err != nil {
			s.t.Fatal(err)
		}
		m.Signatures = []metadata.Signature{{KeyID: signers[0].ID, Signature: signature}}
		data, err := json.Marshal(m)
		if err != nil {
			s.t.Fatal(err)
		}
		publish(s.t, openStore(s.t, s.registry), map[string][]byte{"timestamp.json": data})
	})
}

// TestExpiry verifies that nothing counts after the timestamp has expired, until the publisher has signed a new one.
func TestExpiry(t *testing.T) {
	s := newScene(t)
	s.init()
	v1 := s.sign("v1", s.uri("targets"))
	before := s.published()
	s.expire()
	const expired = "cannot verify the tag metadata: it has expired, so that it may not be the newest"
	s.fails(expired, "show", s.name+":v1")
	s.fails(expired, "list", s.name)
	s.fails(expired, "export", s.name, "--to", t.TempDir())
	if r := s.role("timestamp"); r.Expires.After(time.Now()) {
		t.Errorf("the timestamp is %+v", r)
	}
	// Who signs can go on, and what is signed counts with the next timestamp.
	v2 := s.push("v2")
	s.tag("sign", s.name+":v2", "--key", s.uri("targets"), "--wait", "0")
	s.fails(expired, "show", s.name+":v2")
	s.refresh()
	s.resolves("v1", v1, "tags")
	s.resolves("v2", v2, "tags")

	after := s.published()
	if after["1.root.json"] == nil || slices.ContainsFunc(slices.Collect(maps.Keys(before)), func(name string) bool {
		return name != "timestamp.json" && after[name] != nil && string(after[name]) != string(before[name])
	}) {
		t.Error("a file has changed under its name")
	}

	// A day later, by the clock of a verifier, without a new timestamp.
	r := s.repositoryAt(s.registry)
	published, err := openStore(t, s.registry).Published(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for later, want := range map[time.Duration]bool{23 * time.Hour: true, 25 * time.Hour: false} {
		_, err := tuf.Client{Root: r.Root, Dir: t.TempDir(), Now: time.Now().Add(later)}.Update(t.Context(), published)
		if (err == nil) != want {
			t.Errorf("after %s: %v", later, err)
		}
	}
}
