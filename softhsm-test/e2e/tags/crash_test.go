package tags

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// killer has a program killed as one of its writes reaches the registry.
type killer struct {
	started sync.Mutex // held until there is a program
	program *softhsmtest.Service
	left    int32 // writes until then
	writes  atomic.Int32
	at      string
}

// hit counts a write, and returns whether the program was killed by it. The registry does not get that one.
func (k *killer) hit(r *http.Request) bool {
	if k == nil || r.Method == http.MethodGet || r.Method == http.MethodHead || k.writes.Add(1) != k.left {
		return false
	}
	k.started.Lock()
	defer k.started.Unlock()
	k.at = r.Method
	_ = syscall.Kill(k.program.PID(), syscall.SIGKILL)
	<-k.program.Ended
	return true
}

// TestKilledPublisher verifies that a publisher that is killed at any of its writes leaves the old state or the new
// one, and that the next run goes on.
func TestKilledPublisher(t *testing.T) {
	s := newScene(t)
	var next atomic.Pointer[killer]
	s.registry = newProxy(t, s.registry, func(w http.ResponseWriter, r *http.Request) bool {
		if next.Load().hit(r) {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	}).address
	s.name = s.registry + "/" + repository
	s.init()
	signed := map[string]digest.Digest{"v0": s.sign("v0", s.uri("targets"))}
	for n := int32(1); ; n++ {
		tag := fmt.Sprintf("v%d", n)
		sum := s.push(tag)
		s.tag("sign", s.name+":"+tag, "--key", s.uri("targets"), "--wait", "0")

		k := &killer{left: n}
		k.started.Lock()
		next.Store(k)
		k.program = softhsmtest.Start(t, s.image, s.args(append([]string{"refresh", s.name}, s.online()...))...)
		k.started.Unlock()
		ended := k.program.Succeeded()
		next.Store(nil)
		if ended {
			t.Logf("a publication has %d writes", k.writes.Load())
			if k.writes.Load() < 5 {
				t.Error("which is too few")
			}
			s.resolves(tag, sum, "tags")
			return
		}

		// A verifier that has seen nothing takes what is there: all tags of before, and the new one or not yet.
		v, _, err := s.repositoryAt(s.registry).View(t.Context(), false)
		if err != nil {
			t.Fatalf("killed at write %d, %s: %v", n, k.at, err)
		}
		for tag, sum := range signed {
			if target, err := v.Resolve(t.Context(), tag); err != nil || target.Digest != sum {
				t.Errorf("killed at write %d, %s: %s is %+v: %v", n, k.at, tag, target, err)
			}
		}
		target, err := v.Resolve(t.Context(), tag)
		t.Logf("killed at write %d, %s: the new tag counts: %t", n, k.at, err == nil)
		if err == nil && target.Digest != sum {
			t.Errorf("%s is %+v", tag, target)
		}
		s.refresh()
		s.resolves(tag, sum, "tags")
		signed[tag] = sum
		if status := s.status(); len(status.Proposals)+len(status.Held)+len(status.Refused) > 0 {
			t.Errorf("what is left: %+v", status)
		}
	}
}
