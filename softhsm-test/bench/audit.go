package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/attach"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
	"github.com/notation-hsm/notation-hsm/softhsm-test/signedlog"
)

// audited is the number of signatures of a repository that is audited.
const audited = 10_000

// audit measures hsm-image audit with a repository of so many images, each with a signature, and one of twice as many.
// The registry and the log are in this process.
func (b *bench) audit() {
	f := fixture{bench: b}
	ours := softhsmtest.Build(f, "hsm-image")
	var contenders []contender
	for _, count := range []int{audited, 2 * audited} {
		memory, log := oci.StartMemory(), must(signedlog.New())(f)
		defer memory.Close()
		by := must(oci.NewForger("release", ""))(f)
		for i := range count {
			b.signAndLog(f, memory, log, by, i)
		}
		server := httptest.NewServer(translog.Handler(log.File, func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusNotFound)
		}))
		defer server.Close()
		key := must(log.Verifier())(f)
		contenders = append(contenders, contender{command: []string{ours, "audit", memory.Address + "/app", "--plain-http",
			"--log", server.URL, "--key", key.String()}})
	}
	r := b.race(3, contenders...)
	b.add(row{
		name: fmt.Sprintf("`hsm-image audit`, %d signatures, ms", 2*audited), ours: spread(r[1].milliseconds),
		other: fmt.Sprintf("%d: %s", audited, spread(r[0].milliseconds)),
	}.ratio(r[1].milliseconds.ratio(r[0].milliseconds), "half as many", atMost(2.5)))
	b.add(row{
		name: fmt.Sprintf("`hsm-image audit`, %d signatures, MiB", 2*audited), ours: spread(r[1].mebibytes),
		other: fmt.Sprintf("%d: %s", audited, spread(r[0].mebibytes)),
	}.ratio(r[1].mebibytes.ratio(r[0].mebibytes), "half as many", atMost(2)))
}

// signAndLog adds a signed image to a registry, and its signature to the log.
func (b *bench) signAndLog(f fixture, memory *oci.Memory, log *signedlog.Log, by *oci.Forger, n int) {
	image := memory.Put(ocispec.MediaTypeImageManifest,
		fmt.Appendf(nil, `{"schemaVersion":2,"layers":[],"annotations":{"name":"%d"}}`, n), fmt.Sprintf("v%d", n))
	envelope := must(by.Sign(jws.MediaTypeEnvelope, image, nil))(f)
	manifest := must(oci.SignatureManifest(memory.Put(jws.MediaTypeEnvelope, envelope, ""), image, time.Now()))(f)
	memory.Put(ocispec.MediaTypeImageManifest, manifest, "")
	claims := must(attach.Verify(jws.MediaTypeEnvelope, envelope))(f)
	id, repository := fmt.Sprintf("request-%d", n), memory.Address+"/app"
	check(f, log.Append(entry.Event{Type: entry.Requested, Request: id, Key: "release", Repository: repository},
		entry.Event{Type: entry.Intended, Request: id, Key: "release", Payload: claims.Payload, Digest: claims.Digest},
		entry.Event{Type: entry.Signed, Request: id, Key: "release", Payload: claims.Payload,
			Signature: claims.Signature.Signature}))
}

// must returns a function that returns a value, or ends the measurement because of an error.
func must[V any](value V, err error) func(fixture) V {
	return func(f fixture) V {
		check(f, err)
		return value
	}
}
