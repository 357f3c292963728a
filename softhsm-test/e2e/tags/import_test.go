package tags

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/migrate"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	notary "github.com/notation-hsm/notation-hsm/softhsm-test/notaryv1"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// migration is a repository that moves here from Notary v1, with new keys on a SoftHSM token.
type migration struct {
	t      *testing.T
	image  string // bin/hsm-image
	plugin string // bin/notation-hsm
	dir    string
	front  *proxy
	notary *notary.Server
	from   *notary.Collection
	tags   []notary.Tag
	pin    string // root.json of Notary

	mutex  sync.Mutex
	writes int // requests that change the registry
	limit  int // kill the process at so many
	victim *exec.Cmd
}

// newMigration makes a repository with tags, 3 delegations and a threshold in Notary, a registry, and keys.
func newMigration(t *testing.T, count int) *migration {
	t.Helper()
	token := softhsmtest.NewToken(t, "signing")
	m := &migration{t: t, plugin: softhsmtest.NewNotation(t, token).Plugin, image: softhsmtest.Build(t, "hsm-image"),
		dir: t.TempDir(), notary: notary.Start(t)}
	m.front = newProxy(t, oci.StartRegistry(t), m.request)
	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", filepath.Join(m.dir, "trust.yaml"))
	options := notary.Team(count, func(i int) (digest.Digest, int64) {
		d := oci.Descriptor(ocispec.MediaTypeImageManifest, manifestOf(t, i))
		return d.Digest, d.Size
	})
	m.tags = options.Tags
	m.from = m.notary.Make(t, m.name(), options)
	m.pin = filepath.Join(m.from.Metadata(), "root.json")
	for _, name := range []string{"root", "snapshot", "timestamp"} {
		softhsmtest.NewCAKey(t, m.plugin, token.Label, "EC-256", name)
	}
	for _, name := range []string{"targets", "alice", "alice-2", "bob"} {
		uri := softhsmtest.NewCAKey(t, m.plugin, token.Label, "EC-256", name)
		pem := filepath.Join(m.dir, name+".pem")
		softhsmtest.Write(t, pem, softhsmtest.Run(t, m.plugin, "cert", "self-sign", uri, "--subject",
			fmt.Sprintf("CN=%s,O=Example,C=CH,ST=Zurich", name), "--days", "30"))
		if name != "bob" { // whose certificate is in a file
			softhsmtest.Run(t, m.plugin, "cert", "import", uri, pem)
		}
	}
	return m
}

func (m *migration) name() string { return m.front.address + "/" + repository }

// request counts the requests that change the registry, and kills the process at the limit.
func (m *migration) request(_ http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return false
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.writes++; m.victim != nil && m.writes == m.limit {
		_ = m.victim.Process.Kill()
	}
	return false
}

// manifestOf returns the i-th image.
func manifestOf(t *testing.T, i int) []byte {
	t.Helper()
	data, err := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{ocispec.DescriptorEmptyJSON}, Annotations: map[string]string{"number": fmt.Sprint(i)}})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// push pushes the first images, untagged, into a repository.
func (m *migration) push(name string, count int) {
	m.t.Helper()
	repository, err := oci.Open(name)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := oci.PushAll(m.t.Context(), repository,
		map[string][]byte{ocispec.MediaTypeEmptyJSON: ocispec.DescriptorEmptyJSON.Data}); err != nil {
		m.t.Fatal(err)
	}
	for i := range count {
		data := manifestOf(m.t, i)
		d := oci.Descriptor(ocispec.MediaTypeImageManifest, data)
		if err := repository.Push(m.t.Context(), d, bytes.NewReader(data)); err != nil {
			m.t.Fatal(err)
		}
	}
}

// arguments are those of import-dct for a source.
func (m *migration) arguments(name string, more ...string) []string {
	return slices.Concat([]string{"tag", "import-dct", name, "--plain-http", "--pin", m.pin}, more)
}

func (m *migration) server() []string {
	return []string{"--server", m.notary.URL, "--server-ca", m.notary.CA}
}

// keys are the flags for --apply.
func (m *migration) keys() []string {
	return []string{"--apply", "--root", keyOf("root"), "--targets", keyOf("targets"), "--snapshot", keyOf("snapshot"),
		"--timestamp", keyOf("timestamp"), "--signer", "alice=" + keyOf("alice"), "--signer", "alice=" + keyOf("alice-2"),
		"--signer", "bob=" + keyOf("bob"), "--signer-cert", "bob=" + filepath.Join(m.dir, "bob.pem"),
		"--to", filepath.Join(m.dir, "root.json"), "--wait", "1h"}
}

func keyOf(name string) string { return "pkcs11:token=signing;object=" + name }

// interrupt runs a command, kills it when it has sent a number of requests that change the registry, and reports
// whether it came so far.
func (m *migration) interrupt(limit int, arguments []string) bool {
	m.t.Helper()
	command := softhsmtest.Command(m.t, m.image, arguments...)
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	m.mutex.Lock()
	m.writes, m.limit, m.victim = 0, limit, command
	if err := command.Start(); err != nil {
		m.mutex.Unlock()
		m.t.Fatal(err)
	}
	m.mutex.Unlock()
	err := command.Wait()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.victim = nil
	if err != nil && command.ProcessState.ExitCode() != -1 {
		m.t.Fatalf("interrupted at %d: %v\n%s", limit, err, output.String())
	}
	return err != nil
}

// signerOf returns the role here, and the common name, of the signer of a tag.
func signerOf(tag notary.Tag) (role, subject string) {
	switch {
	case slices.Contains(tag.Roles, "targets/alice"):
		return "alice", "CN=alice,"
	case slices.Contains(tag.Roles, "targets/bob"):
		return "bob", "CN=bob,"
	}
	return "tags", "CN=targets,"
}

// verify verifies tags, each under its own signer, and expects others to be refused.
func (m *migration) verify(name string, good, bad []notary.Tag) {
	m.t.Helper()
	to := filepath.Join(m.t.TempDir(), "trust")
	softhsmtest.Run(m.t, m.plugin, "trust", "export", "--to", to)
	arguments := []string{"verify", "--json", "--plain-http", "--trust-dir", to}
	for _, tag := range append(slices.Clone(good), bad...) {
		arguments = append(arguments, name+":"+tag.Name)
	}
	stdout, stderr, err := softhsmtest.Try(m.t, "", m.image, arguments...)
	if (err == nil) != (len(bad) == 0) {
		m.t.Errorf("verify: %v %s", err, stderr)
	}
	var decisions []gate.Decision
	if err := json.Unmarshal([]byte(stdout), &decisions); err != nil || len(decisions) != len(good)+len(bad) {
		m.t.Fatalf("%d decisions: %v %s", len(decisions), err, stderr)
	}
	for i, d := range decisions {
		if i >= len(good) {
			if d.Passed() {
				m.t.Errorf("%s passes", d.Reference)
			}
			continue
		}
		role, subject := signerOf(good[i])
		if !d.Passed() || d.Digest != good[i].Digest.String() || d.Tag == nil || d.Tag.Role != role || d.Signature == nil ||
			!strings.HasPrefix(d.Signature.Subject, subject) {
			m.t.Errorf("%s: %s %s, not signed by %s: %+v", d.Reference, d.Verdict, d.Reason, role, d)
		}
	}
}

// TestImport moves a repository of 200 tags, 3 delegations and a threshold here from Notary's own server, with
// interruptions, and then once more from the trust folder alone.
func TestImport(t *testing.T) {
	softhsmtest.Parallel(t)
	m := newMigration(t, 200)
	m.push(m.name(), 200)

	t.Run("the plan", func(t *testing.T) {
		m.front.take("")
		text := softhsmtest.Run(t, m.image, m.arguments(m.name(), m.server()...)...)
		for _, tag := range m.tags {
			if !strings.Contains(text, tag.Name+" ") || !strings.Contains(text, tag.Digest.String()) {
				t.Errorf("the plan lacks %s", tag.Name)
			}
		}
		var plan migrate.Plan
		output := softhsmtest.Run(t, m.image, m.arguments(m.name(), append(m.server(), "--json")...)...)
		if err := json.Unmarshal([]byte(output), &plan); err != nil {
			t.Fatal(err)
		}
		signers := map[string]string{}
		for _, s := range plan.Signers {
			signers[s.Name] = fmt.Sprint(s.From, " ", s.Paths, " ", s.Threshold, s.Tags, s.Exists)
		}
		if want := map[string]string{"tags": "targets [*] 1 100 false", "alice": "targets/alice [release-*] 2 50 false",
			"bob": "targets/bob [dev-* test-*] 1 50 false"}; !maps.Equal(signers, want) {
			t.Errorf("the signers are %v, not %v", signers, want)
		}
		if len(plan.Roles) != 7 || len(plan.Tags) != 200 || plan.Lost() != 0 || plan.Signatures != 200 {
			t.Errorf("%d roles, %d tags, %d lost, %d signatures\n%s", len(plan.Roles), len(plan.Tags), plan.Lost(),
				plan.Signatures, text)
		}
		for _, request := range m.front.take("") {
			if !strings.HasPrefix(request, "GET ") && !strings.HasPrefix(request, "HEAD ") {
				t.Errorf("a plan sends %s", request)
			}
		}
		if _, _, err := softhsmtest.Try(t, "", m.plugin, "trust", "tags", "list"); err == nil {
			t.Error("a plan makes a trust manifest")
		}
	})
	everything := m.arguments(m.name(), slices.Concat(m.server(), m.keys())...)
	t.Run("a threshold that the keys do not reach", func(t *testing.T) {
		i := slices.IndexFunc(everything, func(a string) bool { return strings.HasSuffix(a, "alice-2") })
		fewer := slices.Delete(slices.Clone(everything), i-1, i+1)
		_, stderr, err := softhsmtest.Try(t, "", m.image, fewer...)
		if err == nil || !strings.Contains(strings.Join(strings.Fields(stderr), " "), "targets/alice needs 2 of its keys") {
			t.Errorf("%v %s", err, stderr)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		for _, limit := range []int{1, 3, 12, 25, 60, 150, 400} {
			if !m.interrupt(limit, everything) {
				t.Fatalf("it ended before %d requests", limit)
			}
		}
		softhsmtest.Run(t, m.image, everything...)
		m.verify(m.name(), m.tags, nil)
	})
	t.Run("again", func(t *testing.T) {
		manifest := softhsmtest.Read(t, filepath.Join(m.dir, "trust.yaml"))
		root := softhsmtest.Read(t, filepath.Join(m.dir, "root.json"))
		m.front.take("")
		softhsmtest.Run(t, m.image, everything...)
		for _, request := range m.front.take("") {
			if !strings.HasPrefix(request, "GET ") && !strings.HasPrefix(request, "HEAD ") {
				t.Errorf("a second run sends %s", request)
			}
		}
		if softhsmtest.Read(t, filepath.Join(m.dir, "trust.yaml")) != manifest ||
			softhsmtest.Read(t, filepath.Join(m.dir, "root.json")) != root {
			t.Error("a second run changes the trust manifest or the root")
		}
	})
	t.Run("a tag that was signed anew here", func(t *testing.T) {
		moved := m.tags[0]
		moved.Digest = m.tags[3].Digest
		softhsmtest.Run(t, m.image, "tag", "sign", m.name()+":"+moved.Name+"@"+moved.Digest.String(), "--plain-http", "--key",
			keyOf("targets"), "--snapshot", keyOf("snapshot"), "--timestamp", keyOf("timestamp"))
		text := softhsmtest.Run(t, m.image, everything...)
		if !strings.Contains(text, "with another digest, which stays: "+moved.Digest.String()) {
			t.Errorf("the plan does not say so:\n%s", text)
		}
		m.verify(m.name(), append([]notary.Tag{moved}, m.tags[1:]...), nil)
	})
	t.Run("from the trust folder alone", func(t *testing.T) {
		m.notary.Stop()
		moved := m.front.address + "/team/moved"
		m.push(moved, 190)
		arguments := m.arguments(moved, slices.Concat(m.keys(), []string{"--gun", m.name(), "--trust-folder",
			m.from.Folder(t)})...)
		stdout, stderr, err := softhsmtest.Try(t, "", m.image, arguments...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 4 ||
			!strings.Contains(stderr, "10 of the tags in Notary are not signed here") {
			t.Errorf("%v\n%s", err, stderr)
		}
		for _, tag := range m.tags[190:] {
			if !strings.Contains(stdout, fmt.Sprintf("tag %s, %s", tag.Name, tag.Digest)) {
				t.Errorf("the plan does not list the lost tag %s", tag.Name)
			}
		}
		m.verify(moved, m.tags[:190], m.tags[190:])
	})
}

// TestImportWithPublisher moves tags into a repository that exists already, and whose snapshot and timestamp keys
// another process has.
func TestImportWithPublisher(t *testing.T) {
	softhsmtest.Parallel(t)
	m := newMigration(t, 8)
	m.push(m.name(), 8)
	online := []string{"--plain-http", "--snapshot", keyOf("snapshot"), "--timestamp", keyOf("timestamp")}
	softhsmtest.Run(t, m.image, append([]string{"tag", "init", m.name(), "--root", keyOf("root"), "--targets",
		keyOf("targets"), "--to", filepath.Join(m.dir, "root.json")}, online...)...)
	softhsmtest.Start(t, m.image, append([]string{"tag", "refresh", m.name(), "--every", "1s"}, online...)...)
	arguments := m.arguments(m.name(), slices.Concat(m.server(), []string{"--apply", "--wait", "1h", "--targets",
		keyOf("targets"), "--signer", "alice=" + keyOf("alice"), "--signer", "alice=" + keyOf("alice-2"), "--signer",
		"bob=" + keyOf("bob"), "--signer-cert", "bob=" + filepath.Join(m.dir, "bob.pem")})...)
	softhsmtest.Run(t, m.image, arguments...)
	m.verify(m.name(), m.tags, nil)
}

// rootID returns the ID of the root key, which names its file.
func rootID(t *testing.T, from *notary.Collection) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(from.Folder(t), "private", "*.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.Contains(softhsmtest.Read(t, file), "role: root") {
			return strings.TrimSuffix(filepath.Base(file), ".key")
		}
	}
	t.Fatal("there is no root key")
	return ""
}

// docker reads trust data as 'docker trust inspect' did until version 28: with Notary's client, into Docker's folder.
const docker = `#!/bin/sh
set -eu
shift 2
for name in "$@"; do :; done
notary -s "$DOCKER_CONTENT_TRUST_SERVER" --tlscacert "$SSL_CERT_FILE" -d "$DOCKER_CONFIG/trust" list "$name" >&2
echo '{"Name": "Root", "Keys": [{"ID": "'"$ROOT_ID"'"}]}'
`

// TestImportPage runs the commands of docs/leave-dct.md in their order.
func TestImportPage(t *testing.T) {
	softhsmtest.Parallel(t)
	page := softhsmtest.Read(t, filepath.Join(softhsmtest.Root(), "docs", "leave-dct.md"))
	var script strings.Builder
	for i, part := range strings.Split(page, "```") {
		if text, ok := strings.CutPrefix(part, "sh\n"); ok && i%2 == 1 {
			script.WriteString(text)
		}
	}
	token := softhsmtest.NewToken(t, "signing")
	plugin := softhsmtest.NewNotation(t, token).Plugin
	server := notary.Start(t)
	_, port, _ := strings.Cut(oci.StartRegistry(t), ":")
	name := "localhost:" + port + "/team/app" // which programs speak plain HTTP to
	m := &migration{t: t}
	m.push(name, 8)
	from := server.Make(t, name, notary.Team(8, func(i int) (digest.Digest, int64) {
		d := oci.Descriptor(ocispec.MediaTypeImageManifest, manifestOf(t, i))
		return d.Digest, d.Size
	}))
	dir, programs := t.TempDir(), t.TempDir()
	softhsmtest.Write(t, filepath.Join(programs, "docker"), docker)
	if err := os.Chmod(filepath.Join(programs, "docker"), 0o700); err != nil {
		t.Fatal(err)
	}
	for variable, value := range map[string]string{"REPO": name, "DOCKER_CONFIG": filepath.Join(dir, "docker"),
		"SSL_CERT_FILE": server.CA, "DOCKER_CONTENT_TRUST_SERVER": server.URL, "ROOT_ID": rootID(t, from),
		"NOTATION_HSM_TRUST": filepath.Join(dir, "trust.yaml"),
		"PATH": strings.Join([]string{programs, filepath.Dir(plugin), filepath.Dir(softhsmtest.Build(t, "notary")),
			os.Getenv("PATH")}, string(filepath.ListSeparator))} {
		softhsmtest.Setenv(t, variable, value)
	}
	softhsmtest.Build(t, "hsm-image")
	output := softhsmtest.Run(t, "sh", "-euc", "cd "+dir+"\n"+script.String())
	for _, words := range []string{"done: 8 tags of " + name, "localhost:" + port +
		"/team/app:v1.0: pass", "next: notation-hsm trust export"} {
		if !strings.Contains(output, words) {
			t.Errorf("it does not print %q:\n%s", words, output)
		}
	}
	var plan migrate.Plan
	softhsmtest.ReadJSON(t, filepath.Join(dir, "plan.json"), &plan)
	if len(plan.Tags) != 8 || plan.Todo() != 8 {
		t.Errorf("%d tags, %d to do", len(plan.Tags), plan.Todo())
	}
}
