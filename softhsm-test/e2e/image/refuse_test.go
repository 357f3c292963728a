package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

const (
	layerSize  = 3 << 20 // bytes; enough for plain text to reach the disk before a layer's end
	ourPackets = "org.opencontainers.image.enc.keys.provider.hsm"
	pubopts    = "org.opencontainers.image.enc.pubopts"
)

// TestImageRefuse has decrypting fail in all ways, on the way to each kind of place. The error names the image, and the
// layer if one was changed; there is no plain text anywhere, and what was there before is as it was.
func TestImageRefuse(t *testing.T) {
	softhsmtest.Parallel(t)
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "EC-256", "EC-384")
	key, other := u.Keys["EC-256"], u.Keys["EC-384"]
	base := t.TempDir()
	source, encrypted := filepath.Join(base, "source"), filepath.Join(base, "encrypted")
	oci.WriteImage(t, source, "app", layerSize, "linux/amd64")
	softhsmtest.Run(t, u.HSMImage, "encrypt", "oci:"+source+":app", "oci:"+encrypted+":app", "--recipient", "pubkey:"+
		key.Public)

	// change makes a copy of the encrypted image with another manifest.
	change := func(name string, how func(dir string, m *ocispec.Manifest)) string {
		dir := filepath.Join(base, name)
		if err := os.CopyFS(dir, os.DirFS(encrypted)); err != nil {
			t.Fatal(err)
		}
		m := oci.ReadManifest(t, dir, "app")
		how(dir, &m)
		oci.ReplaceManifest(t, dir, "app", m)
		return dir
	}
	// changeLayer changes the upper layer, and its digest too if the one who does it thinks of that.
	changeLayer := func(name string, newDigest bool, how func([]byte) []byte) string {
		return change(name, func(dir string, m *ocispec.Manifest) {
			l := &m.Layers[1]
			data, err := os.ReadFile(oci.BlobPath(dir, l.Digest))
			if err != nil {
				t.Fatal(err)
			}
			data = how(data)
			if newDigest {
				l.Digest, l.Size = digest.FromBytes(data), int64(len(data))
			}
			softhsmtest.WriteFile(t, oci.BlobPath(dir, l.Digest), data)
		})
	}
	flip := func(data []byte) []byte { data[len(data)-100] ^= 1; return data }
	cut := func(data []byte) []byte { return data[:len(data)-1000] }
	setOptions := func(m *ocispec.Manifest, set func(map[string]any)) {
		options := map[string]any{}
		data, err := base64.StdEncoding.DecodeString(m.Layers[1].Annotations[pubopts])
		if err == nil {
			err = json.Unmarshal(data, &options)
		}
		if err != nil {
			t.Fatal(err)
		}
		set(options)
		if data, err = json.Marshal(options); err != nil {
			t.Fatal(err)
		}
		m.Layers[1].Annotations[pubopts] = base64.StdEncoding.EncodeToString(data)
	}

	const upper = `layer 1 \(sha256:[0-9a-f]{64}\) of oci:.*:app`
	for _, fault := range []struct {
		name, image, key, environment, want string
	}{
		{"wrong key", encrypted, other.URI, "",
			`error: layer 0 \(sha256:[0-9a-f]{64}\) of oci:.*:app: no key here opens the layer: it is encrypted for kid `},
		{"no such key", encrypted, "pkcs11:token=node;object=none", "",
			`error: layer 0 .* of oci:.*: there is no key "none" on token "node"`},
		{"no token", encrypted, "pkcs11:token=none;object=none", "", `error: layer 0 .* of oci:.*no token matches`},
		{"wrong PIN", encrypted, key.URI, "NOTATION_HSM_PIN=0000", `error: layer 0 .* of oci:.*CKR_PIN_INCORRECT`},
		{"no PIN", encrypted, key.URI, "NOTATION_HSM_PIN=", `error: layer 0 .* of oci:.*PIN`},
		{"changed wrapped key", change("wrapped", func(_ string, m *ocispec.Manifest) {
			packet, err := base64.StdEncoding.DecodeString(m.Layers[1].Annotations[ourPackets])
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.Index(packet, []byte(`"ciphertext":"`)) + 20
			packet[at] = map[bool]byte{true: 'B', false: 'A'}[packet[at] == 'A']
			m.Layers[1].Annotations[ourPackets] = base64.StdEncoding.EncodeToString(packet)
		}), key.URI, "", "error: " + upper + ": .*annotation was changed"},
		{"no wrapped key", change("removed", func(_ string,
			m *ocispec.Manifest) {
			delete(m.Layers[1].Annotations, ourPackets)
		}),
			key.URI, "", "error: " + upper + ": the layer has no wrapped key"},
		{"no options", change("options", func(_ string, m *ocispec.Manifest) { delete(m.Layers[1].Annotations, pubopts) }),
			key.URI, "", "error: " + upper + ": the annotation .*pubopts is damaged"},
		{"short nonce", change("nonce", func(_ string, m *ocispec.Manifest) {
			setOptions(m, func(o map[string]any) { o["cipheroptions"] = map[string][]byte{"nonce": {1}} })
		}), key.URI, "", "error: " + upper + ": the annotation .*pubopts was changed"},
		{"another nonce", change("nonce16", func(_ string, m *ocispec.Manifest) {
			setOptions(m, func(o map[string]any) { o["cipheroptions"] = map[string][]byte{"nonce": make([]byte, 16)} })
		}), key.URI, "", "error: " + upper + ": the annotation .*pubopts was changed"},
		{"changed HMAC", change("hmac", func(_ string, m *ocispec.Manifest) {
			setOptions(m, func(o map[string]any) { o["hmac"] = make([]byte, 32) })
		}), key.URI, "", "error: " + upper + " was changed or truncated: it does not match its HMAC"},
		{"changed layer", changeLayer("flipped", false, flip), key.URI, "",
			"error: " + upper + " was changed or truncated: it does not match its digest"},
		{"changed layer, new digest", changeLayer("flipped-new", true, flip), key.URI, "",
			"error: " + upper + " was changed or truncated: it does not match its HMAC"},
		{"truncated layer", changeLayer("cut", false, cut), key.URI, "",
			"error: " + upper + " was changed or truncated: it does not match its digest"},
		{"truncated layer, new digest", changeLayer("cut-new", true, cut), key.URI, "",
			"error: " + upper + " was changed or truncated: it does not match its HMAC"},
		{"missing layer", change("missing", func(dir string,
			m *ocispec.Manifest) {
			os.Remove(oci.BlobPath(dir, m.Layers[1].Digest))
		}),
			key.URI, "", "error: decrypting oci:.*:app failed: .*no such file"},
	} {
		for _, place := range []string{"oci", "oci, there", "dir", "dir, there", "oci-archive", "docker-archive"} {
			t.Run(fault.name+"/"+place, func(t *testing.T) {
				dir, temporary := t.TempDir(), t.TempDir()
				softhsmtest.Setenv(t, "TMPDIR", temporary)
				if name, value, ok := strings.Cut(fault.environment, "="); ok {
					softhsmtest.Setenv(t, name, value)
				}
				transport, there := strings.CutSuffix(place, ", there")
				to := transport + ":" + filepath.Join(dir, "plain")
				if there { // another image, without the marker
					softhsmtest.Run(t, u.Skopeo, "oci:"+encrypted+":app", to)
				}
				before := oci.Tree(t, dir)
				_, stderr, err := u.Try(t, "decrypt", "oci:"+fault.image+":app", to, "--key", fault.key)
				if err == nil {
					t.Fatal("it was decrypted")
				}
				if !regexp.MustCompile(fault.want).MatchString(stderr) {
					t.Errorf("it said\n%s, not %s", stderr, fault.want)
				}
				if after := oci.Tree(t, dir); after != before {
					t.Errorf("there is now\n%s\nand before was\n%s", after, before)
				}
				if left := append(oci.PlainText(t, dir), oci.PlainText(t, temporary)...); len(left) > 0 {
					t.Errorf("plain text was left in %s", left)
				}
			})
		}
	}
}

// TestImageHang has the module hang when the key is to be used: the command ends in time, and leaves nothing.
func TestImageHang(t *testing.T) {
	token := softhsmtest.NewToken(t, "node")
	u, shim := oci.NewUser(t, token, "EC-256", "EC-384"), softhsmtest.Shim(t, token.Module)
	key := u.Keys["EC-256"]
	t.Chdir(t.TempDir())
	softhsmtest.Setenv(t, "TMPDIR", t.TempDir())
	oci.WriteImage(t, "source", "app", 1000, "linux/amd64")
	softhsmtest.Run(t, u.HSMImage, "encrypt", "oci:source:app", "oci:app:app", "--recipient", "pubkey:"+key.Public)
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", shim)
	softhsmtest.Setenv(t, "SHIM_FAULT", "C_DeriveKey:hang")
	softhsmtest.Setenv(t, "NOTATION_HSM_TIMEOUT", "500ms")
	for _, args := range [][]string{
		{"decrypt", "oci:app:app", "oci:plain:app", "--key", key.URI},
		{"recipients", "add", "oci:app:app", "--recipient", "pubkey:" + u.Keys["EC-384"].Public, "--key", key.URI},
	} {
		before := oci.Tree(t, ".") + oci.Tree(t, softhsmtest.Getenv(t, "TMPDIR"))
		_, stderr, err := u.Try(t, args...)
		if err == nil || !strings.Contains(stderr, "500ms") {
			t.Errorf("hsm-image %s: %v\n%s", args, err, stderr)
		}
		if after := oci.Tree(t, ".") + oci.Tree(t, softhsmtest.Getenv(t, "TMPDIR")); after != before {
			t.Errorf("hsm-image %s: there is now\n%s\nand before was\n%s", args, after, before)
		}
	}
}

// TestImageKeep has images encrypted and decrypted beside others, which stay what they are.
func TestImageKeep(t *testing.T) {
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "EC-256")
	key, dir := u.Keys["EC-256"], t.TempDir()
	t.Chdir(dir)
	oci.WriteImage(t, "source", "app", 1000, "linux/amd64")
	oci.WriteImage(t, "source", "other", 1000, "linux/amd64")
	oci.WriteImage(t, "source", "index", 1000, "linux/amd64", "linux/arm64", "unknown/unknown")
	softhsmtest.WriteFile(t, "precious.txt", []byte("not to be written over"))
	for _, do := range []struct{ args, want string }{
		{"encrypt oci:source:app oci:all:app --recipient pubkey:KEY", "wrote oci:all:app"},
		{"encrypt oci:source:other oci:all:other --recipient pubkey:KEY --layer -1", "wrote oci:all:other"},
		{"encrypt oci:source:index oci:all:index --recipient pubkey:KEY", "attestations of BuildKit left out: 1"},
		{"decrypt oci:all:app oci:all:app-plain --key URI", "wrote"},
		{"decrypt oci:all:app oci:all:app-plain --key URI", "wrote"}, // once more
		{"decrypt oci:all:other oci:all:other-plain --key URI", "wrote"},
		{"decrypt oci:all:index oci:plain:amd64 --key URI --platform linux/amd64", "wrote"},
		{"decrypt oci:all:index docker-archive:amd64.tar --key URI --platform linux/amd64", "wrote"},
		{"decrypt oci:all:index oci-archive:index.tar --key URI", "wrote"},
		{"decrypt oci:all:index dir:index --key URI", "wrote"},
		{"decrypt oci:all:app dir:index --key URI", "wrote"}, // in the place of another

		{"encrypt oci:all:other oci:all:x --recipient pubkey:KEY",
			"error: layer 1 .* of oci:all:other is encrypted already"},
		{"encrypt oci:source:app oci:all:x --recipient pubkey:KEY --layer 2",
			"error: oci:source:app has 2 layers, and none with the index 2"},
		{"encrypt oci:source:app oci:all:x", "error: --recipient is required"},
		{"encrypt oci:source:app docker-daemon:x --recipient pubkey:KEY",
			`error: "docker-daemon:x" does not name an image`},
		{"encrypt oci:source:app docker-archive:x.tar --recipient pubkey:KEY",
			"error: cannot encrypt to docker-archive:x.tar: a docker-archive has no place for wrapped keys"},
		{"encrypt oci:source:app docker://127.0.0.1:1/x@sha256:" + strings.Repeat("0", 64) + " --recipient pubkey:KEY",
			"error: cannot copy to .*: the digest follows from the content"},
		{"encrypt oci:source:none oci:all:x --recipient pubkey:KEY", "error: cannot read oci:source:none"},
		{"decrypt oci:source:app oci:all:x --key URI", "error: oci:source:app has no encrypted layer"},
		{"decrypt oci:all:index docker-archive:x.tar --key URI",
			"error: a docker-archive holds one image, and oci:all:index lists 2"},
		{"decrypt oci:all:index oci:x:x --key URI --platform linux/s390x",
			"error: oci:all:index has no image for linux/s390x\nhint: use one of its platforms: linux/amd64, linux/arm64"},
		{"decrypt oci:all:app docker-archive:amd64.tar --key URI", "error: .* the file exists"},
		{"decrypt oci:all:app oci-archive:precious.txt:x --key URI", "error: .* the file exists"},
		{"decrypt oci:all:app dir:source --key URI", "error: .* the folder holds something else than an image"},
		{"decrypt oci:all:app oci:index:x --key URI", "error: .* the folder holds something else than an image"},
		{"decrypt oci:all:app oci:none/none:x --key URI",
			"error: cannot use oci:none/none:x: its folder does not exist: .*none: no such file or directory"},
		{"decrypt oci:all:app oci-archive:none/x.tar --key URI",
			"error: cannot use oci-archive:none/x.tar: its folder does not exist: .*none: no such file or directory"},
		{"decrypt oci:all:app docker-archive:/dev/null --key URI", "error: .* it is not a file"},
		{"recipients add dir:index --recipient pubkey:KEY --key URI",
			"error: cannot change the recipients of dir:index: it is neither in a registry nor in oci:DIR:TAG"},
		{"recipients add oci:source:app --recipient pubkey:KEY --key URI", "error: oci:source:app has no encrypted layer"},
		{"recipients remove oci:all:app --recipient pubkey:KEY",
			"error: layer 0 .* of oci:all:app: it would have no recipient left"},
		{"recipients remove oci:all:app --recipient NOBODY", "error: NOBODY is no recipient of oci:all:app"},
		{"encrypt oci:source:app oci:apart:app --recipient pubkey:KEY",
			"^warning: recipient [^\n]*\nwrote oci:apart:app\nsignatures"},
		{"encrypt oci:source:app oci:./source/:encrypted --recipient pubkey:KEY",
			"warning: the plain layers are still in the same folder"},
		{"layers oci:all:app --platform x", "error: unknown flag"},
	} {
		nobody := strings.NewReplacer("NOBODY", strings.Repeat("-_aZ", 10)+"aaa")
		do.want = nobody.Replace(do.want)
		args := strings.Fields(strings.NewReplacer("KEY", key.Public, "URI", key.URI).Replace(nobody.Replace(do.args)))
		_, stderr, err := u.Try(t, args...)
		if failed := strings.HasPrefix(do.want, "error:"); failed != (err != nil) ||
			!regexp.MustCompile(do.want).MatchString(stderr) {
			t.Fatalf("hsm-image %s: %v\n%s, not %s", do.args, err, stderr, do.want)
		}
	}
	for tag, want := range map[string]string{"app-plain": "app", "other-plain": "other"} {
		if got, want := fmt.Sprint(oci.LayerDigests(t, "all", tag)), fmt.Sprint(oci.LayerDigests(t, "source",
			want)); got != want {
			t.Errorf("the layers of %s are %s, not %s", tag, got, want)
		}
	}
	encrypted := oci.ReadManifest(t, "all", "other").Layers
	if plain := oci.LayerDigests(t, "source", "other"); encrypted[0].Digest != plain[0] ||
		encrypted[1].Digest == plain[1] {
		t.Errorf("--layer -1 has encrypted other layers: %v", encrypted)
	}
	if all := oci.Tree(t, "."); strings.Contains(all, ".hsm-image-") || strings.Contains(all, "\nx") {
		t.Errorf("something was left in\n%s", all)
	}
	var shown []struct {
		Platform string
		Layers   []struct {
			Digest     digest.Digest
			Encrypted  bool
			Recipients []struct{ Scheme, KID, Recipient string }
		}
	}
	out := softhsmtest.Run(t, u.HSMImage, "layers", "oci:all:index", "--json", "--recipient", "pubkey:"+key.Public)
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		t.Fatal(err)
	}
	if len(shown) != 2 || shown[1].Platform != "linux/arm64" || len(shown[1].Layers) != 2 ||
		!shown[1].Layers[1].Encrypted ||
		shown[1].Layers[1].Recipients[0].Recipient != "pubkey:"+key.Public ||
		shown[1].Layers[1].Recipients[0].Scheme != "provider.hsm" {
		t.Errorf("layers --json printed %s", out)
	}
}

// TestImageDestinationTLS has the destination's registry not be trusted, or have no HTTPS: the error says which flag is
// about that.
func TestImageDestinationTLS(t *testing.T) {
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "EC-256")
	t.Chdir(t.TempDir())
	oci.WriteImage(t, "source", "app", 1000, "linux/amd64")
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it hears of the certificate as well
	for _, address := range []string{strings.TrimPrefix(server.URL, "https://"), oci.StartRegistry(t)} {
		_, stderr, err := u.Try(t, "encrypt", "oci:source:app", "docker://"+address+"/app:1", "--recipient",
			"pubkey:"+u.Keys["EC-256"].Public)
		if err == nil || !strings.Contains(stderr, "--dest-cert-dir") || !strings.Contains(stderr, "--dest-tls-verify") {
			t.Errorf("%v\n%s", err, stderr)
		}
	}
}

// TestImageInterrupt interrupts decrypting when plain text is on the disk already.
func TestImageInterrupt(t *testing.T) {
	softhsmtest.Parallel(t)
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "EC-256")
	key, base := u.Keys["EC-256"], t.TempDir()
	address := oci.StartRegistry(t)
	slow, upstream := slowly(t, address), filepath.Join(base, "source")
	oci.WriteImage(t, upstream, "app", layerSize, "linux/amd64")
	softhsmtest.Run(t, u.HSMImage, "encrypt", "oci:"+upstream+":app", "docker://"+address+"/app:1", "--recipient",
		"pubkey:"+key.Public, "--dest-tls-verify=false")
	for _, place := range []string{"oci", "dir", "oci-archive", "docker-archive"} {
		for _, signal := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
			interrupted(t, u, place, signal, "docker://"+slow+"/app:1", key, func() bool { return true })
		}
	}

	// A read from a file that does not come back: the process ends without the copy library.
	layout := filepath.Join(base, "encrypted")
	softhsmtest.Run(t, u.HSMImage, "encrypt", "oci:"+upstream+":app", "oci:"+layout+":app", "--recipient", "pubkey:"+
		key.Public)
	layer := oci.BlobPath(layout, oci.ReadManifest(t, layout, "app").Layers[0].Digest)
	data, err := os.ReadFile(layer)
	if err == nil {
		err = os.Remove(layer)
	}
	if err == nil {
		err = syscall.Mkfifo(layer, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(layer, os.O_RDWR, 0) // never ends for its reader
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	var written atomic.Bool
	go func() {
		_, _ = pipe.Write(data[:len(data)-1000])
		written.Store(true)
	}()
	interrupted(t, u, "oci", syscall.SIGTERM, "oci:"+layout+":app", key, func() bool {
		if !written.Load() {
			return false
		}
		_ = pipe.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := pipe.Read(make([]byte, 1<<16)) // what hsm-image has not read yet
		return errors.Is(err, os.ErrDeadlineExceeded)
	})
}

// interrupted has a signal end decrypting as soon as there is plain text somewhere, and it is ready.
func interrupted(t *testing.T, u *oci.User, place string, signal os.Signal, image string, key oci.Key,
	ready func() bool) {
	t.Helper()
	dir, temporary := t.TempDir(), t.TempDir()
	softhsmtest.Setenv(t, "TMPDIR", temporary)
	var stderr bytes.Buffer
	cmd := softhsmtest.Command(t, u.HSMImage, "decrypt", image, place+":"+filepath.Join(dir, "plain"), "--key", key.URI,
		"--src-tls-verify=false")
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for len(ended) == 0 && (len(oci.PlainText(t, dir))+len(oci.PlainText(t, temporary)) == 0 || !ready()) {
		time.Sleep(10 * time.Millisecond)
	}
	_ = cmd.Process.Signal(signal)
	if err := <-ended; err == nil || !strings.Contains(stderr.String(), "error: interrupted") {
		t.Errorf("%s, %s: %v\n%s", place, signal, err, stderr.String())
	}
	if left := oci.Tree(t, dir) + oci.Tree(t, temporary); left != dir+temporary {
		t.Errorf("%s, %s: there still is\n%s", place, signal, left)
	}
}

// slowly stands before a registry, and holds back the end of what is large until the client has gone.
func slowly(t *testing.T, registry string) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	proxy.FlushInterval = -1
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.ContentLength >= layerSize {
			body := r.Body
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(body, layerSize-1000), waiting{r.Request.Context()}), body}
		}
		return nil
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// waiting is a reader that has nothing before the end of a request.
type waiting struct{ context.Context }

func (w waiting) Read([]byte) (int, error) { <-w.Done(); return 0, w.Err() }
