package nethsm

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

// TestImport replaces the chain of a key, and keeps the previous one when the new one is rejected or the caller is
// interrupted. It says so when the previous one is lost.
func TestImport(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	store := open(t, s)
	k := store.key("release")
	old, fresh := []*x509.Certificate{selfSigned(t, private)}, []*x509.Certificate{selfSigned(t, private)}
	stored := func() []*x509.Certificate {
		t.Helper()
		chain, err := open(t, s).ownChain(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return chain
	}
	imports := func(chain []*x509.Certificate, added int) {
		t.Helper()
		if n, err := store.Import(t.Context(), k, chain); err != nil || n != added {
			t.Errorf("%d added, %v", n, err)
		}
		if !slices.EqualFunc(stored(), chain, (*x509.Certificate).Equal) {
			t.Errorf("stored is %v", stored())
		}
	}
	imports(old, 1)
	imports(old, 0)

	const kept = "the previous certificate is stored as before"
	for _, method := range []string{http.MethodDelete, http.MethodPut} {
		servers[0].Inject(method, "/keys/*/cert", 1, nethsmtest.Respond(http.StatusForbidden))
		if _, err := store.Import(t.Context(), k, fresh); !failure.Is(err, failure.Denied) ||
			!strings.Contains(err.Error(), kept) || !stored()[0].Equal(old[0]) {
			t.Errorf("%s: %v", method, err)
		}
	}
	servers[0].Inject(http.MethodPut, "/keys/*/cert", 2, nethsmtest.Respond(http.StatusRequestEntityTooLarge))
	_, err := store.Import(t.Context(), k, fresh)
	if err == nil || !strings.Contains(err.Error(), "the previous certificate is lost") ||
		!strings.Contains(failure.From(err).Hint, "notation-hsm cert import nethsm:release FILE") || len(stored()) != 0 {
		t.Error(err)
	}
	servers[0].Inject(http.MethodPut, "/keys/*/cert", 1, nethsmtest.Respond(http.StatusRequestEntityTooLarge))
	if _, err := store.Import(t.Context(), k, fresh); err == nil || strings.Contains(err.Error(), "previous") {
		t.Errorf("without a previous one: %v", err)
	}
	imports(fresh, 1)
	servers[0].SetKeyCertificate("release", []byte("hello"))
	imports(fresh, 1)

	// An interrupt between the two requests loses nothing.
	ctx, cancel := context.WithCancelCause(t.Context())
	hang := servers[0].Inject(http.MethodPut, "/keys/*/cert", 1, nethsmtest.Hang())
	go func() {
		waitFor(t, func() bool { return hang.Hits() == 1 })
		cancel(errors.New("Ctrl-C"))
	}()
	if _, err := store.Import(ctx, k, old); err == nil || !strings.Contains(err.Error(), kept) ||
		!stored()[0].Equal(fresh[0]) {
		t.Error(err)
	}
}

// TestImportWithoutAdministrator changes nothing.
func TestImportWithoutAdministrator(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	s.NetHSM.Administrator = ""
	store := open(t, s)
	if _, err := store.Import(t.Context(), store.key("release"), nil); !failure.Is(err, failure.Invalid) ||
		!strings.HasPrefix(err.Error(), "storing the certificate of key nethsm:release failed: no administrator") {
		t.Error(err)
	}
	if n := len(servers[0].Requests()); n > 0 {
		t.Errorf("%d requests", n)
	}
}

// TestCertificates reads what other programs have stored with a key: PEM with other blocks, or DER. It fails with
// Invalid for anything else.
func TestCertificates(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	cert := selfSigned(t, ecKey(t, servers[0]))
	block := func(kind string, data []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}) }
	for name, data := range map[string][]byte{
		"DER": cert.Raw, "PEM": block("CERTIFICATE", cert.Raw),
		"PEM among others": slices.Concat(block("PUBLIC KEY", []byte("x")), block("CERTIFICATE", cert.Raw)),
	} {
		servers[0].SetKeyCertificate("release", data)
		all, err := open(t, s).Certificates(t.Context())
		if err != nil || len(all) != 1 || !all[0].Equal(cert) {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
	for name, data := range map[string][]byte{"text": []byte("hello"), "PEM": block("CERTIFICATE", []byte("hello"))} {
		servers[0].SetKeyCertificate("release", data)
		store := open(t, s)
		_, err := store.Certificates(t.Context())
		_, leafErr := store.Leaf(t.Context())
		if !failure.Is(err, failure.Invalid) || !failure.Is(leafErr, failure.Invalid) ||
			!strings.HasPrefix(err.Error(), "cannot read the certificate of key nethsm:release: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.PINSource = ""
	servers[0].ResetRequests()
	if all, err := open(t, s).Certificates(t.Context()); all != nil || err != nil || len(servers[0].Requests()) > 0 {
		t.Errorf("without a passphrase: %v, %v", all, err)
	}
	s.Key.Object = ""
	if _, err := open(t, s).Leaf(t.Context()); !failure.Is(err, failure.Invalid) {
		t.Errorf("without a key: %v", err)
	}
}
