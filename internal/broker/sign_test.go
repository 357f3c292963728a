package broker

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestSign signs, and has the intent in the log before the outcome. The same bytes have the same signature, without
// another use of the key.
func TestSign(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	first := f.signs("ci", 1)
	again := f.signs("ci", 1)
	if !bytes.Equal(first.Signature, again.Signature) || f.keys.uses.Load() != 1 {
		t.Errorf("the key was used %d times", f.keys.uses.Load())
	}
	if got := f.events(); !slices.Equal(got, []string{opened, intended, signed}) {
		t.Errorf("the log has %q", got)
	}
	r, err := f.Request(t.Context(), caller("ci"), first.Request)
	if err != nil || r.State != "signed" || r.Rule != "nightly" {
		t.Errorf("%+v, %v", r, err)
	}
	_, err = f.Request(t.Context(), caller("other"), first.Request)
	failsWith(t, err, failure.NotFound, "has no request")
}

// TestDenied refuses what no rule allows, and says why.
func TestDenied(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	_, err := f.Sign(t.Context(), caller("other"), "release", f.image(1))
	failsWith(t, err, failure.Denied, `rule "nightly"`)
	_, err = f.Sign(t.Context(), caller("ci"), "other", f.image(1))
	failsWith(t, err, failure.NotFound, `no key "other"`)
	r := f.image(1)
	r.Payload = []byte("hash")
	_, err = f.Sign(t.Context(), caller("ci"), "release", r)
	failsWith(t, err, failure.Denied, "a bare hash is never signed")
	if f.keys.uses.Load() != 0 || len(f.events()) != 1 {
		t.Error("the key was used, or the log has grown")
	}
}

// TestConcurrent signs many images at once; commits are shared.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	const n = 140 // nobody is refused
	errs := make(chan error, n)
	for i := range n {
		go func() {
			o, err := f.Sign(t.Context(), caller("ci"), "release", f.image(i))
			if err == nil && o.Signature == nil {
				err = fmt.Errorf("it waits")
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if len(f.events()) != 1+2*n {
		t.Errorf("the log has %d entries", len(f.events()))
	}
}
