package held

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// errClosed is the failure of what Close has met.
var errClosed = failure.New(failure.Unavailable, "closed")

// testKeys returns the keys of a token that holds the key release.
func testKeys(t *testing.T) (*Keys, *keystoretest.Module) {
	t.Helper()
	m := keystoretest.New("signing")
	addKey(t, m)
	return New(m.Keystore(), errClosed), m
}

func addKey(t *testing.T, m *keystoretest.Module) crypto.Signer {
	t.Helper()
	spec, err := key.ParseSpec("EC-256")
	if err != nil {
		t.Fatal(err)
	}
	private, err := keystoretest.NewKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	m.Key(t, "signing", "release", private, key.Sign)
	return private
}

// deleteKey deletes the key release from the token.
func deleteKey(t *testing.T, m *keystoretest.Module) {
	t.Helper()
	err := m.Reference("signing", "release").WithKey(t.Context(), func(s keystore.Store, k keystore.Key) error {
		return s.Delete(t.Context(), k, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// certify puts a certificate for a key on the token.
func certify(t *testing.T, m *keystoretest.Module, public crypto.PublicKey) {
	t.Helper()
	ca := softhsmtest.NewCA(t, "root", nil)
	m.Certificate(t, "signing", "release", ca.Issue(t, softhsmtest.Template("release"), public))
}

func mustFind(t *testing.T, s *Keys, m *keystoretest.Module) *Key {
	t.Helper()
	h, err := s.FindFresh(t.Context(), m.Reference("signing", "release"))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func signNothing(k keystore.Key) ([]byte, error) {
	digest := sha256.Sum256(nil)
	return k.Sign(context.Background(), digest[:], crypto.SHA256)
}

// age lets the time pass after which certificates are read again.
func age(s *Keys, h *Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *h
	old.read = time.Now().Add(-2 * fresh)
	s.held[identify(h.reference)] = &old
}

// TestFindOnce opens a key once for many callers, and shares the failure for one that does not exist.
func TestFindOnce(t *testing.T) {
	s, m := testKeys(t)
	var group sync.WaitGroup
	for range 64 {
		group.Go(func() {
			if _, err := s.Find(t.Context(), m.Reference("signing", "release")); err != nil {
				t.Error(err)
			}
			if _, err := s.Find(t.Context(), m.Reference("signing", "other")); !failure.Is(err, failure.NotFound) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := m.Calls("Leaf"); n != 0 {
		t.Errorf("certificates were read %d times to use a key", n)
	}
	before := m.Calls("Key")
	for range 64 {
		group.Go(func() { mustFind(t, s, m) })
	}
	group.Wait()
	if n := m.Calls("Key"); n != before || m.Calls("Leaf") != 1 {
		t.Errorf("%d more lookups of the key, %d of its certificate", n-before, m.Calls("Leaf"))
	}
	if err := s.Close(); err != nil || m.OpenStores() != 0 || len(s.opening) != 0 {
		t.Errorf("%v, %d open stores, %d openings", err, m.OpenStores(), len(s.opening))
	}
}

// TestModules opens the keys and tokens of two modules that have the same names.
func TestModules(t *testing.T) {
	s, m := testKeys(t)
	one, other := m.Reference("signing", "release"), m.Reference("signing", "release")
	other.ModulePath = "other.so"
	first, err := s.Find(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := s.Find(t.Context(), other); err != nil || second.opened == first.opened {
		t.Errorf("the key of the other module, or %v", err)
	}
	one.Key.Object, other.Key.Object = "", ""
	for range 2 {
		if err := errors.Join(s.Login(t.Context(), one), s.Login(t.Context(), other)); err != nil {
			t.Fatal(err)
		}
	}
	if n := m.OpenStores(); n != 4 {
		t.Errorf("%d open stores", n)
	}
	if err := s.Close(); err != nil || m.OpenStores() != 0 {
		t.Errorf("%v, %d open stores", err, m.OpenStores())
	}
}

// TestOldCertificatesMeanwhile returns the old certificates while one caller reads them again, and the new ones then.
func TestOldCertificatesMeanwhile(t *testing.T) {
	s, m := testKeys(t)
	h := mustFind(t, s, m)
	certify(t, m, h.Public)
	age(s, h)
	reading, end := make(chan struct{}), make(chan struct{})
	m.Before("Leaf", func() error {
		close(reading)
		<-end
		return nil
	})
	result := make(chan *Key)
	go func() {
		h, _ := s.FindFresh(t.Context(), m.Reference("signing", "release"))
		result <- h
	}()
	<-reading
	for range 3 {
		if len(mustFind(t, s, m).Chain) != 0 {
			t.Error("the certificate was read by two")
		}
	}
	close(end)
	if h := <-result; h == nil || len(h.Chain) != 1 {
		t.Errorf("no new certificate: %v", h)
	}
	if n := m.Calls("Leaf"); n != 2 {
		t.Errorf("the certificate was read %d times", n)
	}
}

// TestCertificatesFail keeps the old certificates when they cannot be read again, and tries again only later.
func TestCertificatesFail(t *testing.T) {
	s, m := testKeys(t)
	m.Fail("Leaf", failure.New(failure.Timeout, "slow"))
	if _, err := s.FindFresh(t.Context(), m.Reference("signing", "release")); !failure.Is(err, failure.Timeout) {
		t.Errorf("no certificates were read before, and it fails with %v", err)
	}
	if _, err := s.Find(t.Context(), m.Reference("signing", "release")); err != nil {
		t.Errorf("a use needs none, and it fails with %v", err)
	}
	m.Fail("Leaf", nil)
	h := mustFind(t, s, m)
	age(s, h)
	m.Fail("Leaf", failure.New(failure.Timeout, "slow"))
	before := m.Calls("Leaf")
	for range 3 {
		mustFind(t, s, m)
	}
	if n := m.Calls("Leaf") - before; n != 1 {
		t.Errorf("%d tries to read certificates", n)
	}
}

// TestReplacedKey refuses to use another key that has taken the name of the one that was found, and finds it then.
func TestReplacedKey(t *testing.T) {
	invalid := failure.New(failure.Invalid, "cannot sign")
	invalid.CKR = "CKR_KEY_HANDLE_INVALID"
	for name, c := range map[string]struct {
		replace bool
		kind    failure.Kind
	}{"replaced": {true, failure.Conflict}, "deleted": {false, failure.NotFound}} {
		t.Run(name, func(t *testing.T) {
			s, m := testKeys(t)
			h := mustFind(t, s, m)
			stores := m.OpenStores()
			deleteKey(t, m)
			if c.replace {
				addKey(t, m)
			}
			m.Fail("Sign", invalid)
			if _, err := h.Use(t.Context(), signNothing); !failure.Is(err, c.kind) {
				t.Errorf("it fails with %v", err)
			}
			m.Fail("Sign", nil)
			if !c.replace {
				if len(s.held) != 0 || m.OpenStores() != stores-1 {
					t.Errorf("%d held keys, %d open stores", len(s.held), m.OpenStores())
				}
				return
			}
			again := mustFind(t, s, m)
			if equal(again.Public, h.Public) || m.OpenStores() != stores {
				t.Errorf("the old key, or %d open stores", m.OpenStores())
			}
			if _, err := again.Use(t.Context(), signNothing); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReplacedKeyIsDescribed finds the key that has taken the name of another when certificates are read again.
func TestReplacedKeyIsDescribed(t *testing.T) {
	s, m := testKeys(t)
	h := mustFind(t, s, m)
	deleteKey(t, m)
	private := addKey(t, m)
	age(s, h)
	if now := mustFind(t, s, m); !equal(now.Public, private.Public()) {
		t.Error("the key from before")
	}
	if n := m.OpenStores(); n != 1 {
		t.Errorf("%d open stores", n)
	}
}

// TestLostHandle looks a key up again when the token does not know its handle, and closes its store after the last use.
func TestLostHandle(t *testing.T) {
	s, m := testKeys(t)
	h := mustFind(t, s, m)
	lost := failure.New(failure.Invalid, "cannot sign")
	lost.CKR = "CKR_OBJECT_HANDLE_INVALID"
	using, end := make(chan struct{}), make(chan struct{})
	ended := make(chan error)
	go func() {
		_, err := h.Use(t.Context(), func(k keystore.Key) ([]byte, error) {
			close(using)
			<-end
			return signNothing(k)
		})
		ended <- err
	}()
	<-using
	first := true
	if _, err := h.Use(t.Context(), func(k keystore.Key) ([]byte, error) {
		if first {
			first = false
			return nil, lost
		}
		return signNothing(k)
	}); err != nil {
		t.Error(err)
	}
	if n := m.OpenStores(); n != 2 {
		t.Errorf("%d open stores beside a use of the old key", n)
	}
	close(end)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := m.OpenStores(); n != 1 {
		t.Errorf("%d open stores", n)
	}
	if _, err := h.Use(t.Context(), func(keystore.Key) ([]byte, error) { return nil, lost }); !errors.Is(err, lost) {
		t.Errorf("it fails with %v, not with the second failure", err)
	}
}

// TestOpenerLeaves lets another caller open the key when the one who began has left.
func TestOpenerLeaves(t *testing.T) {
	s, m := testKeys(t)
	ctx, leave := context.WithCancel(t.Context())
	first := true
	m.Before("Key", func() error {
		if first {
			first = false
			leave()
		}
		return nil
	})
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := s.Find(ctx, m.Reference("signing", "release")); err == nil {
			t.Error("no failure for the caller who left")
		}
	})
	<-ctx.Done()
	group.Go(func() {
		if _, err := s.Find(t.Context(), m.Reference("signing", "release")); err != nil {
			t.Error(err)
		}
	})
	group.Wait()
}

// TestClosed fails what meets Close, and leaves no store open.
func TestClosed(t *testing.T) {
	s, m := testKeys(t)
	opening, end := make(chan struct{}), make(chan struct{})
	m.Before("Login", func() error {
		close(opening)
		<-end
		return nil
	})
	result := make(chan error)
	go func() {
		_, err := s.Find(t.Context(), m.Reference("signing", "release"))
		result <- err
	}()
	<-opening
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	for locked := false; !locked; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		locked = s.closed
		s.mu.Unlock()
	}
	close(end)
	if err := <-result; !failure.Is(err, failure.Unavailable) {
		t.Errorf("it fails with %v", err)
	}
	if err := <-closed; err != nil || m.OpenStores() != 0 {
		t.Errorf("%v, %d open stores", err, m.OpenStores())
	}
}

// TestUseMeetsClose fails a use that Close has ended as Unavailable, whatever the module says.
func TestUseMeetsClose(t *testing.T) {
	s, m := testKeys(t)
	h := mustFind(t, s, m)
	_, err := h.Use(t.Context(), func(keystore.Key) ([]byte, error) {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		return nil, failure.New(failure.Internal, "interrupted")
	})
	if !failure.Is(err, failure.Unavailable) {
		t.Errorf("it fails with %v", err)
	}
}

// TestWorkPanics leaves nobody waiting for a caller whose work has panicked.
func TestWorkPanics(t *testing.T) {
	s, m := testKeys(t)
	func() {
		defer func() { _ = recover() }()
		_ = s.work(t.Context(), "id", &opening{done: make(chan struct{})}, nil, nil)
	}()
	if len(s.opening) != 0 {
		t.Error("others wait")
	}
	h := mustFind(t, s, m)
	func() {
		defer func() { _ = recover() }()
		_, _ = h.Use(t.Context(), func(keystore.Key) ([]byte, error) { panic("broken") })
	}()
	if h.users != 0 {
		t.Errorf("%d users", h.users)
	}
}
