package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/imgcrypt/v2"
	"github.com/containerd/typeurl/v2"
	"github.com/containers/ocicrypt/blockcipher"
	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	settings "github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/containerd"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// A node is a containerd that opens encrypted images with a key in a token.
type node struct {
	*containerd.Daemon
	token     *softhsmtest.Token
	settings  string // the config file of hsm-image there
	registry  string
	public    string // PEM file of the recipient's key
	verifiers string // folder of image verifiers
}

// newNode starts a registry and a containerd with the drop-in that hsm-image prints, and more of one.
func newNode(t *testing.T, more string) *node {
	t.Helper()
	token, dir := softhsmtest.NewToken(t, "node"), t.TempDir()
	for _, name := range []string{"MODULE_PATH", "TOKEN", "SLOT_ID", "PIN", "PIN_SOURCE", "LOG", "TIMEOUT"} {
		softhsmtest.Setenv(t, "NOTATION_HSM_"+name, "") // whatever the developer has set
	}
	n := &node{token: token, settings: filepath.Join(dir, "config.yaml"), public: filepath.Join(dir, "public.pem"),
		registry: oci.StartRegistry(t)}
	n.configure(t, n.pinSource(t))
	softhsmtest.Setenv(t, "NOTATION_HSM_CONFIG", n.settings)
	key := strings.TrimSpace(softhsmtest.Run(t, softhsmtest.Build(t, "notation-hsm"), "key", "generate", "--spec",
		"RSA-2048", "--usage", "decrypt", "--label", "node"))
	softhsmtest.Write(t, n.public, softhsmtest.Run(t, softhsmtest.Build(t, "notation-hsm"), "cert", "export", "--public",
		key))
	softhsmtest.Setenv(t, "NOTATION_HSM_CONFIG", "") // containerd has no such variable
	n.verifiers = t.TempDir()
	n.Daemon = containerd.Start(t, containerd.Options{Verifiers: n.verifiers, Config: func(root string) string {
		return softhsmtest.Run(t, softhsmtest.Build(t, "hsm-image"), "containerd-config", "--config", n.settings, "--root",
			root) + more
	}})
	return n
}

// pinSource writes the PIN into a file.
func (n *node) pinSource(t *testing.T) string {
	t.Helper()
	file := filepath.Join(filepath.Dir(n.settings), "pin")
	softhsmtest.Write(t, file, softhsmtest.PIN)
	return "file:" + file
}

// configure writes the node's settings.
func (n *node) configure(t *testing.T, pinSource string) {
	t.Helper()
	softhsmtest.Write(t, n.settings, fmt.Sprintf("module-path: %s\ntoken: %s\npin-source: %s\n", n.token.Module,
		n.token.Label, pinSource))
}

// A layer is on its way to a registry.
type layer struct {
	mediaType string
	data      []byte
	diffID    digest.Digest
	options   blockcipher.LayerBlockCipherOptions // once it is encrypted
}

// newLayer makes a layer of one file, compressed as its media type says.
func newLayer(t *testing.T, mediaType, name string, text []byte) *layer {
	t.Helper()
	var archive, compressed bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}),
		second(w.Write(text)), w.Close()); err != nil {
		t.Fatal(err)
	}
	l := &layer{mediaType: mediaType, data: archive.Bytes(), diffID: digest.FromBytes(archive.Bytes())}
	switch mediaType {
	case ocispec.MediaTypeImageLayerGzip:
		w := gzip.NewWriter(&compressed)
		if err := errors.Join(second(w.Write(l.data)), w.Close()); err != nil {
			t.Fatal(err)
		}
		l.data = compressed.Bytes()
	case ocispec.MediaTypeImageLayerZstd:
		w, err := zstd.NewWriter(&compressed)
		if err := errors.Join(err, second(w.Write(l.data)), w.Close()); err != nil {
			t.Fatal(err)
		}
		l.data = compressed.Bytes()
	}
	return l
}

func second[T any](_ T, err error) error { return err }

// encrypt encrypts a layer as ocicrypt does.
func (l *layer) encrypt(t *testing.T) *layer {
	t.Helper()
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		t.Fatal(err)
	}
	encrypted, finish, err := handler.Encrypt(bytes.NewReader(l.data), blockcipher.AES256CTR)
	if err != nil {
		t.Fatal(err)
	}
	if l.data, err = io.ReadAll(encrypted); err != nil {
		t.Fatal(err)
	}
	if l.options, err = finish(); err != nil {
		t.Fatal(err)
	}
	l.mediaType += "+encrypted"
	return l
}

// annotations wraps the layer's key.
func (l *layer) annotations(t *testing.T, wrap wrap) map[string]string {
	t.Helper()
	private, err := json.Marshal(l.options.Private)
	if err != nil {
		t.Fatal(err)
	}
	public, err := json.Marshal(l.options.Public)
	if err != nil {
		t.Fatal(err)
	}
	name, packet, err := wrap(private)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		name:                                   base64.StdEncoding.EncodeToString(packet),
		"org.opencontainers.image.enc.pubopts": base64.StdEncoding.EncodeToString(public),
	}
}

// wrap closes a layer's key for a recipient, and names the annotation that it belongs in.
type wrap func(options []byte) (annotation string, packet []byte, err error)

// wrapJWE wraps as skopeo does with --encryption-key jwe:public.pem.
func wrapJWE(public string) wrap {
	return func(options []byte) (string, []byte, error) {
		pem, err := os.ReadFile(public)
		if err != nil {
			return "", nil, err
		}
		packet,
			err := jwe.NewKeyWrapper().WrapKeys(&config.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {pem}}},
			options)
		return "org.opencontainers.image.enc.keys.jwe", packet, err
	}
}

// wrapHSM wraps as notation-hsm's key provider does.
func wrapHSM(public string) wrap {
	return func(options []byte) (string, []byte, error) {
		to, err := layerkey.ParseRecipients(context.Background(), nil, []string{"pubkey:" + public + "?oaep=sha1"},
			settings.Flags)
		if err != nil {
			return "", nil, err
		}
		packet, err := layerkey.Seal(options, to)
		return layerkey.Annotation, packet, err
	}
}

// push pushes an image of encrypted layers.
func (n *node) push(t *testing.T, name string, wrap wrap, layers ...*layer) (reference string) {
	t.Helper()
	reference = n.registry + "/" + name + ":1"
	repository, err := oci.Open(reference)
	if err != nil {
		t.Fatal(err)
	}
	var descriptors []ocispec.Descriptor
	var diffIDs []digest.Digest
	for _, l := range layers {
		d := oci.Descriptor(l.mediaType, l.data)
		if err := repository.Push(t.Context(), d, bytes.NewReader(l.data)); err != nil {
			t.Fatal(err)
		}
		d.Annotations = l.annotations(t, wrap)
		descriptors, diffIDs = append(descriptors, d), append(diffIDs, l.diffID)
	}
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := oci.PushAll(t.Context(), repository, map[string][]byte{ocispec.MediaTypeImageConfig: config}); err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: oci.Descriptor(ocispec.MediaTypeImageConfig, config), Layers: descriptors,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oci.Push(t.Context(), repository, ocispec.MediaTypeImageManifest, manifest); err != nil {
		t.Fatal(err)
	}
	return reference
}

// holds returns the files of a node's containerd in which the first line of a text is. containerd may remove some
// meanwhile.
func (n *node) holds(t *testing.T, text []byte) (files []string) {
	t.Helper()
	if err := filepath.WalkDir(n.Root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, text[:len(rand.Text())]) {
			files = append(files, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return files
}

// refused verifies that nothing of an image is there after its pull has failed. containerd removes the files of a
// snapshot that it drops when it next collects garbage, which is soon.
func (n *node) refused(t *testing.T, secret []byte, err error, say string) {
	t.Helper()
	if err == nil {
		t.Error("the image was pulled")
	} else if !strings.Contains(err.Error(), say) {
		t.Errorf("%v\ndoes not say %q", err, say)
	}
	if images, snapshots := n.Images(t), n.Snapshots(t); len(images) != 0 || len(snapshots) != 0 {
		t.Errorf("there are images %q and snapshots %q", images, snapshots)
	}
	for deadline := time.Now().Add(10 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		files := n.holds(t, secret)
		if len(files) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the layer's text is in %q", files)
		}
	}
}

// secret is a text that is nowhere else, longer than what the cipher holds back until it knows the end.
func secret() []byte { return bytes.Repeat([]byte(rand.Text()+"\n"), 1000) }

var layerTypes = []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd}

// localPull has containerd's CRI pull by itself, with a payload for stream processors, and not through the transfer
// service.
const localPull = "\n[plugins.'io.containerd.cri.v1.images']\nuse_local_image_pull = true\n"

// TestContainerdDecoder shows that containerd opens layers of all compressions with the key in the token, whichever way
// it pulls and whoever wrapped the key, several images at once, and that what it downloads stays encrypted.
func TestContainerdDecoder(t *testing.T) {
	softhsmtest.Parallel(t)
	for name, more := range map[string]string{"transfer service": "", "local pull": localPull} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, more)
			text := secret()
			pulls := []func(testing.TB, string) error{n.PullCRI, n.PullCRI, n.Pull}
			var all sync.WaitGroup
			for i, wrap := range []wrap{wrapJWE(n.public), wrapHSM(n.public), wrapHSM(n.public)} {
				var layers []*layer
				for j, mediaType := range layerTypes {
					layers = append(layers, newLayer(t, mediaType, fmt.Sprintf("%d-%d.txt", i, j), text).encrypt(t))
				}
				reference := n.push(t, fmt.Sprintf("app%d", i), wrap, layers...)
				all.Go(func() {
					if err := pulls[i](t, reference); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if t.Failed() {
				t.Fatal(n.Log())
			}
			copies := map[string]int{}
			for _, file := range n.holds(t, text) {
				copies[filepath.Base(file)]++
			}
			for i := range pulls {
				for j := range layerTypes {
					file := fmt.Sprintf("%d-%d.txt", i, j)
					if copies[file] != 3-j { // each snapshot of the native snapshotter is a copy of the one below it
						t.Errorf("%s is in %d snapshots", file, copies[file])
					}
					delete(copies, file)
				}
			}
			if len(copies) != 0 {
				t.Errorf("the text is also in %v", copies)
			}
		})
	}
}

// TestContainerdDecoderPublished shows that what hsm-image encrypts is what a node opens, with no key named: its
// token's is found by kid.
func TestContainerdDecoderPublished(t *testing.T) {
	softhsmtest.Parallel(t)
	n := newNode(t, "")
	softhsmtest.Setenv(t, "TMPDIR", t.TempDir())
	text := rand.Text()
	if _, err := oci.PushImage(t.Context(), n.registry+"/app:plain", text); err != nil {
		t.Fatal(err)
	}
	reference := n.registry + "/app:encrypted"
	softhsmtest.Run(t, softhsmtest.Build(t, "hsm-image"), "encrypt", "docker://"+n.registry+"/app:plain", "docker://"+
		reference, "--recipient",
		"pubkey:"+n.public+"?oaep=sha1", "--src-tls-verify=false", "--dest-tls-verify=false")
	if err := n.PullCRI(t, reference); err != nil {
		t.Error(err)
	}
	if files := n.holds(t, []byte(text)); len(files) != 1 || filepath.Base(files[0]) != "hello.txt" {
		t.Errorf("the text is in %q", files)
	}
}

// TestContainerdDecoderRecipients shows that an image is opened whose layers are there from before, encrypted for
// someone else.
func TestContainerdDecoderRecipients(t *testing.T) {
	softhsmtest.Parallel(t)
	n := newNode(t, "")
	text := secret()
	l := newLayer(t, ocispec.MediaTypeImageLayerGzip, "a.txt", text).encrypt(t)
	n.refused(t, text, n.Pull(t, n.push(t, "theirs", wrapHSM(stranger(t)), l)), "no key here opens the layer")
	if err := n.Pull(t, n.push(t, "ours", wrapHSM(n.public), l)); err != nil {
		t.Error(err)
	}
}

// TestContainerdDecoderMisled shows that what an untrusted image brings into the content store keeps no layer from
// being opened. Files there are read in the order of their names, those of that image first.
func TestContainerdDecoderMisled(t *testing.T) {
	softhsmtest.Parallel(t)
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "RSA-2048")
	key := u.Keys["RSA-2048"]
	l := newLayer(t, ocispec.MediaTypeImageLayer, "a.txt", secret()).encrypt(t)
	softhsmtest.Setenv(t, "STREAM_PROCESSOR_MEDIATYPE", l.mediaType)
	image := func(layers ...*layer) ocispec.Manifest {
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
			Config: oci.Descriptor(ocispec.MediaTypeImageConfig, []byte("{}"))}
		for _, l := range layers {
			d := oci.Descriptor(l.mediaType, l.data)
			d.Annotations = l.annotations(t, wrapHSM(key.Public))
			m.Layers = append(m.Layers, d)
		}
		return m
	}
	changed := *l
	changed.options.Public.Hmac = make([]byte, sha256.Size)
	// Whoever made that image can encrypt to the key as well, and claim that what begins like the layer is what came out.
	alike := *l
	alike.data = append(bytes.Clone(l.data), 0)
	alike.options.Private.SymmetricKey = make([]byte, 32)
	mac := hmac.New(sha256.New, alike.options.Private.SymmetricKey)
	mac.Write(alike.data)
	alike.options.Public.Hmac = mac.Sum(nil)

	for name, strangers := range map[string]any{
		"nothing": nil,
		"a configuration": struct {
			ocispec.Manifest
			RootFS ocispec.RootFS `json:"rootfs"`
		}{Manifest: image(&changed)},
		"another HMAC":        image(&changed),
		"one that is alike":   image(&alike),
		"all, and ours twice": image(&changed, &alike, l),
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			store := filepath.Join(root, "io.containerd.content.v1.content")
			softhsmtest.WriteJSON(t, filepath.Join(store, "blobs", "sha256", "0"), strangers)
			oci.WriteBlob(t, store, l.mediaType, l.data)
			oci.WriteBlob(t, store, l.mediaType, alike.data)
			softhsmtest.WriteJSON(t, filepath.Join(store, "blobs", "sha256", "z"), image(l))
			plain, stderr, err := softhsmtest.Try(t, string(l.data), u.HSMImage, "containerd-decoder", "--root", root,
				"--key", key.URI)
			if err != nil || digest.FromString(plain) != l.diffID {
				t.Errorf("%v, and %d bytes\n%s", err, len(plain), stderr)
			}
			forged := bytes.Clone(l.data)
			forged[len(forged)-1] ^= 1
			if plain, _, err := softhsmtest.Try(t, string(forged), u.HSMImage, "containerd-decoder", "--root", root, "--key",
				key.URI); err == nil || digest.FromString(plain) == l.diffID {
				t.Errorf("a changed layer was opened")
			}
		})
	}
}

// stranger makes a key that no token here has, and returns the file of its public half.
func stranger(t *testing.T) string {
	t.Helper()
	key, public := filepath.Join(t.TempDir(), "key.pem"), filepath.Join(t.TempDir(), "public.pem")
	softhsmtest.Run(t, softhsmtest.Program(t, "openssl"), "genpkey", "-algorithm", "RSA", "-out", key)
	softhsmtest.Run(t, softhsmtest.Program(t, "openssl"), "pkey", "-in", key, "-pubout", "-out", public)
	return public
}

// TestContainerdDecoderRefuses shows that an image whose key cannot be used is not there, nor any of its text, and why.
func TestContainerdDecoderRefuses(t *testing.T) {
	softhsmtest.Parallel(t)
	n := newNode(t, "")
	text := secret()
	var layers []*layer
	for i, mediaType := range layerTypes {
		layers = append(layers, newLayer(t, mediaType, fmt.Sprintf("%d.txt", i), text).encrypt(t))
	}
	reference := n.push(t, "app", wrapJWE(n.public), layers...)
	pin := n.pinSource(t)
	for _, test := range []struct {
		name, pinSource, say string
		pull                 func(testing.TB, string) error
	}{
		{"no PIN", "env:NOBODY_SETS_THIS", "cannot read the PIN: the environment variable NOBODY_SETS_THIS is not set",
			n.PullCRI},
		{"no PIN file", "file:/nonexistent/pin", "cannot read the PIN: open /nonexistent/pin", n.PullCRI},
		{"no PIN, with ctr", "env:NOBODY_SETS_THIS",
			"cannot read the PIN: the environment variable NOBODY_SETS_THIS is not set", n.Pull},
	} {
		t.Run(test.name, func(t *testing.T) {
			n.configure(t, test.pinSource)
			n.refused(t, text, test.pull(t, reference), test.say)
		})
	}
	n.configure(t, pin)
	theirs := stranger(t)
	for name, wrap := range map[string]wrap{"jwe": wrapJWE(theirs), "hsm": wrapHSM(theirs)} {
		t.Run("another's "+name, func(t *testing.T) {
			// No layer of app's: as long as containerd has app's manifest, that opens them.
			l := newLayer(t, ocispec.MediaTypeImageLayerGzip, "a.txt", text).encrypt(t)
			n.refused(t, text, n.PullCRI(t, n.push(t, "another", wrap, l)), "opens")
		})
	}
	t.Run("verifier", func(t *testing.T) {
		deny := filepath.Join(n.verifiers, "deny")
		if err := os.WriteFile(deny, []byte("#!/bin/sh\necho not today\nexit 1\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		n.refused(t, text, n.PullCRI(t, reference), "not today")
		if err := os.Remove(deny); err != nil {
			t.Fatal(err)
		}
	})
	if err := n.PullCRI(t, reference); err != nil {
		t.Errorf("with everything in order: %v", err)
	}
}

// TestContainerdDecoderModule shows that an image is not there when the module hangs or crashes while it opens the key.
// Whether containerd hears why the program has crashed depends on who is faster.
func TestContainerdDecoderModule(t *testing.T) {
	softhsmtest.Parallel(t)
	n := newNode(t, "")
	text := secret()
	reference := n.push(t, "app", wrapHSM(n.public),
		newLayer(t, ocispec.MediaTypeImageLayerGzip, "a.txt", text).encrypt(t))
	shim := softhsmtest.Shim(t, n.token.Module)
	for how, say := range map[string]string{"hang": "did not answer within 5s while decrypting", "crash": ""} {
		t.Run(how, func(t *testing.T) {
			softhsmtest.Write(t, n.settings, fmt.Sprintf(
				"module-path: %s\ntimeout: 5s\npin-source: %s\ntokens:\n  node:\n    env:\n      SHIM_MODULE: %s\n      "+
					"SHIM_FAULT: C_Decrypt:%s\n",
				shim, n.pinSource(t), n.token.Module, how))
			n.refused(t, text, n.PullCRI(t, reference), say)
		})
	}
}

// TestContainerdDecoderForged shows that nobody who can write to the registry gets a layer unpacked that was not
// encrypted as it is. They can change any bit of what they know of it, as the cipher is a stream, and put into the
// image's configuration what comes out then.
func TestContainerdDecoderForged(t *testing.T) {
	softhsmtest.Parallel(t)
	n := newNode(t, "")
	for name, forge := range map[string]func(encrypted []byte) []byte{
		"changed":     func(encrypted []byte) []byte { encrypted[1000] ^= 1; return encrypted },
		"cut short":   func(encrypted []byte) []byte { return encrypted[:len(encrypted)-1024] },
		"made longer": func(encrypted []byte) []byte { return append(encrypted, make([]byte, 1024)...) },
		"emptied":     func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			text := secret()
			l := newLayer(t, ocispec.MediaTypeImageLayer, "a.txt", text)
			// archives may be padded: so this is one even without what is held back
			l.data = append(l.data, make([]byte, 1<<17)...)
			l.encrypt(t)
			l.data = forge(l.data)
			l.diffID = digest.FromBytes(l.decrypted(t))
			n.refused(t, text, n.PullCRI(t, n.push(t, "forged", wrapJWE(n.public), l)), "")
		})
	}
	t.Run("another nonce", func(t *testing.T) {
		text := secret()
		l := newLayer(t, ocispec.MediaTypeImageLayer, "a.txt", text).encrypt(t)
		l.options.Public.CipherOptions = map[string][]byte{"nonce": make([]byte, 16)}
		l.diffID = digest.FromBytes(l.decrypted(t))
		n.refused(t, text, n.PullCRI(t, n.push(t, "forged", wrapJWE(n.public), l)), "it has a nonce of its own")
	})
}

// decrypted returns what ocicrypt gives out of a layer, be it damaged or not, to a reader like ours.
func (l *layer) decrypted(t *testing.T) []byte {
	t.Helper()
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		t.Fatal(err)
	}
	plain, _, err := handler.Decrypt(bytes.NewReader(l.data), l.options)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	_, _ = io.Copy(&out, bufio.NewReaderSize(plain, 64<<10)) // the error is what containerd would have to notice
	return out.Bytes()
}

// TestContainerdDecoderMemory shows that a layer's size does not matter to the decoder.
func TestContainerdDecoderMemory(t *testing.T) {
	softhsmtest.Parallel(t)
	const size, limit = 96 << 20, 64 << 20 // bytes of a layer, and of memory
	n := newNode(t, "")
	for _, mediaType := range layerTypes {
		l := newLayer(t, mediaType, "a", make([]byte, size)).encrypt(t)
		encrypted := filepath.Join(t.TempDir(), "layer")
		softhsmtest.Write(t, encrypted, string(l.data))
		d := oci.Descriptor(l.mediaType, l.data)
		d.Annotations = l.annotations(t, wrapHSM(n.public))
		stdin, err := os.Open(encrypted)
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		cmd := exec.Command(softhsmtest.Build(t, "hsm-image"), "containerd-decoder")
		cmd.Env = append(softhsmtest.Environ(t), "NOTATION_HSM_CONFIG="+n.settings)
		cmd.ExtraFiles = []*os.File{payload(t, d)}
		hash := digest.Canonical.Digester()
		used := 0
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, writer(func(p []byte) (int, error) {
			used = max(used, memory(cmd.Process.Pid))
			return hash.Hash().Write(p)
		}), os.Stderr
		start := time.Now()
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d MiB in %v with %d MiB of memory", mediaType, size>>20, time.Since(start), used>>20)
		if hash.Digest() != l.diffID {
			t.Errorf("%s: it became %s", mediaType, hash.Digest())
		}
		if used == 0 || used > limit {
			t.Errorf("%s: it took %d MiB of memory", mediaType, used>>20)
		}
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// memory returns the most memory that a process has had so far, in bytes, or 0 if it has ended.
func memory(pid int) (peak int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if _, after, ok := strings.Cut(string(status), "VmHWM:"); ok {
		_, _ = fmt.Sscan(after, &peak)
	}
	return peak << 10
}

// payload is the end for reading of a pipe with containerd's payload for a layer.
func payload(t *testing.T, d ocispec.Descriptor) *os.File {
	t.Helper()
	message, err := typeurl.MarshalAnyToProto(&imgcrypt.Payload{Descriptor: d})
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	go func() {
		_, _ = w.Write(data)
		w.Close()
	}()
	return r
}

// TestContainerdConfigRefuses shows that what would not work on a node, or show a PIN there, is not printed.
func TestContainerdConfigRefuses(t *testing.T) {
	softhsmtest.Parallel(t)
	program := softhsmtest.Build(t, "hsm-image")
	for args, say := range map[string]string{
		"--path hsm-image":                    "hsm-image is not a full path",
		"--root var":                          "var is not a full path",
		"--config c.yaml":                     "c.yaml is not a full path",
		"--key pkcs11:object=a?pin-value=123": "could be read by others",
		"more":                                "see 'hsm-image containerd-config --help'",
	} {
		stdout, stderr, err := softhsmtest.Try(t, "", program, append([]string{"containerd-config"},
			strings.Fields(args)...)...)
		if err == nil || stdout != "" || !strings.Contains(stderr, say) {
			t.Errorf("%s: %v\n%s%s", args, err, stdout, stderr)
		}
	}
}
