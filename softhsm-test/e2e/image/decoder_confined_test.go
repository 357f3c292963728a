package image

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/sandbox"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestContainerdDecoderConfined looks at a decoder from outside while it decrypts: it is another user on every thread,
// with its limits, and a thread that the module has left behind, which takes no signals, can open no file.
func TestContainerdDecoderConfined(t *testing.T) {
	softhsmtest.Parallel(t)
	token, plugin, program, pin, public := softhsmtest.NewToken(t, "node"), softhsmtest.Build(t, "notation-hsm"),
		softhsmtest.Build(t, "hsm-image"),
		filepath.Join(t.TempDir(), "pin"), filepath.Join(t.TempDir(), "public.pem")
	softhsmtest.Write(t, pin, softhsmtest.PIN)
	for name, value := range map[string]string{"CONFIG": "", "MODULE_PATH": token.Module, "TOKEN": token.Label,
		"PIN_SOURCE": "file:" + pin} {
		softhsmtest.Setenv(t, "NOTATION_HSM_"+name, value)
	}
	key := strings.TrimSpace(softhsmtest.Run(t, plugin, "key", "generate", "--spec", "RSA-2048", "--usage", "decrypt",
		"--label", "node"))
	softhsmtest.Write(t, public, softhsmtest.Run(t, plugin, "cert", "export", "--public", key))
	user, err := sandbox.LookUp(softhsmtest.Unprivileged)
	if err != nil {
		softhsmtest.Missing(t, "the user "+softhsmtest.Unprivileged)
	}
	shim, found := softhsmtest.Shim(t, token.Module), filepath.Join(t.TempDir(), "found")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", shim)
	softhsmtest.Setenv(t, "SHIM_LINGER", found)

	text := make([]byte, 8<<20) // more than the pipes hold
	if _, err := rand.Read(text); err != nil {
		t.Fatal(err)
	}
	for name, candidates := range map[string]int{"the layer is known": 0, "the layer is found": 1,
		"the layer is one of two": 2} {
		t.Run(name, func(t *testing.T) {
			l := newLayer(t, ocispec.MediaTypeImageLayerGzip, "a", text).encrypt(t)
			d := oci.Descriptor(l.mediaType, l.data)
			d.Annotations = l.annotations(t, wrapHSM(public))
			root := t.TempDir()
			cmd := exec.Command(program, "containerd-decoder", "--root", root, "--key", key, "--user",
				softhsmtest.Unprivileged)
			cmd.Env = append(softhsmtest.Environ(t), "STREAM_PROCESSOR_MEDIATYPE="+l.mediaType)
			if candidates == 0 {
				cmd.ExtraFiles = []*os.File{payload(t, d)}
			}
			store := filepath.Join(root, "io.containerd.content.v1.content")
			for i := range candidates {
				m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
					Config: oci.Descriptor(ocispec.MediaTypeImageConfig, []byte("{}"))}
				m.Layers = []ocispec.Descriptor{d}
				m.Layers[0].Annotations = l.annotations(t, wrapHSM(public)) // wrapped anew
				softhsmtest.WriteJSON(t, filepath.Join(store, "blobs", "sha256", fmt.Sprint(i)), m)
				oci.WriteBlob(t, store, l.mediaType, l.data)
			}
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var stderr strings.Builder
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = stdin.Write(l.data)
				stdin.Close()
			}()
			hash := digest.Canonical.Digester()
			if n, err := io.CopyN(hash.Hash(), stdout, 1); n != 1 {
				t.Fatalf("%v: %s", err, stderr.String())
			}
			// It has begun to write what it decrypts, and waits for the pipe.
			threads, limits := softhsmtest.ProcessStatus(t, fmt.Sprintf("/proc/%d", cmd.Process.Pid))
			if len(threads) < 2 {
				t.Errorf("the decoder has %d threads", len(threads))
			}
			for _, thread := range threads {
				for field, want := range map[string]string{"Uid": fmt.Sprintf("%[1]d %[1]d %[1]d %[1]d", user.ID),
					"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "NoNewPrivs": "1"} {
					if thread[field] != want {
						t.Errorf("a thread of the decoder has %s %q", field, thread[field])
					}
				}
			}
			softhsmtest.LimitedTo(t, limits, "Max cpu time", 3600, 3600)
			softhsmtest.LimitedTo(t, limits, "Max data size", 1<<30, 3<<29) // beyond what it has at its start
			if err := os.Truncate(found, 0); err != nil {
				t.Fatal(err)
			}
			for len(strings.Fields(softhsmtest.Read(t, found))) < 4 { // the thread goes on
				time.Sleep(time.Millisecond)
			}
			if said := softhsmtest.Read(t, found); sandbox.LandlockVersion() > 0 && strings.Contains(said, "open") {
				t.Errorf("while the decoder decrypts, the module finds files %s", said)
			}
			if _, err := io.Copy(hash.Hash(), stdout); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil || hash.Digest() != l.diffID {
				t.Errorf("%v: it became %s\n%s", err, hash.Digest(), stderr.String())
			}
		})
	}
	t.Run("the user is gone", func(t *testing.T) {
		stdout, _, err := softhsmtest.Try(t, "", program, "containerd-decoder", "--user", "nobody-has-this-name")
		if err == nil || !strings.Contains(stdout, "cannot find the decoder's user") {
			t.Errorf("%v %q", err, stdout)
		}
	})
}
