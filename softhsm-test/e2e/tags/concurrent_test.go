package tags

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const crowd = 20 // signers at once

// signing is how many signers sign at the same time.
type signing struct {
	delegations bool // each signer has a key and a delegation of its own; else all have the targets key
	publisher   bool // runs meanwhile; else signers do not wait, and it runs afterwards
	killed      int  // signers that are killed, of as many more
}

// TestConcurrentSigners verifies that nothing is lost that was signed at the same time, whoever signs it, and whether
// the publisher runs or some of the signers are killed.
func TestConcurrentSigners(t *testing.T) {
	for name, test := range map[string]signing{
		"delegations":                  {delegations: true, publisher: true},
		"one role, published later":    {},
		"delegations, published later": {delegations: true},
		"one role, some are killed":    {publisher: true, killed: 5},
	} {
		t.Run(name, func(t *testing.T) { testConcurrentSigners(t, test) })
	}
}

func testConcurrentSigners(t *testing.T, test signing) {
	s := newScene(t)
	// Some processes are killed when the registry gets certain requests, whoever sends them.
	var mutex sync.Mutex
	requests, kills := 0, map[int]func(){}
	s.registry = newProxy(t, s.registry, func(http.ResponseWriter, *http.Request) bool {
		mutex.Lock()
		defer mutex.Unlock()
		requests++
		if kill := kills[requests]; kill != nil {
			kill()
		}
		return false
	}).address
	s.name = s.registry + "/" + repository
	s.init()
	count := crowd + test.killed
	want := map[string]digest.Digest{}
	key := func(int) string { return s.uri("targets") }
	for i := range count {
		want[fmt.Sprintf("v%d", i)] = s.push(fmt.Sprintf("v%d", i))
	}
	if test.delegations {
		key = func(i int) string { return s.uri(fmt.Sprintf("signer-%d", i)) }
		for i := range count {
			s.keys(fmt.Sprintf("signer-%d", i))
			s.tag("delegate", "add", s.name, fmt.Sprintf("signer-%d", i), "--paths", fmt.Sprintf("v%d", i), "--key", key(i),
				"--targets", s.uri("targets"), "--wait", "0")
		}
		s.refresh()
	}
	wait := "0"
	if test.publisher {
		s.publisher()
		wait = patience
	}

	mutex.Lock()
	from := requests
	signers := make([]*softhsmtest.Service, count)
	for i := range count {
		signers[i] = softhsmtest.Start(t, s.image, s.args([]string{"sign", fmt.Sprintf("%s:v%d", s.name, i), "--key", key(i),
			"--wait", wait})...)
		if i >= crowd {
			at := from + 1 + rand.IntN(10*count)
			t.Logf("signer %d is killed at request %d", i, at-from)
			kills[at] = func() { _ = syscall.Kill(signers[i].PID(), syscall.SIGKILL) }
		}
	}
	mutex.Unlock()
	succeeded := 0
	for i, signer := range signers {
		switch ok := signer.Succeeded(); {
		case ok:
			succeeded++
		case i < crowd:
			t.Errorf("signer %d: %s", i, signer.Output.String())
		default:
			delete(want, fmt.Sprintf("v%d", i)) // it may be in or not
		}
	}
	t.Logf("%d of %d signers have signed, with %d requests", succeeded, count, requests-from)
	s.refresh()
	list := s.list()
	for _, tag := range slices.Sorted(maps.Keys(want)) {
		if list[tag].Digest != want[tag] {
			t.Errorf("%s is %q, not %s", tag, list[tag].Digest, want[tag])
		}
	}
	status := s.status()
	if len(status.Held)+len(status.Refused) > 0 || test.killed == 0 && len(status.Proposals) > 0 {
		t.Errorf("what is left: %+v %q %q", status.Proposals, status.Held, status.Refused)
	}
	// Those who come after a killed signer go on.
	s.sign("after", s.uri("targets"))
	if len(s.list()) < len(list) {
		t.Errorf("%d tags are left of %d", len(s.list()), len(list))
	}
}
