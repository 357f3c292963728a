package tufstore

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// keeper makes the attacker a registry that takes manifests, and deletes nothing.
func (a *attacker) keeper(status int) {
	a.answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodDelete:
			w.WriteHeader(status)
		case r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/blobs/"):
			w.Header().Set("Content-Length", "2")
		case r.Method == http.MethodPut:
			data, _ := io.ReadAll(r.Body)
			a.mutex.Lock()
			a.tags[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]] = data
			a.mutex.Unlock()
			w.WriteHeader(http.StatusCreated)
		default:
			return false
		}
		return true
	}
}

// TestWithdrawn verifies that a proposal that a registry does not delete is not returned again.
func TestWithdrawn(t *testing.T) {
	for status, kind := range map[int]failure.Kind{http.StatusMethodNotAllowed: failure.Unsupported,
		http.StatusNotFound: failure.Unsupported, http.StatusBadRequest: failure.Unsupported,
		http.StatusPreconditionFailed: failure.Unsupported, http.StatusForbidden: failure.Denied,
		http.StatusUnauthorized: failure.Denied} {
		a := newAttacker(t)
		a.keeper(status)
		first, second := a.propose(t, map[string]string{"1.a.json": "1"}), a.propose(t, map[string]string{"1.b.json": "1"})
		for _, withdrawn := range []string{first, second} {
			proposals, err := a.store.Proposals(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(proposals, func(p *Proposal) bool { return p.Tag == withdrawn })
			if i < 0 {
				t.Fatalf("%s is not returned", withdrawn)
			}
			if err := a.store.Withdraw(t.Context(), proposals[i]); !failure.Is(err, kind) {
				t.Errorf("%d: %v, not %s", status, err, kind)
			}
		}
		if proposals, err := a.store.Proposals(t.Context()); err != nil || len(proposals) > 0 {
			t.Errorf("%d: %d proposals, %v", status, len(proposals), err)
		}
		a.tags[withdrawnTag] = []byte("[") // which is no list
		if proposals, err := a.store.Proposals(t.Context()); err != nil || len(proposals) != 2 {
			t.Errorf("%d, and no list: %d proposals, %v", status, len(proposals), err)
		}
	}
	a := newAttacker(t)
	a.keeper(http.StatusServiceUnavailable)
	a.propose(t, map[string]string{"1.a.json": "1"})
	proposals, err := a.store.Proposals(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = a.store.Withdraw(t.Context(), proposals[0])
	if !failure.Is(err, failure.Unavailable) || a.tags[withdrawnTag] != nil {
		t.Errorf("it is tried again later, but: %v", err)
	}
}

// TestManyWithdrawn verifies that the list of withdrawn proposals forgets those that were deleted by hand, and is told
// when it is full.
func TestManyWithdrawn(t *testing.T) {
	a := newAttacker(t)
	a.keeper(http.StatusMethodNotAllowed)
	m := newManifest(withdrawnType)
	tags := numbered(0, maxWithdrawn, proposalPrefix+"%032x")
	m.Annotations = map[string]string{withdrawnAnnotation: strings.ReplaceAll(strings.Join(tags, " "), proposalPrefix, "")}
	full, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if len(full) > maxManifest*9/10 {
		t.Errorf("a full list has %d bytes", len(full))
	}
	for _, deleted := range []int{0, 1, 1000} {
		a.tags = map[string][]byte{withdrawnTag: full}
		for _, tag := range tags[deleted:] {
			a.tags[tag] = []byte{}
		}
		a.propose(t, map[string]string{"1.a.json": "1"})
		proposals, err := a.store.Proposals(t.Context())
		if err != nil || len(proposals) != 1 {
			t.Fatalf("%d proposals: %v", len(proposals), err)
		}
		err = a.store.Withdraw(t.Context(), proposals[0])
		if full := strings.Contains(err.Error(), "there are 5000 that could not be deleted"); full != (deleted == 0) {
			t.Errorf("%d were deleted: %v", deleted, err)
		}
		if left, err := a.store.Proposals(t.Context()); err != nil || len(left) > 0 != (deleted == 0) {
			t.Errorf("%d were deleted: %d proposals, %v", deleted, len(left), err)
		}
	}
}
