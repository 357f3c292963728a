package proof_test

import (
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// history is what a good broker logs of a request. It returns the signatures that the bundle is for.
type history struct {
	name string
	make func(s *scene) (*prooftest.Request, []proof.Signature)
}

// again returns a signature of the same artifact.
func again(s proof.Signature, text string) proof.Signature {
	other := prooftest.Signature(text)
	s.Payload, s.Signature = other.Payload, other.Signature
	return s
}

func retried(e *entry.Event) { e.Retry = true }

var histories = []history{
	{"one signature", func(s *scene) (*prooftest.Request, []proof.Signature) {
		return s.good(), []proof.Signature{s.wanted}
	}},
	{"signed again", func(s *scene) (*prooftest.Request, []proof.Signature) {
		r := s.good()
		s.log.Now = s.log.Now.Add(14 * time.Minute)
		second, third := again(s.wanted, "second"), again(s.wanted, "third")
		r.Sign(second, retried)
		r.Sign(third, retried)
		return r, []proof.Signature{s.wanted, second, third}
	}},
	{"signed again when the approvals have expired", func(s *scene) (*prooftest.Request, []proof.Signature) {
		r := s.request(nil)
		approve(r, s.alice, s.bob)
		s.log.Now = s.log.Now.Add(24*time.Hour - 10*time.Second)
		r.Sign(s.wanted, nil)
		s.log.Now = s.log.Now.Add(time.Minute)
		second := again(s.wanted, "second")
		r.Sign(second, retried)
		return r, []proof.Signature{s.wanted, second}
	}},
	{"after failures", func(s *scene) (*prooftest.Request, []proof.Signature) {
		r := s.request(nil)
		approve(r, s.alice, s.bob)
		for _, outcome := range []string{entry.Failed, entry.Lost} {
			r.Event(entry.Intended, func(e *entry.Event) { e.Payload = s.wanted.Payload })
			r.Event(outcome, func(e *entry.Event) { e.Payload = s.wanted.Payload })
		}
		r.Sign(s.wanted, nil)
		return r, []proof.Signature{s.wanted}
	}},
	{"several artifacts and uses", func(s *scene) (*prooftest.Request, []proof.Signature) {
		other := prooftest.Signature("other")
		r := s.log.NewRequest("release", s.wanted.Leaf, []string{s.wanted.Digest, other.Digest}, nil)
		approve(r, s.alice, s.bob)
		second := again(s.wanted, "second")
		for _, one := range []proof.Signature{s.wanted, other, second} {
			s.log.Now = s.log.Now.Add(time.Hour)
			r.Sign(one, nil)
		}
		third := again(s.wanted, "third")
		r.Sign(third, retried)
		r.Event(entry.Ended, func(e *entry.Event) { e.State = "expired" })
		return r, []proof.Signature{s.wanted, other, second, third}
	}},
	{"withdrawn and approved anew", func(s *scene) (*prooftest.Request, []proof.Signature) {
		r := s.request(nil)
		approve(r, s.alice, s.bob)
		r.Decide(s.bob, approval.Withdraw, 0)
		r.Decide(s.bob, approval.Approve, 1)
		r.Sign(s.wanted, nil)
		return r, []proof.Signature{s.wanted}
	}},
	{"withdrawn and rejected after the signature", func(s *scene) (*prooftest.Request, []proof.Signature) {
		r := s.good()
		r.Decide(s.bob, approval.Withdraw, 0)
		r.Decide(s.alice, approval.Reject, 0)
		return r, []proof.Signature{s.wanted}
	}},
	{"approved twice by one person", func(s *scene) (*prooftest.Request, []proof.Signature) {
		r := s.request(nil)
		approve(r, s.alice, s.bob)
		r.Decide(s.alice, approval.Approve, 1)
		r.Sign(s.wanted, nil)
		return r, []proof.Signature{s.wanted}
	}},
	{"of one artifact with two annotations", func(s *scene) (*prooftest.Request, []proof.Signature) {
		r := s.log.NewRequest("release", s.wanted.Leaf, []string{s.wanted.Digest, s.wanted.Digest},
			func(st *approval.Statement, _ *entry.Event) {
				st.Predicate.Targets[1].Annotations = map[string]string{"channel": "beta"}
				st.Predicate.Expiry = 3600
			})
		approve(r, s.alice, s.bob)
		s.wanted.Expiry, s.wanted.MediaType, s.wanted.Size = 3600, "application/vnd.oci.image.manifest.v1+json", 528
		beta := again(s.wanted, "beta")
		s.wanted.Annotations, beta.Annotations = map[string]string{}, map[string]string{"channel": "beta"}
		r.Sign(s.wanted, nil)
		r.Sign(beta, nil)
		return r, []proof.Signature{s.wanted, beta}
	}},
	{"by a requester who is no approver of it", func(s *scene) (*prooftest.Request, []proof.Signature) {
		r := s.request(func(_ *approval.Statement, e *entry.Event) { e.Person = s.carol.ID })
		approve(r, s.alice, s.carol, s.bob)
		r.Sign(s.wanted, nil)
		return r, []proof.Signature{s.wanted}
	}},
}

// TestHistories verifies each signature of what a broker logs.
func TestHistories(t *testing.T) {
	t.Parallel()
	for _, h := range histories {
		s := newScene(t)
		r, signatures := h.make(s)
		for _, s.wanted = range signatures {
			if _, err := s.verify(r.Bundle()); err != nil {
				t.Errorf("%s: %v", h.name, err)
			}
		}
	}
}

// TestEmergency shows that a rule for emergencies was used.
func TestEmergency(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	r := s.request(func(_ *approval.Statement, e *entry.Event) { e.Why = "production is down" })
	approve(r, s.alice, s.bob)
	r.Sign(s.wanted, nil)
	b := r.Bundle()
	b.Rules = nil // which can be left out
	shown, err := s.verify(b)
	if err != nil || !shown.BreakGlass {
		t.Errorf("%+v, %v", shown, err)
	}
}

// TestEpoch verifies a bundle whose checkpoint is of a later epoch of the log.
func TestEpoch(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	r := s.good()
	s.log.Origin += "/2"
	_, err := s.verify(r.Bundle())
	denies(t, "unknown epoch", err, "another log")
	before := s.demand.Log
	s.demand.Log = []*translog.Verifier{before[0], s.log.Verifier()}
	if _, err := s.verify(r.Bundle()); err != nil {
		t.Error(err)
	}
}

// TestAge takes a signature that is as old as it may be.
func TestAge(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	b := s.good().Bundle()
	s.demand.MaxAge = time.Hour
	for _, shift := range []time.Duration{-4 * time.Minute, 0, time.Hour - time.Second} {
		if _, err := proof.Verify(prooftest.Encode(t, b), s.wanted, s.demand, s.log.Now.Add(shift)); err != nil {
			t.Errorf("%s: %v", shift, err)
		}
	}
}
