package team

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// tagPolicy lets the broker publish the tags of REPOSITORY, CI sign those of the targets keys, and alice her releases.
const tagPolicy = `version: 1
keys:
  snapshot:
    key: pkcs11:token=prod;object=snapshot
    formats: [tuf]
    use:
    - name: publisher
      when: caller.issuer == "publisher" && caller.subject == "REPOSITORY" && artifact.name == "snapshot"
    block: [{name: operators, when: caller.subject == "CN=operator"}]
    unblock: [{name: operators, when: caller.subject == "CN=operator"}]
  timestamp:
    key: pkcs11:token=prod;object=timestamp
    formats: [tuf]
    use:
    - name: publisher
      when: caller.issuer == "publisher" && caller.subject == "REPOSITORY" && artifact.name == "timestamp"
  targets:
    key: pkcs11:token=prod;object=targets
    formats: [tuf]
    use:
    - name: ci
      when: caller.subject == "CN=ci" && artifact.name == "targets"
  alice:
    key: pkcs11:token=prod;object=alice
    formats: [tuf]
    use:
    - name: releases
      when: caller.subject == "CN=ci" && artifact.name == "targets" &&
        artifact.annotations.all(name, !name.startsWith("targets") || name == "targets" ||
        name.startsWith("targets.release-") || name.startsWith("targets[\"release-"))
`

// tagged is a broker that publishes the tags of a repository, and what its signers need.
type tagged struct {
	*team
	repository string
	way        *door  // to the registry
	metrics    string // URL
	program    string // hsm-image
	manifest   string // trust manifest
}

// startTagged makes a repository with signed tags, and starts its publisher. CI is the caller of what the test runs.
func startTagged(t *testing.T) *tagged {
	t.Helper()
	token := softhsmtest.NewToken(t, "prod")
	n := softhsmtest.NewNotation(t, token)
	dir := t.TempDir()
	s := &tagged{way: openDoor(t, oci.StartRegistry(t)), program: softhsmtest.Build(t, "hsm-image"),
		manifest: filepath.Join(dir, "trust.yaml")}
	s.repository = s.way.address + "/team/app"
	for label, spec := range map[string]string{"root": "EC-384", "targets": "EC-256", "snapshot": "RSA-2048",
		"timestamp": "EC-256", "alice": "EC-256"} {
		softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "prod", "--spec", spec, "--label", label)
	}
	root := filepath.Join(dir, "root.json")
	key := func(label string) string { return "pkcs11:token=prod;object=" + label }
	s.run(t, "init", s.repository, "--root", key("root"), "--targets", key("targets"), "--snapshot", key("snapshot"),
		"--timestamp", key("timestamp"), "--to", root)
	address := softhsmtest.FreeAddresses(t, 1)[0]
	s.metrics = "http://" + address + "/metrics"
	s.team = startOn(t, token, softhsmtest.TeamOptions{Limits: manyRequests, Listen: "metrics: " + address,
		Policy:     strings.ReplaceAll(tagPolicy, "REPOSITORY", s.repository),
		Registries: `registries: [{host: "` + s.way.address + `", plain-http: true, loopback: true}]`,
		Config: "tags: [{repository: \"" + s.repository + "\", root: " + root + ", snapshot: snapshot, " +
			"timestamp: timestamp}]"})
	s.UseCertificate(t, "ci")
	return s
}

func (s *tagged) try(t testing.TB, args ...string) (string, error) {
	t.Helper()
	stdout, stderr, err := softhsmtest.Try(t, "", s.program, append([]string{"tag", "--plain-http", "--manifest",
		s.manifest}, args...)...)
	return stdout + stderr, err
}

func (s *tagged) run(t testing.TB, args ...string) string {
	t.Helper()
	output, err := s.try(t, args...)
	if err != nil {
		t.Fatalf("tag %q: %v\n%s", args, err, output)
	}
	return output
}

// push pushes an image under a tag, and returns its digest.
func (s *tagged) push(tag string) string {
	s.t.Helper()
	digest, err := oci.PushImage(s.t.Context(), s.repository+":"+tag, tag)
	if err != nil {
		s.t.Fatal(err)
	}
	return digest.String()
}

// shows checks that a tag is signed, as anyone sees it.
func (s *tagged) shows(tag, digest string) {
	s.t.Helper()
	if output := s.run(s.t, "show", s.repository+":"+tag); !strings.Contains(output, digest) {
		s.t.Errorf("%s is not %s:\n%s", tag, digest, output)
	}
}

// metric returns the value of a metric of the repository.
func (s *tagged) metric(name, label, value string) float64 {
	s.t.Helper()
	answer, err := http.Get(s.metrics) //nolint:noctx // loopback
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	series := fmt.Sprintf("\n%s{repository=%q,%s=%q} ", name, s.repository, label, value)
	_, rest, found := strings.Cut(string(data), series)
	text, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseFloat(text, 64)
	if !found || err != nil {
		s.t.Fatalf("there is no%sin\n%s", series, data)
	}
	return n
}

// rounds returns how often the publisher has had a result.
func (s *tagged) rounds(result string) float64 {
	s.t.Helper()
	return s.metric("hsm_broker_tag_rounds_total", "result", result)
}

// until waits for one more result of the publisher.
func (s *tagged) until(result string) {
	s.t.Helper()
	for before := s.rounds(result); s.rounds(result) == before; {
		time.Sleep(20 * time.Millisecond)
	}
}

// exported is a file of published metadata.
type exported struct {
	Signed struct{ Version int }
}

// published returns the version of the file of a role, and the SHA-256 of what is signed of it.
func (s *tagged) published(role string) (version int, payload string) {
	s.t.Helper()
	to := s.t.TempDir()
	s.run(s.t, "export", s.repository, "--to", to)
	paths, err := filepath.Glob(filepath.Join(to, "metadata", "*"+role+".json"))
	if err != nil || len(paths) != 1 {
		s.t.Fatalf("%s: %q, %v", role, paths, err)
	}
	data, err := os.ReadFile(paths[0])
	if err != nil {
		s.t.Fatal(err)
	}
	var file exported
	var whole struct{ Signed any }
	for _, into := range []any{&file, &whole} {
		if err := json.Unmarshal(data, into); err != nil {
			s.t.Fatal(err)
		}
	}
	canonical, err := cjson.EncodeCanonical(whole.Signed)
	if err != nil {
		s.t.Fatal(err)
	}
	return file.Signed.Version, fmt.Sprintf("sha256:%x", sha256.Sum256(canonical))
}

// logged checks that each publication has its entries in the log: an intent and an outcome of both keys, and the
// signatures that are published now.
func (s *tagged) logged(events []event) {
	s.t.Helper()
	for _, role := range []string{"snapshot", "timestamp"} {
		version, payload := s.published(role)
		var intents, signed int
		found := false
		for _, e := range events {
			switch {
			case e.Key != role:
			case e.Type == "intent/v1" && e.Rule == "publisher":
				intents++
			case e.Type == "signed/v1":
				signed++
				found = found || e.Payload == payload
			}
		}
		if intents != signed || signed != version-1 || !found { // version 1 is of 'tag init'
			s.t.Errorf("%s: version %d is published; the log has %d intents, %d signatures, and this one: %v", role, version,
				intents, signed, found)
		}
	}
}

// TestTags has twenty signers at once sign tags with keys of a broker, which publishes all of them, also after a
// restart. Each of its signatures is in the log.
func TestTags(t *testing.T) {
	softhsmtest.Parallel(t)
	s := startTagged(t)
	s.run(t, "delegate", "add", s.repository, "alice", "--paths", "release-*", "--key", "broker:alice", "--targets",
		"broker:targets", "--wait", softhsmtest.Patience)
	digests := map[string]string{}
	for i := range 20 {
		tag := fmt.Sprintf("v%d", i)
		if i%2 == 0 {
			tag = fmt.Sprintf("release-%d", i)
		}
		digests[tag] = s.push(tag)
	}
	var group sync.WaitGroup
	for tag := range digests {
		group.Go(func() {
			key := "broker:targets"
			if strings.HasPrefix(tag, "release-") {
				key = "broker:alice"
			}
			if output, err := s.try(t, "sign", s.repository+":"+tag, "--key", key, "--wait",
				softhsmtest.Patience); err != nil || !strings.Contains(output, "published") {
				t.Errorf("%s: %v\n%s", tag, err, output)
			}
		})
	}
	group.Wait()
	for tag, digest := range digests {
		s.shows(tag, digest)
	}
	for strings.Contains(s.run(t, "status", s.repository), "proposed: ") { // they are deleted after they were published
		time.Sleep(100 * time.Millisecond)
	}

	s.Stop()
	digest := s.push("release-new")
	s.Start()
	s.run(t, "sign", s.repository+":release-new", "--key", "broker:alice", "--wait", softhsmtest.Patience)
	s.shows("release-new", digest)
	s.until("unchanged")
	for role, least := range map[string]int{"timestamp": 12, "snapshot": 3 * 24, "targets": 45 * 24, "root": 180 * 24} {
		at := s.metric("hsm_broker_tag_expiry_timestamp_seconds", "role", role)
		if left := time.Until(time.Unix(int64(at), 0)); left < time.Duration(least)*time.Hour {
			t.Errorf("%s expires in %s", role, left)
		}
	}
	s.logged(s.audit())
	s.accounted()
}

// TestTagsRefused has the policy refuse tags and callers: whoever may not sign proposes nothing.
func TestTagsRefused(t *testing.T) {
	softhsmtest.Parallel(t)
	s := startTagged(t)
	for _, tag := range []string{"v1", "v1.0"} {
		s.push(tag)
	}
	s.run(t, "delegate", "add", s.repository, "alice", "--paths", "*", "--key", "broker:alice", "--targets",
		"broker:targets", "--wait", softhsmtest.Patience)
	refused := func(what, tag, rule string, args ...string) {
		t.Helper()
		output, err := s.try(t, append([]string{"sign", s.repository + ":" + tag, "--wait", "0"}, args...)...)
		if err == nil || !strings.Contains(output, `rule "`+rule+`": `) {
			t.Errorf("%s: %v\n%s", what, err, output)
		}
	}
	refused("a tag that is no release", "v1", "releases", "--key", "broker:alice")
	refused("another tag that is no release", "v1.0", "releases", "--key", "broker:alice")
	refused("the publisher's keys", "v1", "publisher", "--key", "broker:targets", "--snapshot", "broker:snapshot",
		"--timestamp", "broker:timestamp")
	s.UseCertificate(t, "stranger")
	refused("a stranger", "v1.0", "ci", "--key", "broker:targets")
}

// TestTagsBlocked publishes nothing with a blocked key, and says so; it goes on when the key is unblocked.
func TestTagsBlocked(t *testing.T) {
	softhsmtest.Parallel(t)
	s := startTagged(t)
	digest := s.push("v1")
	s.propose(brokerapi.KeyPath("snapshot") + "/block")
	s.run(t, "sign", s.repository+":v1", "--key", "broker:targets", "--wait", "0")
	s.until("failed")
	s.until("failed")
	if output, err := s.try(t, "show", s.repository+":v1"); err == nil {
		t.Errorf("it is published:\n%s", output)
	}
	events := s.audit()
	blocked := slices.IndexFunc(events, func(e event) bool { return e.Type == "blocked/v1" && e.Key == "snapshot" })
	if blocked < 0 || slices.ContainsFunc(events[blocked:], func(e event) bool {
		return e.Key == "snapshot" &&
			e.Type == "intent/v1"
	}) {
		t.Errorf("the log is %+v", events)
	}
	s.propose(brokerapi.KeyPath("snapshot") + "/unblock")
	s.until("published")
	s.shows("v1", digest)
	if output := s.Stop(); strings.Count(output, "cannot publish tags") != 1 ||
		!strings.Contains(output, `the key \"snapshot\" is blocked since`) {
		t.Errorf("the broker has logged\n%s", output)
	}
}

// TestTagsRegistryDown goes on by itself when the registry comes back.
func TestTagsRegistryDown(t *testing.T) {
	softhsmtest.Parallel(t)
	s := startTagged(t)
	digest := s.push("v1")
	s.until("unchanged")
	s.way.close()
	s.until("failed")
	if problem, err := s.call("", http.MethodGet, "/readyz", nil, new(any)); err != nil || problem != nil {
		t.Errorf("the broker is not ready: %v, %v", problem, err)
	}
	s.way.shut.Store(false)
	s.run(t, "sign", s.repository+":v1", "--key", "broker:targets", "--wait", softhsmtest.Patience)
	s.shows("v1", digest)
	s.logged(s.audit())
}
