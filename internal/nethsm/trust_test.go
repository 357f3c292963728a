package nethsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

// listen returns what people are warned of until the end of the test.
func listen(t *testing.T) *bytes.Buffer {
	t.Helper()
	var heard bytes.Buffer
	warned.Clear()
	Warnings = &heard
	t.Cleanup(func() { Warnings = nil })
	return &heard
}

// TestInsecure is never quiet, and goes with no other trust.
func TestInsecure(t *testing.T) {
	servers, s := start(t, 1)
	heard := listen(t)
	s.NetHSM.Insecure = true
	if _, err := Open(s); !failure.Is(err, failure.Invalid) {
		t.Errorf("with fingerprints: %v", err)
	}
	if _, err := ModuleConfig(s, "nethsm", os.DevNull); !failure.Is(err, failure.Invalid) {
		t.Errorf("for the module, with fingerprints: %v", err)
	}
	s.NetHSM.Fingerprints, s.NetHSM.CAFile = nil, servers[0].CAFile()
	if _, err := Open(s); !failure.Is(err, failure.Invalid) || heard.Len() > 0 {
		t.Errorf("with a CA: %v", err)
	}
	s.NetHSM.CAFile = ""
	open(t, s)
	open(t, s)
	if n := strings.Count(heard.String(), "warning: TLS certificates of the NetHSM are NOT verified"); n != 1 {
		t.Errorf("%d warnings: %s", n, heard)
	}
}

// TestStranger signs with the second instance when the first has another certificate than it should have, and says so
// once.
func TestStranger(t *testing.T) {
	servers, s := start(t, 2)
	private := ecKey(t, servers[0])
	heard := listen(t)
	s.NetHSM.Fingerprints = s.NetHSM.Fingerprints[1:]
	for range 2 {
		k, _ := open(t, s).Key(t.Context(), &private.PublicKey)
		if _, err := k.SignMessage(t.Context(), nil, crypto.SHA256); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.HasPrefix(heard.String(), "warning: "+s.NetHSM.Instances[0]+" is not the NetHSM that is expected") ||
		strings.Count(heard.String(), "\n") != 1 {
		t.Errorf("%q", heard)
	}

	status, err := Ask(context.Background(), s)
	if err != nil || !strings.Contains(status.Instances[0].Error, "is not the NetHSM that is expected") ||
		status.Instances[1].Error != "" {
		t.Errorf("%+v, %v", status, err)
	}

	// The doctor finds it where the other answers first, too.
	heard = listen(t)
	s.NetHSM.Instances[0], s.NetHSM.Instances[1] = s.NetHSM.Instances[1], s.NetHSM.Instances[0]
	if _, err := tokens(context.Background(), s); err != nil ||
		!strings.Contains(heard.String(), s.NetHSM.Instances[1]+" is not the NetHSM") {
		t.Errorf("%v, %q", err, heard)
	}
}

// TestNoProxy sends nothing through a proxy of the environment.
func TestNoProxy(t *testing.T) {
	_, s := start(t, 1)
	if proxy := open(t, s).http.Transport.(*http.Transport).Proxy; proxy != nil {
		t.Error("there is a proxy")
	}
}

// TestHangingGenerate makes the key with the second instance when the first takes the request and never answers.
func TestHangingGenerate(t *testing.T) {
	servers, s := start(t, 2)
	s.Timeout = 2 * time.Second
	servers[0].Inject(http.MethodPost, "/keys/generate", 0, nethsmtest.Hang())
	began := time.Now()
	_, err := generate(context.Background(), s, key.Request{Spec: key.Specs[3], Usage: key.Sign, Label: "release"})
	if took := time.Since(began); err != nil || took > 2*s.Timeout {
		t.Errorf("after %s: %v", took, err)
	}
}

// TestUnsure says that a key may have been made when nobody answers any more.
func TestUnsure(t *testing.T) {
	servers, s := start(t, 1)
	s.Timeout = time.Second
	servers[0].Inject(http.MethodPost, "/keys/generate", 0, nethsmtest.DropAfter())
	looks := servers[0].Inject(http.MethodGet, "/keys/*", 1, nethsmtest.Respond(http.StatusNotFound)) // before
	servers[0].Inject(http.MethodGet, "/keys/*", 0, nethsmtest.Hang())
	_, err := generate(context.Background(), s, key.Request{Spec: key.Specs[3], Usage: key.Sign, Label: "release"})
	if err == nil || looks.Hits() != 1 || !strings.Contains(err.Error(),
		"it may have been made: see 'notation-hsm key list --token nethsm:'") {
		t.Error(err)
	}
}

// TestStillMaking says so, too, when the key is not there yet: an instance that did not answer may be at it.
func TestStillMaking(t *testing.T) {
	servers, s := start(t, 1)
	s.Timeout = time.Second
	servers[0].Inject(http.MethodPost, "/keys/generate", 0, nethsmtest.Hang())
	_, err := generate(context.Background(), s, key.Request{Spec: key.Specs[3], Usage: key.Sign, Label: "release"})
	if !failure.Is(err, failure.Timeout) || !strings.Contains(err.Error(), "it may have been made") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err = generate(ctx, s, key.Request{Spec: key.Specs[3], Usage: key.Sign, Label: "release"})
	if err == nil || !strings.Contains(err.Error(), "interrupted while making key nethsm:release; it may have been made") {
		t.Error(err)
	}
}

// TestImportKeeps has the old chain served after a new one was refused, and says when it can't be.
func TestImportKeeps(t *testing.T) {
	servers, s := start(t, 1)
	k := &Key{id: "release", public: &ecKey(t, servers[0]).PublicKey}
	store := open(t, s)
	k.store = store
	private := ecKey(t, servers[0])
	old, fresh := []*x509.Certificate{selfSigned(t, private)}, []*x509.Certificate{selfSigned(t, private)}
	if _, err := store.Import(t.Context(), k, old); err != nil {
		t.Fatal(err)
	}
	stored := func() []*x509.Certificate {
		chain, err := open(t, s).chain(t.Context(), "release", store.ask)
		if err != nil {
			t.Fatal(err)
		}
		return chain
	}
	servers[0].Inject(http.MethodPut, "/keys/*/cert", 1, nethsmtest.Respond(http.StatusRequestEntityTooLarge))
	_, err := store.Import(t.Context(), k, fresh)
	if err == nil || !strings.Contains(err.Error(), "413") ||
		!strings.Contains(err.Error(), "its old certificate is there as before") {
		t.Error(err)
	}
	if chain := stored(); len(chain) != 1 || !chain[0].Equal(old[0]) {
		t.Errorf("stored is %v", chain)
	}
	servers[0].Inject(http.MethodDelete, "/keys/*/cert", 1, nethsmtest.Respond(http.StatusForbidden))
	if _, err := store.Import(t.Context(), k, fresh); err == nil ||
		!strings.Contains(err.Error(), "its old certificate is there as before") || len(stored()) != 1 {
		t.Error(err)
	}
	servers[0].Inject(http.MethodPut, "/keys/*/cert", 2, nethsmtest.Respond(http.StatusRequestEntityTooLarge))
	_, err = store.Import(t.Context(), k, fresh)
	if err == nil || !strings.Contains(err.Error(), "its old certificate is gone") ||
		!strings.Contains(failure.From(err).Hint, "notation-hsm cert import nethsm:release FILE") {
		t.Error(err)
	}
	if n, err := store.Import(t.Context(), k, fresh); err != nil || n != 1 || len(stored()) != 1 {
		t.Errorf("%d, %v", n, err)
	}

	// What is no certificate does not stay in the way.
	servers[0].SetKeyCertificate("release", []byte("hello"))
	if n, err := store.Import(t.Context(), k, fresh); err != nil || n != 1 || !stored()[0].Equal(fresh[0]) {
		t.Errorf("%d, %v", n, err)
	}

	// An interrupt between the two requests loses nothing.
	ctx, cancel := context.WithCancelCause(context.Background())
	interrupted, err := Open(s)
	if err != nil {
		t.Fatal(err)
	}
	defer interrupted.Close()
	hang := servers[0].Inject(http.MethodPut, "/keys/*/cert", 1, nethsmtest.Hang())
	go func() {
		for hang.Hits() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel(errors.New("Ctrl-C"))
	}()
	if _, err := interrupted.Import(ctx, &Key{store: interrupted, id: "release"}, old); err == nil ||
		!stored()[0].Equal(fresh[0]) {
		t.Error(err)
	}
}

// TestStatusWithoutInfo shows no product when there is none.
func TestStatusWithoutInfo(t *testing.T) {
	servers, s := start(t, 1)
	servers[0].Inject(http.MethodGet, "/info", 0, nethsmtest.Respond(http.StatusServiceUnavailable))
	status, err := Ask(context.Background(), s)
	if err != nil || status.Instances[0].Product != "" || status.Instances[0].Error == "" {
		t.Errorf("%+v, %v", status, err)
	}
}

// TestModuleTries holds that the module gives up before this program gives up on it, having asked each instance if it
// can.
func TestModuleTries(t *testing.T) {
	for timeout := 2 * time.Second; timeout < 2*time.Minute; timeout += 500 * time.Millisecond {
		for instances := 1; instances < 8; instances++ {
			tries, each := moduleTries(timeout, instances)
			if all := time.Duration(tries*each+tries-1) * time.Second; all >= timeout || tries < 1 || each < 1 {
				t.Errorf("%s, %d instances: %d times %d s are %s", timeout, instances, tries, each, all)
			}
			if timeout >= 15*time.Second && tries != max(4, instances) {
				t.Errorf("%s, %d instances: %d tries", timeout, instances, tries)
			}
		}
	}
}
