// Package payload tests, end to end, that what the notation command sends to a plugin is read as what it was asked to
// sign.
package payload

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/notaryproject/notation-go"
	notationplugin "github.com/notaryproject/notation-go/plugin"
	notationsigner "github.com/notaryproject/notation-go/signer"
	contract "github.com/notaryproject/notation-plugin-framework-go/plugin"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/payload"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// recorder is an installed plugin that keeps the requests for signatures.
type recorder struct {
	*softhsmtest.Notation
	program string // the installed plugin
	folder  string // of the requests
}

// newRecorder puts a script that keeps requests in the place of the installed plugin.
func newRecorder(t *testing.T, token *softhsmtest.Token) recorder {
	t.Helper()
	n := softhsmtest.NewNotation(t, token)
	r := recorder{n, filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation", "plugins", "hsm", "notation-hsm"),
		t.TempDir()}
	if err := os.Remove(r.program); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\n[ \"$1\" = generate-signature ] || exec " + n.Plugin + " \"$@\"\ntee " + r.folder + "/$$ | " +
		n.Plugin + " \"$@\"\n"
	if err := os.WriteFile(r.program, []byte(script), 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	return r
}

// sent returns the artifact of the one request that was sent since the last call.
func (r recorder) sent(t *testing.T) *payload.Artifact {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.folder, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%d requests were sent: %v", len(files), err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	var request contract.GenerateSignatureRequest
	if err := json.Unmarshal(data, &request); err != nil {
		t.Fatal(err)
	}
	a, err := payload.Read(request.Payload)
	if err != nil {
		t.Fatalf("%v in %q", err, request.Payload)
	}
	return a
}

// check verifies that an artifact is the one that was to be signed, for a duration that is zero for ever, no earlier
// than a time.
func check(t *testing.T, a *payload.Artifact, target ocispec.Descriptor, begin time.Time, duration time.Duration) {
	t.Helper()
	if a.Format != payload.Notation || a.MediaType != target.MediaType || a.Digest != target.Digest.String() ||
		a.Size != target.Size || !maps.Equal(a.Annotations, target.Annotations) {
		t.Errorf("%+v was read as %+v", target, a)
	}
	if a.SigningTime.Before(begin.Truncate(time.Second)) || a.SigningTime.After(time.Now()) {
		t.Errorf("the signing time is %v", a.SigningTime)
	}
	if duration == 0 && !a.Expiry.IsZero() || duration != 0 && a.Expiry.Sub(a.SigningTime) != duration {
		t.Errorf("signed at %v, it expires at %v", a.SigningTime, a.Expiry)
	}
}

// TestCommand signs with the notation command: an image, an index and an artifact in a registry and an image in a
// layout, with user metadata and an expiry, in JWS and COSE.
func TestCommand(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	r := newRecorder(t, token)
	softhsmtest.Setenv(t, "NOTATION_EXPERIMENTAL", "1")
	softhsmtest.Setenv(t, "TZ", "Asia/Kolkata")
	metadata := map[string]string{"build": `<42> & "more"`, "übung": "日本 🙂\u2028",
		"url": "https://example.com/?a=b&c=d"}
	layout := t.TempDir()
	oci.WriteImage(t, layout, "v1", 100, "linux/amd64")
	targets := map[string]ocispec.Descriptor{layout + ":v1": resolveLayout(t, layout)}
	registry := oci.StartRegistry(t)
	for reference, push := range map[string]func(context.Context, string) (digest.Digest, error){
		registry + "/image:v1": func(ctx context.Context, reference string) (digest.Digest, error) {
			return oci.PushImage(ctx, reference, "hello")
		},
		registry + "/index:v1": oci.PushIndex, registry + "/sbom:v1": oci.PushArtifact,
	} {
		if _, err := push(context.Background(), reference); err != nil {
			t.Fatal(err)
		}
		repository, err := oci.Open(reference)
		if err != nil {
			t.Fatal(err)
		}
		target, err := repository.Resolve(context.Background(), "v1")
		if err != nil {
			t.Fatal(err)
		}
		targets[reference] = target
	}
	for spec, algorithm := range map[string]string{"RSA-2048": "RSASSA-PSS-SHA-256", "EC-384": "ECDSA-SHA-384"} {
		uri, _ := softhsmtest.NewKey(t, token, r.Plugin, spec, "key-"+spec)
		for reference, target := range targets {
			for format, encoding := range map[string]string{"jws": "JWS", "cose": "COSE"} {
				arguments := []string{"sign", "--plugin", "hsm", "--id", uri, "--signature-format", format}
				if reference == layout+":v1" {
					arguments = append(arguments, "--oci-layout")
				} else {
					arguments = append(arguments, "--insecure-registry")
				}
				begin := time.Now()
				softhsmtest.Run(t, r.Program, append(arguments, reference)...)
				a := r.sent(t)
				check(t, a, target, begin, 0)
				if a.Encoding != encoding || a.Algorithm != algorithm {
					t.Errorf("%s with %s was read as %+v", format, spec, a)
				}
				arguments = append(arguments, "--expiry", "36h")
				for name, value := range metadata {
					arguments = append(arguments, "--user-metadata", name+"="+value)
				}
				softhsmtest.Run(t, r.Program, append(arguments, reference)...)
				annotated := target
				annotated.Annotations = metadata
				check(t, r.sent(t), annotated, begin, 36*time.Hour)
			}
		}
	}
}

// resolveLayout returns the descriptor of the one image of a layout.
func resolveLayout(t *testing.T, layout string) ocispec.Descriptor {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(layout, ocispec.ImageIndexFile))
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		t.Fatal(err)
	}
	target := index.Manifests[0]
	target.Annotations = nil // the tag, which is not signed
	return target
}

// TestBlob signs the descriptors of files through the library that notation is made of, as 'notation blob sign' does.
// (That command is in no release of notation 1.)
func TestBlob(t *testing.T) { // not parallel: the library starts the plugin with the environment of this process
	token := softhsmtest.NewToken(t, "signing")
	r := newRecorder(t, token)
	uri, _ := softhsmtest.NewKey(t, token, r.Plugin, "EC-384", "blob")
	plugin, err := notationplugin.NewCLIPlugin(context.Background(), "hsm", r.program)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := notationsigner.NewPluginSigner(plugin, uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []ocispec.Descriptor{
		{MediaType: "application/octet-stream", Digest: digest.SHA384.FromString("a release"), Size: 9},
		{MediaType: `text/plain; charset="utf-8"`, Digest: digest.SHA512.FromString(""),
			Annotations: map[string]string{"build": "<42>"}},
		{MediaType: "video/mp4", Digest: digest.FromString("x"), Size: 1<<53 - 1},
	} {
		for mediaType, encoding := range map[string]string{"application/jose+json": "JWS", "application/cose": "COSE"} {
			begin := time.Now()
			options := notation.SignerSignOptions{SignatureMediaType: mediaType, ExpiryDuration: time.Minute}
			if _, _, err := signer.Sign(context.Background(), target, options); err != nil {
				t.Fatal(err)
			}
			a := r.sent(t)
			check(t, a, target, begin, time.Minute)
			if a.Encoding != encoding || a.Algorithm != "ECDSA-SHA-384" {
				t.Errorf("%s was read as %+v", mediaType, a)
			}
		}
	}
}
