package gate

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/internal/trust/trusttest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestVerifyMemoryOfApprovals has verify read bundles of approvals that are made to take much memory, for a valid
// signature. It refuses the images and stays small.
func TestVerifyMemoryOfApprovals(t *testing.T) {
	softhsmtest.Parallel(t)
	program, hsm := softhsmtest.Build(t, "hsm-image"), softhsmtest.Build(t, "notation-hsm")
	alice, err := oci.NewForger("alice", "")
	if err != nil {
		t.Fatal(err)
	}
	ann, log := prooftest.SSHPerson(t, "ann", prooftest.Ed25519(1)), prooftest.NewLog(t)
	for name, part := range map[string]string{
		"empty approvals": `"",`,
		"long approvals":  `"` + strings.Repeat("YWFh", 1000) + `",`,
		"entries":         `{"entry":"","hashes":[],"index":0},`,
	} {
		t.Run(name, func(t *testing.T) {
			h := oci.NewHostile(t)
			image := h.PushImage(name)
			h.Sign(t, alice, jws.MediaTypeEnvelope, image, nil)
			for i := range 20 {
				start, end := `{"approvals":[`, fmt.Sprintf(`],"checkpoint":"%d","entries":[],"rules":[],"statement":"",`+
					`"type":"approvals/v1"}`, i)
				if name == "entries" {
					start, end = `{"approvals":[],"checkpoint":"","entries":[`, fmt.Sprintf(`],"rules":[],"statement":"%032d",`+
						`"type":"approvals/v1"}`, i)
				}
				count := min((proof.MaxBundle-len(start)-len(end))/len(part), 45000/max(strings.Count(part, ":")*2, 1))
				bundle := []byte(start + strings.TrimSuffix(strings.Repeat(part, count), ",") + end)
				layer := oci.Descriptor(proof.MediaType, bundle)
				layer.Data = bundle
				manifest, annotations, err := oci.BundleManifest(layer, image, "")
				if err != nil {
					t.Fatal(err)
				}
				d := h.Add(ocispec.MediaTypeImageManifest, manifest)
				d.ArtifactType, d.Annotations = proof.MediaType, annotations
				d.Annotations[ocispec.AnnotationCreated] = time.Now().UTC().Format(time.RFC3339)
				h.Refer(image, d)
			}
			manifest := trusttest.Manifest(t, h.Address+"/app", alice.PEM(), ann)
			trusttest.Require(t, manifest, h.Address+"/app", log, 1, ann)
			to := filepath.Join(t.TempDir(), "notation")
			softhsmtest.Run(t, hsm, "trust", "export", "--manifest", manifest, "--to", to)
			command := []string{program, "verify", "--plain-http", "--trust-dir", to}
			for _, n := range []int{1, 10} {
				names := command
				for range n {
					names = append(names[:len(names):len(names)], h.Name(image))
				}
				size, said := peak(t, "", names...)
				if size > mostMemory || !strings.Contains(said, "bundles of approvals, and only") {
					t.Errorf("%d at once: %d MiB: %.2000s", n, size>>20, said)
				}
				t.Logf("%d at once: %d MiB", n, size>>20)
			}
		})
	}
}
