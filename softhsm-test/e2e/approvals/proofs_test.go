package approvals

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/attach"
	"github.com/notation-hsm/notation-hsm/internal/audit"
	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/translog/witnesstest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/containerd"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// proofsPolicy has a rule for releases, and one that is content with less than the trust manifest demands.
const proofsPolicy = `version: 1
groups:
  release-managers: [alice, bob, carol]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: release
      when: caller.issuer == "ISSUER" && artifact.repository == "REGISTRY/app"
      approvals: [{group: release-managers, quorum: 2, kinds: [key, ssh]}]
      same: [repository, ref]
      timeout: 72h
    - name: one
      when: caller.issuer == "ISSUER" && artifact.repository == "REGISTRY/one"
      approvals: [{group: release-managers, quorum: 1, kinds: [key, ssh]}]
      same: [repository, ref]
      timeout: 72h
    modify: [{name: managers, approvals: [{group: release-managers, quorum: 1, kinds: [key, ssh]}]}]
`

// proofsRef is the ref of the jobs that sign.
const proofsRef = "refs/tags/v1"

// proofs is a site whose images a containerd pulls if they were approved.
type proofs struct {
	*site
	image      string // hsm-image
	containerd *containerd.Daemon
	witness    *witnesstest.Witness
	log        string // verifier key of the log
	manifest   string
	approvers  string // file of 'hsm-broker approver export'
	trust      string // directory of the export
}

// startProofs starts a site with a witness, a trust manifest and a containerd.
func startProofs(t *testing.T) *proofs {
	t.Helper()
	p := &proofs{image: softhsmtest.Build(t, "hsm-image"), witness: witnesstest.New(t, "witness.example.com"),
		manifest: filepath.Join(t.TempDir(), "trust.yaml"), approvers: filepath.Join(t.TempDir(), "approvers.json"),
		trust: filepath.Join(t.TempDir(), "notation")}
	p.site = start(t, options{policy: proofsPolicy,
		log:    fmt.Sprintf("witnesses: [{url: %q, key: %q}]", p.witness.Server.URL, p.witness.Key),
		people: []person{{name: "alice", kind: "ssh"}, {name: "bob", kind: "key"}, {name: "carol", kind: "ssh"}}})
	p.log = strings.TrimSpace(softhsmtest.Run(t, p.Program, "log", "key", "--config", p.Config()))
	p.witness.Add(t, p.log)
	p.Restart() // and ask the witness again at once

	softhsmtest.Write(t, p.approvers, p.runAs("alice", 0, "", "approver", "export"))
	p.trusts("init")
	p.trusts("signer", "add", "release", "--cert", p.chain, "--scope", p.registry+"/app", "--scope", p.registry+"/one")
	p.trusts("approver", "add", "--from", p.approvers)
	p.demands("app", "alice,bob,carol", true)
	p.demands("one", "alice,bob,carol", true)
	p.export()

	bin := filepath.Join(t.TempDir(), "bin")
	p.containerd = containerd.Start(t, containerd.Options{Verifiers: bin, Config: func(root string) string {
		hosts := filepath.Join(filepath.Dir(root), "certs.d")
		if err := os.MkdirAll(hosts, 0o700); err != nil {
			t.Fatal(err)
		}
		return softhsmtest.Run(t, p.image, "install-verifier", "--bin-dir", bin, "--trust-dir", p.trust, "--state-dir",
			filepath.Join(t.TempDir(), "state"), "--hosts-dir", hosts, "--timeout", "1h")
	}})
	return p
}

// trusts changes the trust manifest.
func (p *proofs) trusts(args ...string) {
	p.t.Helper()
	softhsmtest.Run(p.t, p.program, append([]string{"trust", "--manifest", p.manifest}, args...)...)
}

// export exports the trust manifest.
func (p *proofs) export() {
	p.t.Helper()
	p.trusts("export", "--to", p.trust)
}

// demands demands that two of some people approve what is in a repository, and that a witness has cosigned the log.
func (p *proofs) demands(repository, people string, witness bool) {
	p.t.Helper()
	args := []string{"approvals", "add", p.registry + "/" + repository, "--replace", "--group",
		"release-managers=" + people + ":2", "--kinds", "key,ssh", "--log", p.log}
	if witness {
		args = append(args, "--witness", p.witness.Key, "--cosigned", "1")
	}
	p.trusts(args...)
}

// releases pushes an image, has people approve it, and signs it. It returns the image and the request.
func (p *proofs) releases(repository, content string, people ...string) (image, request string) {
	p.t.Helper()
	name, digest := p.site.image(repository, content)
	image = name + "@" + digest
	request = p.create(proofsRef, image).ID
	for _, one := range people {
		p.runAs(one, 0, digest, "approve", request, "--yes", "--plain-http")
	}
	p.signs(proofsRef, image)
	return image, request
}

// attach attaches the bundle of an image as the job that has signed it.
func (p *proofs) attach(image string) {
	p.t.Helper()
	if stdout, stderr, code := p.run(p.job(proofsRef), p.image, "approvals", "attach", "--plain-http", image); code != 0 {
		p.t.Fatalf("%s is not attached: exit code %d\n%s%s\nThe broker:\n%s", image, code, stdout, stderr, p.Output.String())
	}
}

// attachCosigned attaches the bundle until the witness has cosigned its checkpoint.
func (p *proofs) attachCosigned(image string) {
	p.t.Helper()
	for range 1000 {
		p.attach(image)
		if slices.ContainsFunc(p.bundles(image), func(data []byte) bool {
			b, err := proof.Decode(data)
			return err == nil && strings.Contains(b.Checkpoint, "\n— witness.example.com ")
		}) {
			return
		}
	}
	p.t.Fatalf("the witness has not cosigned the log:\n%s", p.Output.String())
}

// bundles returns the bundles that an image has in the registry.
func (p *proofs) bundles(image string) (all [][]byte) {
	p.t.Helper()
	name, digest, _ := strings.Cut(image, "@")
	repository, err := oci.Open(name)
	if err != nil {
		p.t.Fatal(err)
	}
	subject, err := repository.Resolve(p.t.Context(), digest)
	if err != nil {
		p.t.Fatal(err)
	}
	var found []ocispec.Descriptor
	if found, _, err = attach.List(p.t.Context(), repository, subject, proof.MediaType, 100); err != nil {
		p.t.Fatal(err)
	}
	for _, d := range found {
		data, err := attach.Fetch(p.t.Context(), repository, d)
		if err != nil {
			p.t.Fatal(err)
		}
		all = append(all, data)
	}
	return all
}

// verify verifies an image with 'hsm-image verify', and returns the decision and the exit code.
func (p *proofs) verify(image string) (d gate.Decision, code int) {
	p.t.Helper()
	stdout, stderr, code := p.run(p.caller(), p.image, "verify", "--json", "--plain-http", "--trust-dir", p.trust, image)
	var all []gate.Decision
	if err := json.Unmarshal([]byte(stdout), &all); err != nil || len(all) != 1 {
		p.t.Fatalf("hsm-image verify %s: %v, exit code %d\n%s%s", image, err, code, stdout, stderr)
	}
	return all[0], code
}

// passes checks that an image passes, since people have agreed to it.
func (p *proofs) passes(image string, people ...string) {
	p.t.Helper()
	d, code := p.verify(image)
	if code != 0 || !d.Passed() || d.Approvals == nil {
		p.t.Fatalf("%s: exit code %d, %+v", image, code, d)
	}
	names := d.Approvals.Names()
	if slices.Sort(names); !slices.Equal(names, people) {
		p.t.Errorf("%s is approved by %q, not %q", image, names, people)
	}
	if !slices.Equal(d.Approvals.Witnesses, []string{"witness.example.com"}) {
		p.t.Errorf("%s has the witnesses %q", image, d.Approvals.Witnesses)
	}
	if err := p.containerd.Pull(p.t, image); err != nil {
		p.t.Errorf("containerd does not pull %s: %v", image, err)
	}
}

// refused checks that an image is refused for a reason, by both ways, although its signature is valid.
func (p *proofs) refused(what, image, reason string) {
	p.t.Helper()
	softhsmtest.Run(p.t, p.notation.Program, "verify", "--insecure-registry", image)
	if d, code := p.verify(image); code == 0 || d.Passed() || !strings.Contains(d.Reason, reason) {
		p.t.Errorf("%s: exit code %d, %+v, wanted %q", what, code, d, reason)
	} else {
		p.t.Logf("%s: %s", what, d.Reason)
	}
	if err := p.containerd.Pull(p.t, image); err == nil || !strings.Contains(err.Error(), "blocked pull") ||
		!strings.Contains(err.Error(), reason) {
		p.t.Errorf("%s: containerd: %v, wanted %q", what, err, reason)
	}
}

// TestProofs takes the proof that people agreed to where images are used. An image that two of three release managers
// approved is pulled; what the same key has signed with the PIN alone is not, nor what comes with a bundle that does
// not hold.
func TestProofs(t *testing.T) {
	softhsmtest.Parallel(t)
	p := startProofs(t)

	approved, request := p.releases("app", "approved", "alice", "bob")
	p.refused("no bundle yet", approved, "the image has no bundle of approvals")
	p.attachCosigned(approved)
	p.ends(0, request, p.caller(), p.image, "approvals", "show", "--plain-http", approved)
	p.ends(0, "alice", p.caller(), p.image, "approvals", "verify", "--plain-http", "--trust-dir", p.trust, approved)
	p.passes(approved, "alice", "bob")

	secret := p.signedByPIN()
	p.refused("the PIN alone", secret, "the image has no bundle of approvals")
	p.borrows(secret, approved)
	p.refused("a bundle of another image", secret, "people agreed to other artifacts")
	p.withoutBob(approved)
	one, _ := p.releases("one", "one", "alice")
	p.attachCosigned(one)
	p.refused("a quorum of one", one, "1 of 2 people")

	p.audited(secret)
	p.removesBob(approved)
	p.forked()
}

// signedByPIN signs an image with the key itself, without the broker.
func (p *proofs) signedByPIN() (image string) {
	p.t.Helper()
	name, digest := p.site.image("app", "secret")
	image = name + "@" + digest
	softhsmtest.Run(p.t, p.notation.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id",
		"pkcs11:token=prod;object=release", image)
	return image
}

// borrows attaches the bundles of another image to an image.
func (p *proofs) borrows(image, from string) {
	p.t.Helper()
	for _, data := range p.bundles(from) {
		if err := oci.PushBundle(p.t.Context(), image, data, ""); err != nil {
			p.t.Fatal(err)
		}
	}
}

// withoutBob removes bob, who has approved an image, from the trust manifest for a while.
func (p *proofs) withoutBob(image string) {
	p.t.Helper()
	for _, repository := range []string{"app", "one"} {
		p.demands(repository, "alice,carol", true)
	}
	p.trusts("approver", "remove", "bob")
	p.export()
	p.refused("an approver who was removed", image, "1 of 2 people")
	p.trusts("approver", "add", "--from", p.approvers, "bob")
	for _, repository := range []string{"app", "one"} {
		p.demands(repository, "alice,bob,carol", true)
	}
	p.export()
	p.passes(image, "alice", "bob")
}

// audited checks that the audit finds what was signed with the PIN alone, and nothing else.
func (p *proofs) audited(image string) {
	p.t.Helper()
	var found audit.Report
	stdout := p.ends(1, "", p.caller(), p.image, "audit", p.registry+"/app", "--plain-http", "--json", "--log",
		p.URL+"/v1/log", "--ca", p.CA, "--key", p.log)
	if err := json.Unmarshal([]byte(stdout), &found); err != nil {
		p.t.Fatalf("%v\n%s", err, stdout)
	}
	if _, digest, _ := strings.Cut(image, "@"); len(found.Incidents) != 1 || found.Incidents[0].Image != digest ||
		found.Signatures != 2 {
		p.t.Errorf("the audit finds %+v", found)
	}
}

// removesBob removes bob from the broker. What he has approved verifies still.
func (p *proofs) removesBob(image string) {
	p.t.Helper()
	output := p.runAs("alice", 0, "pending", "approver", "remove", "bob")
	id := regexp.MustCompile(`\b[0-9a-f]{32}\b`).FindString(output)
	p.runAs("carol", 0, id, "approve", id, "--yes")
	if stdout, stderr, code := p.run(p.variables(), p.Program, append([]string{"approver", "list"},
		p.people["bob"].flags()...)...); code == 0 {
		p.t.Errorf("bob is an approver still:\n%s%s", stdout, stderr)
	}
	p.passes(image, "alice", "bob")
}

// forked has the broker show another history of the log than the witness and the monitor have seen.
func (p *proofs) forked() {
	t := p.t.(*testing.T) //nolint:forcetypeassert // it is of TestProofs
	t.Helper()
	config := filepath.Join(t.TempDir(), "monitor.yaml")
	softhsmtest.Write(t, config, fmt.Sprintf("version: 1\npolicies: [\"sha256:%x\"]\nkeys: {release: {approvals: 1}}\n"+
		"off: [credentials]\n", sha256.Sum256([]byte(softhsmtest.Read(t, filepath.Join(p.Dir, "policy.yaml"))))))
	monitor := []string{"log", "monitor", p.URL + "/v1/log", "--ca", p.CA, "--key", p.log, "--config", config, "--state",
		filepath.Join(t.TempDir(), "monitor"), "--once"}
	p.Stop()
	e := &edited{site: p.site, kept: t.TempDir()}
	e.keep(t)
	p.Start()
	first, _ := p.releases("app", "first", "alice", "carol")
	p.attachCosigned(first)
	p.passes(first, "alice", "carol")
	p.ends(0, "", p.caller(), p.Program, monitor...)

	p.Kill()
	e.restore(t)
	p.Start()
	name, digest := p.site.image("app", "later")
	p.create(proofsRef, name+"@"+digest) // the second history is longer
	second, _ := p.releases("app", "second", "alice", "carol")
	p.Stop()
	asked := p.witness.Asked()
	p.Start()        // and ask the witness at once
	p.attach(second) // a minute later, when the broker waits for the witness no more
	if p.witness.Asked() < asked+2 {
		t.Error("the witness was not asked to cosign the second history")
	}
	p.refused("a fork", second, "witness")
	p.ends(1, `"class":"fork"`, p.caller(), p.Program, monitor...)
	p.passes(first, "alice", "carol")

	// By its log's signature alone, the bundle of the second history holds.
	p.demands("app", "alice,bob,carol", false)
	p.export()
	if d, code := p.verify(second); code != 0 || !d.Passed() {
		t.Errorf("without a witness: exit code %d, %+v", code, d)
	}
}
