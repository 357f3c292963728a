package team

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// listens waits until the broker listens, or has ended.
func (s *team) listens(p *softhsmtest.Traced) bool {
	for {
		select {
		case <-p.Ended():
			return false
		case <-time.After(time.Millisecond):
		}
		if conn, err := net.Dial("tcp", s.Address()); err == nil {
			conn.Close()
			return true
		}
	}
}

// serve starts a stopped broker that can be killed at its n-th write.
func (s *team) serve() *softhsmtest.Traced {
	s.t.Helper()
	p := softhsmtest.StartTraced(s.t, 0, "", s.Program, "serve", "--config", s.Config())
	if !s.listens(p) {
		s.t.Fatalf("the broker ended:\n%s", p.Output())
	}
	// This opens the key and the connection, whose writes are not those of a request.
	var k brokerapi.Key
	problem, err := s.call(s.ci(), http.MethodGet, brokerapi.KeyPath("release"), nil, &k)
	if err != nil || problem != nil {
		s.t.Fatalf("%v, %v", problem, err)
	}
	return p
}

// TestKilledAtEachWrite kills the broker at each write of a request's life: to the database, to the checkpoint's file,
// to the module's process and to the caller. Whatever the moment: the caller who asks again gets one signature, each
// use is in the log once, and a signature that nobody got for sure is logged as lost.
func TestKilledAtEachWrite(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, softhsmtest.TeamOptions{})
	s.Stop()
	var all []asked
	for n := 1; ; n++ {
		p := s.serve()
		if n > 1 {
			s.askAgain(&all[n-2])
		}
		one := s.askBefore(p, n)
		if _, killed := p.Wait(); !killed {
			break
		}
		all = append(all, one)
	}
	s.Start()
	s.Restart()
	s.checkOutcomes(all)
	if len(all) < 20 {
		t.Errorf("the broker was killed at %d writes", len(all))
	}
}

// TestKilledAtFirstStart kills a new broker at each write before it serves callers: it then starts, and its log is
// whole.
func TestKilledAtFirstStart(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, softhsmtest.TeamOptions{})
	for n := 1; ; n++ {
		s.Stop()
		for _, path := range []string{s.Checkpoint(), filepath.Dir(s.Database())} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		p := softhsmtest.StartTraced(t, n, "", s.Program, "serve", "--config", s.Config())
		s.listens(p)
		p.Signal(syscall.SIGTERM)
		at, killed := p.Wait()
		if output, ok := s.TryStart(); !ok {
			// A PIN whose login was under way is not tried again before an operator says so.
			if !strings.Contains(output, "is not tried again") {
				t.Fatalf("killed at %s: %s", at, output)
			}
			softhsmtest.Run(t, s.Program, "pin", "clear", "--config", s.Config())
			s.Start()
		}
		s.signs()
		if !killed {
			t.Logf("killed at %d writes", n-1)
			break
		}
		s.Restart()
		if events := s.audit(); len(events) != 3 {
			t.Errorf("killed at %s: the log has %+v", at, events)
		}
	}
}

// asked is a signature that was asked for when the broker was killed.
type asked struct {
	at      string // where it was killed
	token   string
	request brokerapi.SignatureRequest
	got     *brokerapi.Signature // nil if the connection broke
}

// askBefore asks for a signature of a broker that is killed at the n-th write from now on, or else stops in order.
func (s *team) askBefore(p *softhsmtest.Traced, n int) asked {
	s.t.Helper()
	one := asked{token: s.ci(), request: s.image()}
	p.KillAt(n)
	signature, problem, err := s.sign(one.token, one.request)
	if err == nil && problem != nil {
		s.t.Errorf("call %d: %v", n, problem)
	}
	one.got = signature
	p.Signal(syscall.SIGTERM) // so that the last checkpoint is published
	one.at, _ = p.Wait()
	return one
}

// askAgain asks for a signature with the same token and bytes. It is the one that was released before, if one was. The
// token is good for no other artifact.
func (s *team) askAgain(one *asked) {
	s.t.Helper()
	signature, problem, err := s.sign(one.token, one.request)
	if err != nil || problem != nil {
		s.t.Errorf("killed at %s: %v, %v", one.at, problem, err)
		return
	}
	if one.got != nil && !slices.Equal(one.got.Signature, signature.Signature) {
		s.t.Errorf("killed at %s: the caller got two signatures", one.at)
	}
	one.got = signature
	_, problem, err = s.sign(one.token, s.image())
	if err != nil || problem == nil || problem.Kind != failure.Denied ||
		!strings.Contains(problem.Error(), "token was used") {
		s.t.Errorf("killed at %s: the token signed another artifact: %v, %v", one.at, problem, err)
	}
}

// checkOutcomes audits the log: each payload was signed once, and each other intent to sign it is lost.
func (s *team) checkOutcomes(asked []asked) {
	s.t.Helper()
	type outcomes struct{ intents, signed, lost, failed int }
	of := map[string]*outcomes{}
	for _, e := range s.audit() {
		if e.Payload == "" {
			continue
		}
		o := of[e.Payload]
		if o == nil {
			o = &outcomes{}
			of[e.Payload] = o
		}
		switch e.Type {
		case "intent/v1":
			o.intents++
		case "signed/v1":
			o.signed++
		case "lost/v1":
			o.lost++
		case "failed/v1":
			o.failed++
		}
	}
	lost := 0
	for _, one := range asked {
		hash := sha256.Sum256(one.request.Payload)
		o := of["sha256:"+hex.EncodeToString(hash[:])]
		if o == nil || o.signed != 1 || o.lost > 1 || o.failed > 0 || o.intents != o.signed+o.lost {
			s.t.Errorf("killed at %s: the log has %+v", one.at, o)
			continue
		}
		lost += o.lost
	}
	if lost == 0 || lost == len(asked) {
		s.t.Errorf("%d of %d signatures are lost", lost, len(asked))
	}
	s.t.Logf("%d of %d signatures are lost in the log", lost, len(asked))
}
