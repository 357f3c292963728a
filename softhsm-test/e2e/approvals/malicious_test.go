package approvals

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/browser"
)

// malPolicy has a rule that two people are asked for, and one that a passkey is enough for.
const malPolicy = `version: 1
groups:
  signers: [alice, bob]
  page: [carol]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: two
      when: caller.claims.ref == "refs/heads/two"
      approvals: [{group: signers, quorum: 2}]
    - name: page
      when: caller.claims.ref == "refs/heads/page"
      approvals: [{group: page, quorum: 1}]
`

const (
	malTwo  = "refs/heads/two"
	malPage = "refs/heads/page"
)

// malLies is added to a broker. lies reports whether it tells a lie, which a file names; forge logs an approval of
// another person than the one who has just approved.
const malLies = `package broker

import (
	"crypto/rand"
	"maps"
	"os"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/approval"
)

func lies(what ...string) bool {
	data, _ := os.ReadFile(os.Getenv("TEST_LIE"))
	return slices.Contains(what, string(data))
}

func (d *decision) forge(id string, e Event, envelope []byte) error {
	if !lies("forge", "twice") {
		return nil
	}
	real, err := approval.DecodeEnvelope(envelope)
	if err != nil {
		return err
	}
	made, err := approval.Decode(real.Approval)
	if err != nil {
		return err
	}
	for _, credential := range slices.Sorted(maps.Keys(d.Credentials)) {
		other := d.Credentials[credential]
		if other.Person == e.Approver || other.Kind != approval.SSH {
			continue
		}
		e.Approver, made.Approver = other.Person, other.Person
		if lies("forge") {
			_, _ = rand.Read(made.Random[:])
			if real.Approval, err = made.Encode(); err != nil {
				return err
			}
			real.Credential = credential
			if envelope, err = real.Encode(); err != nil {
				return err
			}
			e.Credential, e.Signed, e.Approval = credential, approval.Hash(real.Approval), approval.Hash(envelope)
			d.document(envelope)
		}
		if err := d.event(e); err != nil {
			return err
		}
		d.told(id, made, e.Credential, e.Approval)
		return nil
	}
	return nil
}
`

// malBroker builds a broker that tells each of these lies, and misleads people with passkeys.
func malBroker(t *testing.T) (program string) {
	t.Helper()
	l := liar{changes: maps.Clone(misleads.changes), added: maps.Clone(misleads.added)}
	l.added["internal/broker/lies.go"] = malLies
	l.changes["internal/broker/standing.go"] = []string{
		`return a.rule != nil && !slices.ContainsFunc(`, `return a.rule != nil && (lies("skip", "twice")) ||
			a.rule != nil && !slices.ContainsFunc(`}
	l.changes["internal/broker/evidence.go"] = []string{`of := evidenceOf{statement: p.request.Statement, `,
		`if lies("skip", "twice", "forge") {
			return nil
		}
		of := evidenceOf{statement: p.request.Statement, `}
	l.changes["internal/broker/approve.go"] = []string{`d.refresh(id)`,
		`if err := d.forge(id, event, envelope); err != nil {
			return err
		}
		d.refresh(id)`}
	l.changes["internal/broker/sign.go"] = []string{`for range maxTries {`, `if lies("secret") {
			s, err := b.options.Keys.Sign(ctx, w.Key, r.Payload, r.Algorithm)
			return &Outcome{Signature: &brokerapi.Signature{Signature: s, Algorithm: r.Algorithm, Artifact: *w.artifact}}, err
		}
		for range maxTries {`}
	return l.build(t)
}

// malSite is a site with a malicious broker, and those who watch it with honest programs.
type malSite struct {
	*site
	hsmBroker, hsmImage string // programs that do not lie
	logKey              string // verifier key of the log
	cert                string // PEM file of the key release
	lie                 string // file that names the lie that the broker tells
}

// TestMaliciousBroker has a broker sign what people did not agree to. It says for each way what the gate, the monitor
// of the log and the audit of the registry notice, and what they do not.
func TestMaliciousBroker(t *testing.T) {
	softhsmtest.Parallel(t)
	dir := t.TempDir()
	m := &malSite{hsmBroker: softhsmtest.Build(t, "hsm-broker"), hsmImage: softhsmtest.Build(t, "hsm-image"),
		lie: filepath.Join(dir, "lie"), cert: filepath.Join(dir, "release.pem")}
	misled := filepath.Join(dir, "misled")
	softhsmtest.Setenv(t, "TEST_LIE", m.lie)
	softhsmtest.Setenv(t, "TEST_MISLED", misled)
	m.site = start(t, options{policy: malPolicy, program: malBroker(t), people: []person{{name: "alice", kind: "ssh"},
		{name: "bob", kind: "ssh"}, {name: "carol", kind: "passkey"}}})
	m.logKey = strings.TrimSpace(m.ends(0, "", nil, m.hsmBroker, "log", "key", "--config", m.Config()))
	softhsmtest.Write(t, m.cert, softhsmtest.Run(t, m.program, "cert", "export", "pkcs11:token=prod;object=release"))
	kept := t.TempDir() // what a monitor has seen
	m.watches(kept, 2)

	// Nobody, or one person of two, agreed.
	image, request := m.asksFor("skip", "nobody")
	m.lieAbout("skip", image, "waits for approvals: 2 of signers")
	m.attach(malTwo, image, request)
	trust := m.trust("signers=alice,bob:2", "key,ssh")
	m.gateRefuses(trust, image, `0 of 2 people of group "signers" agreed`)
	m.watches(kept, 2, "used without approvals: 0 of 2 people agreed to request "+request)
	m.audits("skip", "")

	image, request = m.asksFor("skip", "one")
	m.approves("alice", request)
	m.lieAbout("skip", image, "waits for approvals: 1 of signers")
	m.attach(malTwo, image, request)
	m.gateRefuses(trust, image, `1 of 2 people of group "signers" agreed`)
	m.watches(kept, 2, "used without approvals: 1 of 2 people agreed to request "+request)
	m.audits("skip", "")

	// One approval is logged for two people: the signature is of one of them.
	image, request = m.asksFor("twice", "twice")
	m.tells("twice")
	m.approves("alice", request)
	m.lieAbout("twice", image, "waits for approvals: 1 of signers")
	m.attach(malTwo, image, request)
	m.gateRefuses(trust, image, "is of another decision than its approval")
	m.watches(kept, 2, "used without approvals: 1 of 2 people agreed to request "+request)
	m.audits("twice", "")

	// An approval is made up. The log has its hash alone, so only those who verify the signature notice it.
	image, request = m.asksFor("forge", "forged")
	m.tells("forge")
	m.approves("alice", request)
	m.lieAbout("forge", image, "cannot verify the approval")
	m.attach(malTwo, image, request)
	m.gateRefuses(trust, image, "cannot verify the approval: public key does not match")
	m.watches(kept, 2)
	m.audits("forge", "")

	// The broker signs in secret: nothing is in the log, and there is no bundle.
	image, _ = m.asksFor("secret", "secret")
	m.lieAbout("secret", image, "waits for approvals: 2 of signers")
	m.gateRefuses(trust, image, "the image has no bundle of approvals")
	m.watches(kept, 2)
	m.audits("secret", "the log has nothing about it")

	m.splits(t, trust, kept)
	m.misleads(t, misled)
}

// tells has the broker tell a lie; "" for none.
func (m *malSite) tells(lie string) {
	m.t.Helper()
	softhsmtest.Write(m.t, m.lie, lie)
}

// asksFor pushes an image into a repository, and asks for its signature by two people.
func (m *malSite) asksFor(repository, content string) (image, request string) {
	m.t.Helper()
	name, digest := m.image(repository, content)
	image = name + "@" + digest
	return image, m.create(malTwo, image).ID
}

// approves has a person approve a request with a program that does not lie.
func (m *malSite) approves(name, request string) {
	m.t.Helper()
	m.ends(0, "", m.variables(), m.hsmBroker, append([]string{"approve", request, "--yes", "--plain-http"},
		m.people[name].flags()...)...)
}

// lieAbout has the broker sign an image by a lie. Without it, the broker refuses and says why, also after it has logged
// what is not true.
func (m *malSite) lieAbout(lie, image, refusal string) {
	m.t.Helper()
	m.tells("")
	m.refuses(malTwo, image, refusal)
	m.tells(lie)
	m.signs(malTwo, image)
	m.tells("")
}

// attach puts the bundle of a request beside its image. The log has the signature then.
func (m *malSite) attach(ref, image, request string) {
	m.t.Helper()
	m.ends(0, "attached", m.job(ref), m.hsmImage, "approvals", "attach", "--plain-http", "--request", request, image)
}

// trust returns a trust directory that demands approvals of a group by kinds in all repositories.
func (m *malSite) trust(group, kinds string) (dir string) {
	m.t.Helper()
	work := m.t.TempDir()
	dir = filepath.Join(work, "notation")
	manifest, approvers := filepath.Join(work, "trust.yaml"), filepath.Join(work, "approvers.json")
	softhsmtest.Write(m.t, approvers, m.ends(0, "", m.variables(), m.hsmBroker, append([]string{"approver",
		"export"}, m.people["alice"].flags()...)...))
	for _, args := range [][]string{{"init"}, {"signer", "add", "release", "--scope", "*", "--cert", m.cert},
		{"approver", "add", "--from", approvers},
		{"approvals", "add", "*", "--group", group, "--kinds", kinds, "--log", m.logKey}, {"export", "--to", dir}} {
		softhsmtest.Run(m.t, m.program, append(append([]string{"trust"}, args...), "--manifest", manifest)...)
	}
	return dir
}

// gatePasses checks that the gate passes an image.
func (m *malSite) gatePasses(trust, image string) {
	m.t.Helper()
	m.ends(0, "", nil, m.hsmImage, "verify", "--plain-http", "--trust-dir", trust, image)
}

// gateRefuses checks that the gate refuses an image, and says why.
func (m *malSite) gateRefuses(trust, image, words string) {
	m.t.Helper()
	m.ends(3, words, nil, m.hsmImage, "verify", "--plain-http", "--trust-dir", trust, image)
}

// watches has a monitor read the log up to its newest checkpoint, and checks that it alerts of all of these words, and
// of nothing without any.
func (m *malSite) watches(state string, approvals int, alerts ...string) {
	m.t.Helper()
	m.compares(state, approvals, nil, alerts...)
}

// compares has a monitor compare the log with other views as well.
func (m *malSite) compares(state string, approvals int, views []string, alerts ...string) {
	m.t.Helper()
	config := filepath.Join(m.t.TempDir(), "monitor.yaml")
	policy := sha256.Sum256([]byte(softhsmtest.Read(m.t, filepath.Join(m.Dir, "policy.yaml"))))
	softhsmtest.Write(m.t, config, fmt.Sprintf("version: 1\npolicies: [\"sha256:%x\"]\nkeys: {release: {approvals: %d}}\n"+
		"off: [credentials]\n", policy, approvals))
	args := append([]string{"log", "monitor", m.URL + "/v1/log", "--once", "--config", config, "--state", state},
		m.LogFlags()...)
	for _, view := range views {
		args = append(args, "--compare", view)
	}
	stdout, stderr, code := m.run(nil, m.hsmBroker, args...)
	if (code != 0) != (len(alerts) > 0) || code > 1 {
		m.t.Errorf("the monitor ends with exit code %d:\n%s%s", code, stdout, stderr)
	}
	for _, words := range alerts {
		if !strings.Contains(stderr, words) {
			m.t.Errorf("the monitor does not alert of %q:\n%s%s", words, stdout, stderr)
		}
	}
}

// audits has a repository compared with the log. It checks that the signature is an incident for a reason; "" for none.
func (m *malSite) audits(repository, reason string) {
	m.t.Helper()
	code := 0
	if reason != "" {
		code = 1
	}
	m.ends(code, reason, nil, m.hsmImage, "audit", m.registry+"/"+repository, "--plain-http", "--log", m.URL+"/v1/log",
		"--key", m.logKey, "--ca", m.CA, "--cert", m.cert)
}

// splits has the broker serve two histories: its database and its checkpoint are put back to those of a time before.
func (m *malSite) splits(t *testing.T, trust, kept string) {
	t.Helper()
	m.Stop()
	before := &edited{site: m.site, kept: t.TempDir()}
	before.keep(t)
	m.Start()
	image, request := m.asksFor("split", "first")
	for _, name := range []string{"alice", "bob"} {
		m.approves(name, request)
	}
	m.signs(malTwo, image)
	m.attach(malTwo, image, request)
	m.gatePasses(trust, image)
	m.watches(kept, 2)
	m.audits("split", "")
	bundle := filepath.Join(t.TempDir(), "bundle.json")
	m.ends(0, "", m.job(malTwo), m.hsmImage, "approvals", "get", request, "--to", bundle)

	m.Stop()
	before.restore(t)
	m.Start()
	fresh := t.TempDir()
	m.watches(fresh, 2, `"class":"approvals"`) // of before: nothing tells this monitor of another history
	m.compares(fresh, 2, []string{bundle}, `"class":"fork"`, "fewer than the")
	m.asksFor("split", "third") // so that the second history has more entries than the first one
	second, request := m.asksFor("split", "second")
	for _, name := range []string{"alice", "bob"} {
		m.approves(name, request)
	}
	m.signs(malTwo, second)
	m.attach(malTwo, second, request)
	m.watches(kept, 2, `"class":"fork"`, "does not continue the one of")
	m.compares(t.TempDir(), 2, []string{bundle}, `"class":"fork"`, "are not the same")
	m.audits("split", "the log has nothing about it")
	// People agreed to both images, and the log's key signed both histories.
	m.gatePasses(trust, image)
	m.gatePasses(trust, second)
}

// misleads has the page show one image, and have a passkey sign another. Everything that the log, the bundle and the
// registry have is in order: kinds alone stop it.
func (m *malSite) misleads(t *testing.T, file string) {
	t.Helper()
	m.enrol(browser.Start(t, m.CA), "carol")
	m.signIn("carol", "/")
	seen := t.TempDir()
	m.watches(seen, 1, `"class":"approvals"`) // of before
	var images, requests []string
	for _, content := range []string{"shown", "signed"} {
		name, digest := m.image("page", content)
		images = append(images, name+"@"+digest)
		requests = append(requests, m.create(malPage, name+"@"+digest).ID)
	}
	softhsmtest.Write(t, file, strings.Join(requests, " "))
	m.open("carol", "/requests/"+requests[0])
	shown, signed := images[0][strings.Index(images[0], "sha256:"):], images[1][strings.Index(images[1], "sha256:"):]
	if text := m.people["carol"].page.Text(); !strings.Contains(text, shown) || strings.Contains(text, signed) {
		t.Fatalf("the page does not show %s alone:\n%s", shown, text)
	}
	m.approve("carol", requests[0])
	m.refuses(malPage, images[0], "waits for approvals")
	m.signs(malPage, images[1])
	m.attach(malPage, images[1], requests[1])
	m.watches(seen, 1)
	m.audits("page", "")
	m.gatePasses(m.trust("signers=alice,carol:1", "passkey"), images[1])
	m.gateRefuses(m.trust("signers=alice,carol:1", "key,ssh"), images[1],
		`"carol" approved by passkey without attestation, which does not count`)
}
