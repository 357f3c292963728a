package broker

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestCalls signs by two calls to the module, C_SignInit and C_Sign, and describes the key by none.
func TestCalls(t *testing.T) {
	softhsmtest.Parallel(t)
	specs := []string{"RSA-2048", "EC-256"}
	s := startSpied(t, specs)
	registry := oci.StartRegistry(t)
	for _, spec := range specs {
		for _, format := range []string{"jws", "cose"} {
			image := func(name string) string {
				digest, err := oci.PushImage(t.Context(), registry+"/app:v1", name)
				if err != nil {
					t.Fatal(err)
				}
				return registry + "/app@" + digest.String()
			}
			run := func(image string) {
				softhsmtest.Run(t, s.notation.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id",
					"broker:release-"+spec, "--signature-format", format, image)
			}
			// After a minute, certificates are read again: a machine that slow measures once more.
			for measured := false; !measured; {
				start := time.Now()
				run(image("warm " + spec + format + start.String()))
				before := len(softhsmtest.Calls(t, s.log))
				second := image(spec + format + start.String())
				run(second)
				calls := softhsmtest.Calls(t, s.log)[before:]
				if measured = time.Since(start) < time.Minute; measured && !slices.Equal(calls, []string{"C_SignInit", "C_Sign"}) {
					t.Errorf("%s, %s: %v", spec, format, calls)
				}
			}
		}
	}
}

// TestAtOnce signs in 200 processes at once, none of which fails.
func TestAtOnce(t *testing.T) {
	softhsmtest.Parallel(t)
	s := startSpied(t, []string{"RSA-2048", "EC-256"})
	var group sync.WaitGroup
	for i := range 200 {
		spec, jws := "EC-256", "ES256"
		if i%2 == 0 {
			spec, jws = "RSA-2048", "PS256"
		}
		request := softhsmtest.Request("broker:release-"+spec,
			map[string]any{"keySpec": spec, "payload": softhsmtest.SigningInput(jws, i)})
		group.Go(func() {
			stdout, stderr, err := softhsmtest.Try(t, request, s.notation.Plugin, "generate-signature")
			if err != nil || stderr != "" || stdout == "" {
				t.Errorf("%v: %s", err, stderr)
			}
		})
	}
	group.Wait()
	if n := s.calls(t, "C_Login"); n != 1 {
		t.Errorf("%d logins", n)
	}
	if n := s.calls(t, "C_Sign"); n != 200 {
		t.Errorf("%d calls of C_Sign", n)
	}
}

// TestManySignatures makes 20,000 signatures over 64 connections. The agent and the process of its module use as many
// descriptors as before, and hardly more memory.
func TestManySignatures(t *testing.T) {
	softhsmtest.NeedRoot(t) // to look at the agent's process, which shows itself to root alone
	s := newSpied(t, []string{"EC-256"})
	s.start(t, s.token.Module)
	public := s.open(t).Public().(*ecdsa.PublicKey)
	measure := func() [2]use { return [2]use{used(t, s.PID()), used(t, s.worker(t))} }
	before := s.run(t, public, 4_000, measure)
	after := s.run(t, public, 16_000, measure)
	for i, name := range []string{"agent", "worker"} {
		// A leak of 512 bytes a signature is 8 MiB. A collector of garbage needs some room.
		if grown := after[i].memory - before[i].memory; grown > 8<<10 {
			t.Errorf("the %s has grown by %d KiB", name, grown)
		}
		if after[i].children != before[i].children {
			t.Errorf("the %s: %+v before, %+v after", name, before[i], after[i])
		}
		s.until(t, "the end of descriptors of the "+name, func() bool {
			return measure()[i].descriptors <= before[i].descriptors
		})
	}
}

// run makes signatures over 64 connections and returns what measure returned at the end, when these are still open.
func (s *spied) run(t *testing.T, public *ecdsa.PublicKey, count int64, measure func() [2]use) [2]use {
	t.Helper()
	payload := softhsmtest.SigningInput("ES256", 1)
	request := softhsmtest.SignatureRequest("release-EC-256", "ECDSA-SHA-256", payload)
	digest := sha256.Sum256(payload)
	var made atomic.Int64
	var group sync.WaitGroup
	for range 64 {
		conn, err := softhsmtest.DialAgent(s.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		group.Go(func() {
			for n := made.Add(1); n <= count; n = made.Add(1) {
				status, body, err := conn.Ask(request)
				var answer brokerapi.Signature
				if err == nil {
					err = json.Unmarshal(body, &answer)
				}
				if err != nil || status != http.StatusCreated {
					t.Errorf("status %d, %v: %s", status, err, body)
					return
				}
				if n%100 == 0 && !ecdsa.VerifyASN1(public, digest[:], answer.Signature) {
					t.Errorf("signature %d does not verify", n)
				}
			}
		})
	}
	group.Wait()
	return measure()
}
