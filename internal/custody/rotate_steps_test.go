package custody

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

var errInjected = failure.New(failure.Unavailable, "injected").WithHint("remove the fault")

// rotated is a rotation under test: a key "release" that Notation's signing key "release" names.
type rotated struct {
	*testing.T
	module   *keystoretest.Module
	caFolder string
	source   CertificateSource
	asked    int // how often the plan was confirmed
}

func newRotated(t *testing.T, source CertificateSource) *rotated {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		t.Setenv("TMPDIR", "/dev/shm") // hundreds of rotations would wait for the disk
	}
	r := &rotated{T: t, module: fixture(t, "signing"), source: source}
	m := r.module
	r.caFolder = newCA(t, m, "signing", "root")
	const uri = "pkcs11:token=signing;object=release"
	if source == FromCA {
		s := m.Reference("signing", "")
		if _, _, err := Generate(t.Context(), s, KeyRequest{Spec: "EC-256", Usage: "sign", Label: "release"}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ca().IssueKey(t.Context(), m.Reference("signing", "release"),
			ca.Terms{Subject: testSubject, Days: 365}, nil); err != nil {
			t.Fatal(err)
		}
	} else {
		generate(t, m, "signing", "release")
	}
	register(t, "release", uri)
	return r
}

func (r *rotated) ca() *ca.Authority {
	r.Helper()
	return must[*ca.Authority](r.T)(ca.Open(r.module.Keystore(), r.caFolder, "root"))
}

// run does what a user does for a rotation: for a certificate request, the first command, the CA's answer, and the
// second command. It ends at the first failure.
func (r *rotated) run() error {
	o := RotationRequest{Name: "release", CAFolder: r.caFolder}
	confirm := func(*Rotation) error { r.asked++; return nil }
	if r.source != ByRequest {
		return Rotate(r.Context(), r.module.Keystore(), o, confirm, silent)
	}
	o.Request = filepath.Join(r.TempDir(), "csr.pem")
	if err := Rotate(r.Context(), r.module.Keystore(), o, confirm, silent); err != nil {
		return err
	}
	if !exists(o.Request) { // the rotation was finished without one
		return nil
	}
	// The CA is another one to the rotation, and no fault is its own.
	answer := filepath.Join(filepath.Dir(r.caFolder), "answer.pem")
	if !exists(answer) {
		issued, err := r.ca().IssueRequest(r.Context(), o.Request, nil, ca.Terms{Subject: testSubject, Days: 365},
			func(ca.Entry) bool { return true }, func(ca.Part) error { return nil })
		if err != nil {
			return err
		}
		if err := os.WriteFile(answer, issued.Chain, 0o600); err != nil {
			return err
		}
	}
	o.Request, o.Certificate = "", answer
	return Rotate(r.Context(), r.module.Keystore(), o, confirm, silent)
}

// check verifies that there is one new key, one certificate for it, and Notation's entries for both keys.
func (r *rotated) check(name string) {
	r.Helper()
	if labels := keysOf(r.T, r.module, "signing"); !slices.Equal(labels, []string{"root", "release", "release-2"}) {
		r.Errorf("%s: the keys are %q", name, labels)
	}
	keys := must[*signingKeys](r.T)(loadSigningKeys())
	if len(keys.Keys) != 2 || keys.Keys[0].Name != "release" || keys.Keys[1].Name != "release-old-1" ||
		*keys.Default != "release" || keys.Keys[1].ID != "pkcs11:token=signing;object=release" {
		r.Errorf("%s: the entries are %+v", name, keys.Keys)
	}
	s := must[*[]Key](r.T)(func() (*[]Key, error) {
		reference, err := resolve(r.module.Keystore(), keys.Keys[0])
		if err != nil {
			return nil, err
		}
		found, err := Keys(r.Context(), reference)
		return &found, err
	}())
	if len(*s) != 1 || (*s)[0].Label != "release-2" || !(*s)[0].Usable {
		r.Errorf("%s: Notation's entry names %+v", name, *s)
	}
	certificates := 0
	store, err := r.module.Reference("signing", "").Open(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	defer store.Close()
	all, err := store.Certificates(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	for _, cert := range all {
		if cert.Subject.CommonName == "release" {
			certificates++
		}
	}
	if certificates != 2 {
		r.Errorf("%s: %d certificates of the signer, want one for each key", name, certificates)
	}
	if r.source == FromCA {
		if issued, err := r.ca().Entries(); err != nil || len(issued) != 2 {
			r.Errorf("%s: the CA has issued %d certificates, %v", name, len(issued), err)
		}
	}
	if left, err := journals(); err != nil || len(left) != 0 {
		r.Errorf("%s: journals are left: %v, %v", name, left, err)
	}
	if r.asked != 1 {
		r.Errorf("%s: the plan was confirmed %d times", name, r.asked)
	}
}

// TestRotateInterrupted fails each call of the module in a rotation, before and after its effect, one at a time.
// Running the rotation again finishes it, with one new key and one new certificate.
func TestRotateInterrupted(t *testing.T) {
	for _, source := range []CertificateSource{SelfSigned, FromCA, ByRequest} {
		for _, operation := range []string{
			"Open", "Key", "Keys", "Generate", "Sign", "Info", "Certificates", "Import", "Taken", "Discard",
		} {
			t.Run(fmt.Sprint(source, " ", operation), func(t *testing.T) {
				for n, hit := 1, true; hit; n++ {
					for _, when := range []string{"before", "after"} {
						r := newRotated(t, source)
						calls, name := 0, fmt.Sprintf("%s %s %d", when, operation, n)
						hit = false
						fault := func() error {
							if calls++; calls == n {
								hit = true
								return errInjected
							}
							return nil
						}
						inject := r.module.Before
						if when == "after" {
							inject = r.module.After
						}
						inject(operation, fault)
						err := r.run()
						inject(operation, nil)
						if err == nil && hit && operation != "Sign" { // a key that does not sign is generated again
							t.Errorf("%s: the fault was ignored", name)
						}
						if err != nil && !errors.Is(err, errInjected) && !strings.Contains(err.Error(), "injected") {
							t.Fatalf("%s: %v", name, err)
						}
						if err != nil {
							// A plan that was not written is made and confirmed again.
							if left, _ := journals(); len(left) == 0 {
								r.asked = 0
							}
							if err := r.run(); err != nil {
								t.Fatalf("again, %s: %v", name, err)
							}
						}
						r.check(name)
					}
				}
			})
		}
	}
}

// TestRotateHalfMade deletes a key that an interrupted module left behind and that does not sign, and generates it
// again.
func TestRotateHalfMade(t *testing.T) {
	r := newRotated(t, SelfSigned)
	r.module.After("Generate", func() error { return errInjected })
	if err := r.run(); err == nil {
		t.Fatal("no failure")
	}
	r.module.After("Generate", nil)
	before, signs := r.module.Calls("Generate"), 0
	r.module.Before("Sign", func() error {
		if signs++; signs == 1 {
			return errInjected
		}
		return nil
	})
	if err := r.run(); err != nil {
		t.Fatal(err)
	}
	if n := r.module.Calls("Generate") - before; n != 1 {
		t.Errorf("%d keys were generated instead of the one that does not sign", n)
	}
	r.check("half-made")
}

// TestRotateProven keeps Notation's entry if the new key does not sign under its certificate.
func TestRotateProven(t *testing.T) {
	r := newRotated(t, SelfSigned)
	certified := false
	r.module.After("Import", func() error { certified = true; return nil })
	r.module.Before("Sign", func() error {
		if certified {
			return errInjected
		}
		return nil
	})
	if err := r.run(); err == nil {
		t.Error("no failure")
	}
	if keys := must[*signingKeys](t)(loadSigningKeys()); keys.find("release").ID != "pkcs11:token=signing;object=release" {
		t.Errorf("Notation's entry is %+v", keys.find("release"))
	}
	r.module.Before("Sign", nil)
	if err := r.run(); err != nil {
		t.Fatal(err)
	}
	r.check("proven")
}
