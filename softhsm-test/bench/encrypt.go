package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

const layerSize = 2 << 30 // bytes

// images measures how a large image is encrypted and decrypted with a key on the token, against the same copy library
// with a key file, and what goes over the wire when such an image gets another recipient.
func (b *bench) images() {
	f := fixture{bench: b}
	dir := f.TempDir()
	ours, skopeo, private := filepath.Join(dir, "hsm-image"), filepath.Join(dir, "skopeo"),
		filepath.Join(dir, "private.pem")
	for out, pkg := range map[string]string{ours: "./cmd/hsm-image", skopeo: "./softhsm-test/skopeo"} {
		softhsmtest.Run(f, "go", slices.Concat([]string{"build", "-C", repository(f), "-tags", softhsmtest.Tags, "-trimpath"},
			softhsmtest.Hardened, []string{"-o", out, pkg})...)
	}
	public := func(label string) (uri, file string) {
		uri = strings.TrimSpace(softhsmtest.Run(f, b.parts.plugin, "key", "generate", "--token", tokenLabel, "--usage",
			"decrypt", "--label", label))
		file = filepath.Join(dir, label+".pem")
		write(f, file, softhsmtest.Run(f, b.parts.plugin, "cert", "export", "--public", uri))
		return uri, file
	}
	uri, recipient := public("image")
	_, other := public("other")
	file := filepath.Join(dir, "public.pem")
	softhsmtest.Run(f, "openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private)
	softhsmtest.Run(f, "openssl", "pkey", "-in", private, "-pubout", "-out", file)

	source := "oci:" + filepath.Join(dir, "source") + ":app"
	writeLargeImage(f, filepath.Join(dir, "source"))
	place := func(name string) string { return filepath.Join(dir, name) }
	layout := func(name string) string { return "oci:" + place(name) + ":app" }
	b.copies("encrypting a layer of 2 GiB", []string{place("ours"), place("theirs")},
		[]string{ours, "encrypt", source, layout("ours"), "--recipient", "pubkey:" + recipient},
		[]string{skopeo, "--encryption-key", "jwe:" + file, source, layout("theirs")})
	b.copies("decrypting a layer of 2 GiB", []string{place("plain"), place("plain")},
		[]string{ours, "decrypt", layout("ours"), layout("plain"), "--key", uri},
		[]string{skopeo, "--decryption-key", private, layout("theirs"), layout("plain")})

	registry, transferred := oci.CountingProxy(f, oci.StartRegistry(f))
	b.start(contender{}, []string{skopeo, layout("ours"), "docker://" + registry + "/app:1"})
	transferred.Store(0)
	b.start(contender{}, []string{ours, "recipients", "add", "docker://" + registry + "/app:1", "--tls-verify=false",
		"--recipient", "pubkey:" + other, "--key", uri})
	moved := transferred.Load()
	b.add(row{name: "`recipients add` on 2 GiB: bytes moved", ours: fmt.Sprint(moved),
		goal: goal(moved < 1<<20, "under 1 MiB")})
}

// copies measures our command against theirs. Each writes an image to its place, which is empty before.
func (b *bench) copies(name string, places []string, commands ...[]string) {
	const rounds = 5
	results := make([]measured, len(commands))
	for round := range rounds {
		for turn := range commands {
			i := (round + turn) % len(commands)
			if err := os.RemoveAll(places[i]); err != nil {
				panic(err)
			}
			var nanoseconds, kibibytes float64
			if _, err := fmt.Sscan(b.start(contender{}, append([]string{b.parts.run, os.DevNull}, commands[i]...)), &nanoseconds,
				&kibibytes); err != nil {
				panic(err)
			}
			results[i].milliseconds = append(results[i].milliseconds, nanoseconds/1e6)
			results[i].mebibytes = append(results[i].mebibytes, kibibytes/1024)
		}
	}
	throughput := func(m measured) (f figures) {
		for _, ms := range m.milliseconds {
			f = append(f, layerSize/1e6/(ms/1e3))
		}
		return f
	}
	r := throughput(results[0])
	b.add(row{name: name + ": MB/s", ours: spread(r), other: "key file: " + spread(throughput(results[1]))}.
		ratio(r.ratio(throughput(results[1])), "a key file", atLeast(0.95)))
	peak := results[0].mebibytes.quantile(1)
	b.add(row{name: name + ": peak memory, MiB", ours: fmt.Sprintf("%.1f", peak),
		other: fmt.Sprintf("key file: %.1f", results[1].mebibytes.quantile(1)),
		goal:  goal(peak < 128, "under 128")})
}

// writeLargeImage writes an OCI layout with one image, whose layer is a file with a hole: it reads as gzip to those who
// look at its first bytes, as the copy library does, which therefore leaves it as it is.
func writeLargeImage(f fixture, dir string) {
	blobs := filepath.Join(dir, ocispec.ImageBlobsDir, "sha256")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		f.Fatal(err)
	}
	layer := filepath.Join(dir, "layer")
	write(f, layer, "\x1f\x8b\x08")
	if err := os.Truncate(layer, layerSize); err != nil {
		f.Fatal(err)
	}
	file, err := os.Open(layer)
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close()
	d, err := digest.FromReader(file)
	if err != nil {
		f.Fatal(err)
	}
	if err := os.Rename(layer, filepath.Join(blobs, d.Encoded())); err != nil {
		f.Fatal(err)
	}
	blob := func(mediaType string, value any) ocispec.Descriptor {
		data, err := json.Marshal(value)
		if err != nil {
			f.Fatal(err)
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		write(f, filepath.Join(blobs, d.Digest.Encoded()), string(data))
		return d
	}
	v2 := specs.Versioned{SchemaVersion: 2}
	config := blob(ocispec.MediaTypeImageConfig,
		ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
			RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{d}}})
	manifest := blob(ocispec.MediaTypeImageManifest,
		ocispec.Manifest{Versioned: v2, MediaType: ocispec.MediaTypeImageManifest, Config: config,
			Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: layerSize}}})
	manifest.Annotations = map[string]string{ocispec.AnnotationRefName: "app"}
	for name, value := range map[string]any{
		ocispec.ImageIndexFile:  ocispec.Index{Versioned: v2, Manifests: []ocispec.Descriptor{manifest}},
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
	} {
		data, err := json.Marshal(value)
		if err != nil {
			f.Fatal(err)
		}
		write(f, filepath.Join(dir, name), string(data))
	}
}
