package held

import (
	"context"
	"crypto"
	"encoding/pem"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// copied are the copies of a key in modules that are counted, and fail, one by one.
type copied struct {
	*Copies
	modules []*keystoretest.Module
	private crypto.Signer
}

func newPrivate(t *testing.T) crypto.Signer {
	t.Helper()
	spec, err := key.ParseSpec("EC-256")
	if err != nil {
		t.Fatal(err)
	}
	private, err := keystoretest.NewKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

// newCopies returns copies of a key in modules; those whose number others has have another key.
func newCopies(t *testing.T, n int, right func(crypto.PublicKey) (bool, error), others ...int) *copied {
	t.Helper()
	c := &copied{private: newPrivate(t)}
	keys := New(keystoretest.New("unused").Keystore(), errClosed)
	var references []*keystore.Reference
	for i := range n {
		m := keystoretest.New("signing")
		private := c.private
		for _, other := range others {
			if other == i {
				private = newPrivate(t)
			}
		}
		r := m.Key(t, "signing", "release", private, key.Sign)
		r.Key.Serial = string(rune('a' + i)) // else the keys are one
		references = append(references, r)
		c.modules = append(c.modules, m)
	}
	c.Copies = NewCopies(keys, "release", references, right)
	c.limits = limits{first: time.Hour, wait: time.Millisecond, most: 10 * time.Millisecond, total: time.Hour}
	t.Cleanup(func() {
		if err := keys.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *copied) signs(t *testing.T) {
	t.Helper()
	if err := c.sign(); err != nil {
		t.Error(err)
	}
}

func (c *copied) sign() error {
	_, err := c.Use(context.Background(), func(k *Key) ([]byte, error) { return k.Use(context.Background(), signNothing) })
	return err
}

// waitFor waits until a copy has a state.
func (c *copied) waitFor(t *testing.T, i int, is func(Copy) bool) {
	t.Helper()
	for !is(c.State()[i]) {
		time.Sleep(time.Millisecond)
	}
}

func isOut(c Copy) bool   { return c.Err != nil }
func isUp(c Copy) bool    { return c.Err == nil }
func isOther(c Copy) bool { return c.Other }

// TestSpread uses the copies in turn, with one call of a module for each use.
func TestSpread(t *testing.T) {
	t.Parallel()
	c := newCopies(t, 4, nil)
	for range 40 {
		c.signs(t)
	}
	for i, m := range c.modules {
		if m.Calls("Sign") != 10 || m.Calls("Key") != 1 {
			t.Errorf("module %d: %d signatures, %d lookups", i, m.Calls("Sign"), m.Calls("Key"))
		}
	}
}

// TestFewestInFlight leaves a busy module to the uses that it has.
func TestFewestInFlight(t *testing.T) {
	t.Parallel()
	c := newCopies(t, 2, nil)
	c.signs(t)
	c.signs(t)
	using, end := make(chan *keystore.Reference), make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		_, err := c.Use(t.Context(), func(k *Key) ([]byte, error) {
			using <- k.reference
			<-end
			return nil, nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	busy := <-using
	for i, r := range c.all {
		before := c.modules[i].Calls("Sign")
		for range 5 {
			c.signs(t)
		}
		if n := c.modules[i].Calls("Sign") - before; (n == 0) != (r.reference == busy) {
			t.Errorf("module %d made %d signatures", i, n)
		}
	}
	close(end)
	group.Wait()
}

// TestLeftOut goes on with the other modules when one fails, and uses it again when it works.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	for _, kind := range []failure.Kind{failure.Unavailable, failure.Timeout, failure.Internal, failure.Denied} {
		c := newCopies(t, 3, nil)
		for range 3 {
			c.signs(t)
		}
		c.most = time.Hour // before the second probe
		c.modules[1].Fail("Sign", failure.New(kind, "broken"))
		c.modules[1].Fail("Key", failure.New(kind, "broken"))
		before := c.modules[1].Calls("Sign")
		for range 30 {
			c.signs(t)
		}
		c.waitFor(t, 1, isOut)
		if n := c.modules[1].Calls("Sign") - before; n != 1 {
			t.Errorf("%s: the broken module was asked for %d signatures", kind, n)
		}
		c.mu.Lock()
		c.all[1].wait, c.most = time.Millisecond, time.Millisecond
		c.mu.Unlock()
	}
}

// TestComesBack asks a module that is left out for its key until it has it, for one signature until that is made, and
// then for as many as the others.
func TestComesBack(t *testing.T) {
	t.Parallel()
	c := newCopies(t, 2, nil)
	c.signs(t)
	c.signs(t)
	broken := failure.New(failure.Timeout, "broken")
	c.modules[1].Fail("Sign", broken)
	c.modules[1].Fail("Key", broken)
	for range 4 {
		c.signs(t)
	}
	c.waitFor(t, 1, isOut)
	c.modules[1].Fail("Key", nil)
	c.waitFor(t, 1, isUp)
	before := c.modules[1].Calls("Sign")
	c.modules[1].Fail("Key", broken)
	for range 10 {
		c.signs(t)
	}
	if n := c.modules[1].Calls("Sign") - before; n != 1 {
		t.Errorf("a module that has come back and fails was asked for %d signatures", n)
	}
	c.modules[1].Fail("Key", nil)
	c.modules[1].Fail("Sign", nil)
	c.waitFor(t, 1, isUp)
	before = c.modules[1].Calls("Sign")
	for range 10 {
		c.signs(t)
	}
	if n := c.modules[1].Calls("Sign") - before; n != 5 {
		t.Errorf("the module that works again made %d of 10 signatures", n)
	}
}

// TestOneOnTrial gives a module that has come back one use at a time, until one has succeeded.
func TestOneOnTrial(t *testing.T) {
	t.Parallel()
	c := newCopies(t, 2, nil)
	c.signs(t)
	c.signs(t)
	c.mu.Lock()
	c.all[1].trial = true
	c.mu.Unlock()
	using, end := make(chan *keystore.Reference), make(chan struct{})
	var group sync.WaitGroup
	onTrial := 0
	for range 6 {
		group.Go(func() {
			_, err := c.Use(t.Context(), func(k *Key) ([]byte, error) {
				using <- k.reference
				<-end
				return nil, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		if <-using == c.all[1].reference {
			onTrial++
		}
	}
	close(end)
	group.Wait()
	if onTrial != 1 {
		t.Errorf("the module on trial got %d uses at once", onTrial)
	}
}

// TestTwoTries asks at most two modules for the signature of one use, and as many as it takes for their keys.
func TestTwoTries(t *testing.T) {
	t.Parallel()
	c := newCopies(t, 4, nil)
	for range 4 {
		c.signs(t)
	}
	for _, m := range c.modules {
		m.Fail("Sign", failure.New(failure.Timeout, "broken"))
		m.Fail("Key", failure.New(failure.Timeout, "broken"))
	}
	if err := c.sign(); !failure.Is(err, failure.Timeout) {
		t.Error(err)
	}
	n := 0
	for _, m := range c.modules {
		n += m.Calls("Sign")
	}
	if n != 4+maxTries {
		t.Errorf("one use asked for %d signatures", n-4)
	}
	for _, m := range c.modules { // nobody has probed them yet, or has
		m.Fail("Sign", nil)
		m.Fail("Key", nil)
	}
	c.signs(t)
}

// TestNotElsewhere does not ask another module for what the first has refused as invalid, and leaves none out that is
// busy.
func TestNotElsewhere(t *testing.T) {
	t.Parallel()
	for kind, tries := range map[failure.Kind]int{failure.Invalid: 1, failure.Throttled: 2, failure.Unsupported: 2} {
		c := newCopies(t, 3, nil)
		for _, m := range c.modules {
			m.Fail("Sign", failure.New(kind, "no"))
		}
		if err := c.sign(); !failure.Is(err, kind) {
			t.Error(err)
		}
		n := 0
		for i, m := range c.modules {
			n += m.Calls("Sign")
			if isOut(c.State()[i]) {
				t.Errorf("%s: module %d is left out", kind, i)
			}
		}
		if n != tries {
			t.Errorf("%s: %d tries", kind, n)
		}
	}
}

// TestOtherKey never uses a module with another public key, whether nobody or a certificate says which is right.
func TestOtherKey(t *testing.T) {
	t.Parallel()
	c := newCopies(t, 3, nil, 1)
	for range 9 {
		c.signs(t)
	}
	c.waitFor(t, 1, isOther)
	if n := c.modules[1].Calls("Sign"); n != 0 {
		t.Errorf("the module with another key has signed %d times", n)
	}
	public, _, err := c.Describe(t.Context())
	if err != nil || !equal(public, c.private.Public()) {
		t.Errorf("it is described with another key, or %v", err)
	}

	ca := softhsmtest.NewCA(t, "root", nil)
	file := filepath.Join(t.TempDir(), "chain.pem")
	certified := newCopies(t, 3, RightByChain(file), 0, 1)
	leaf := ca.Issue(t, softhsmtest.Template("release"), certified.private.Public())
	text := ca.PEM() + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 9 {
		certified.signs(t)
	}
	if n := certified.modules[2].Calls("Sign"); n != 9 {
		t.Errorf("the module with the key of the certificate made %d of 9 signatures", n)
	}
	if public, err := certified.Public(t.Context()); err != nil || !equal(public, certified.private.Public()) {
		t.Errorf("another key, or %v", err)
	}
}

// TestReplacedCopy leaves a module out whose key is replaced while it is used.
func TestReplacedCopy(t *testing.T) {
	t.Parallel()
	c := newCopies(t, 2, nil)
	c.signs(t)
	c.signs(t)
	deleteKey(t, c.modules[0])
	addKey(t, c.modules[0])
	gone := failure.New(failure.Invalid, "cannot sign")
	gone.CKR = "CKR_KEY_HANDLE_INVALID"
	c.modules[0].Fail("Sign", gone)
	before := c.modules[0].Calls("Sign")
	c.signs(t)
	c.signs(t)
	c.waitFor(t, 0, isOther)
	c.modules[0].Fail("Sign", nil)
	for range 10 {
		c.signs(t)
	}
	if n := c.modules[0].Calls("Sign") - before; n != 1 {
		t.Errorf("the module with another key was used %d times", n)
	}
}

// TestFirstInList takes the key of the first module in the list, and that of the next only if the first fails or is
// late.
func TestFirstInList(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(*copied)
		first  bool
	}{
		"works": {func(*copied) {}, true},
		"fails": {func(c *copied) { c.modules[0].Fail("Key", failure.New(failure.Unavailable, "away")) }, false},
		"hangs": {func(c *copied) {
			c.first = time.Millisecond
			c.modules[0].Before("Key", func() error { <-c.keys.done; return nil })
		}, false},
	} {
		copies := newCopies(t, 2, nil, 1)
		c.before(copies)
		public, err := copies.Public(t.Context())
		if err != nil || equal(public, copies.private.Public()) != c.first {
			t.Errorf("%s: the key of the other module, or %v", name, err)
		}
	}
}

// TestNoneAnswers fails while no module has the key, and knows the key as soon as one has.
func TestNoneAnswers(t *testing.T) {
	t.Parallel()
	c := newCopies(t, 2, nil)
	for _, m := range c.modules {
		m.Fail("Key", failure.New(failure.Unavailable, "away"))
	}
	if err := c.sign(); !failure.Is(err, failure.Unavailable) {
		t.Error(err)
	}
	c.modules[1].Fail("Key", nil)
	for c.sign() != nil {
		time.Sleep(time.Millisecond)
	}
	if n := c.modules[0].Calls("Sign"); n != 0 {
		t.Errorf("the module that is away made %d signatures", n)
	}
}

// TestChainStays keeps the certificates of a module that is left out.
func TestChainStays(t *testing.T) {
	t.Parallel()
	c := newCopies(t, 2, nil)
	certify(t, c.modules[0], c.private.Public())
	describe := func() int {
		t.Helper()
		_, chain, err := c.Describe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(chain)
	}
	if n := describe(); n != 1 {
		t.Fatalf("%d certificates", n)
	}
	c.modules[0].Fail("Sign", failure.New(failure.Timeout, "broken"))
	c.modules[0].Fail("Key", failure.New(failure.Timeout, "broken"))
	c.signs(t)
	c.signs(t)
	c.waitFor(t, 0, isOut)
	if n := describe(); n != 1 || c.modules[1].Calls("Leaf") != 1 {
		t.Errorf("%d certificates after %d lookups", n, c.modules[1].Calls("Leaf"))
	}
}

// TestSingle asks the only module each time, whatever it has answered before.
func TestSingle(t *testing.T) {
	t.Parallel()
	c := newCopies(t, 1, nil)
	c.modules[0].Fail("Sign", failure.New(failure.Timeout, "broken"))
	for range 3 {
		if err := c.sign(); !failure.Is(err, failure.Timeout) {
			t.Error(err)
		}
	}
	if n := c.modules[0].Calls("Sign"); n != 3 {
		t.Errorf("%d tries", n)
	}
	c.modules[0].Fail("Sign", nil)
	c.signs(t)
	if isOut(c.State()[0]) {
		t.Error("it is left out")
	}
}

// TestCopiesUnsure says that a module may have signed, whatever the next one answers.
func TestCopiesUnsure(t *testing.T) {
	t.Parallel()
	for _, second := range []failure.Kind{failure.Denied, failure.Invalid} {
		c := newCopies(t, 2, nil)
		answers := []failure.Kind{failure.Timeout, second}
		_, err := c.Use(t.Context(), func(*Key) ([]byte, error) {
			kind := answers[0]
			answers = answers[1:]
			return nil, failure.New(kind, "the module failed")
		})
		if !failure.Is(err, failure.Timeout) || len(answers) != 0 {
			t.Errorf("%v, %d modules were not asked", err, len(answers))
		}
	}
}
