// Package replicas tests several 'hsm-broker serve' that share a database of PostgreSQL, from the outside: the
// programs, the database, a token, a registry and an issuer are real.
package replicas

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// policy lets the branch main sign, and tags if two people agree.
const policy = `version: 1
groups:
  managers: [alice, bob]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: main
      when: caller.issuer == "ISSUER" && caller.claims.ref == "refs/heads/main"
    - name: release
      when: caller.issuer == "ISSUER" && caller.claims.ref.startsWith("refs/tags/")
      approvals: [{group: managers, quorum: 2}]
      timeout: 72h
    modify: [{name: managers, approvals: [{group: managers, quorum: 2}]}]
modify: [{name: managers, approvals: [{group: managers, quorum: 2}]}]
`

// site is some replicas of a broker, the database that they share, and people who approve.
type site struct {
	t        testing.TB
	server   *softhsmtest.PostgresServer
	balancer *balancer
	replicas []*softhsmtest.TeamBroker
	notation *softhsmtest.Notation
	registry string
	program  string // notation-hsm
	dir      string // with the people's SSH keys
}

// start starts replicas on a server of PostgreSQL of their own.
func start(t testing.TB, count int) *site {
	t.Helper()
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{})
	return startOn(t, count, server, server.Database(t), "")
}

// startOn starts replicas on a database. config is appended to their configs.
func startOn(t testing.TB, count int, server *softhsmtest.PostgresServer, database, config string) *site {
	t.Helper()
	token := softhsmtest.NewToken(t, "prod")
	s := &site{t: t, server: server, dir: t.TempDir(),
		notation: softhsmtest.NewNotation(t, token), registry: oci.StartRegistry(t),
		program: softhsmtest.Build(t, "notation-hsm"), balancer: newBalancer(t)}
	_, chain := softhsmtest.NewKey(t, token, s.program, "EC-256", "release")
	s.notation.Trust(t, chain)
	var approvers []map[string]string
	for _, name := range []string{"alice", "bob"} {
		approvers = append(approvers, map[string]string{"name": name, "ssh": s.makeKey(name)})
	}
	file, err := json.Marshal(map[string]any{"version": 1, "approvers": approvers}) // which is YAML
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, filepath.Join(s.dir, "approvers.yaml"), string(file))
	first := softhsmtest.StartTeam(t, token, softhsmtest.TeamOptions{Policy: policy, Store: database,
		Public:     s.balancer.url(),
		Limits:     "requests: 100000 per hour, open: 1000",
		Registries: `registries: [{host: "` + s.registry + `", plain-http: true, loopback: true}]`,
		Config:     "approvers: " + filepath.Join(s.dir, "approvers.yaml") + "\n" + config})
	s.replicas = append(s.replicas, first)
	for number := 1; number < count; number++ {
		r := first.Replica(t, number, "")
		r.Start()
		s.replicas = append(s.replicas, r)
	}
	return s
}

// makeKey makes the SSH key of a person, and returns the public half.
func (s *site) makeKey(name string) string {
	s.t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, name)
	if err != nil {
		s.t.Fatal(err)
	}
	softhsmtest.Write(s.t, filepath.Join(s.dir, name), string(pem.EncodeToMemory(block)))
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))
}

// at returns variables of somebody who calls a replica.
func (s *site) at(replica int) []string {
	b := s.replicas[replica]
	return []string{"NOTATION_HSM_BROKER=" + b.URL, "NOTATION_HSM_BROKER_CA=" + b.CA, "NOTATION_HSM_PIN=",
		"NOTATION_HSM_PIN_SOURCE=", "NOTATION_HSM_MODULE_PATH=", "NOTATION_HSM_BROKER_TOKEN=",
		"NOTATION_HSM_BROKER_CERTIFICATE=", "NOTATION_HSM_BROKER_KEY="}
}

// job returns variables of a job on a ref that calls a replica, with a token for one use.
func (s *site) job(replica int, ref string) []string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "token")
	b := s.replicas[replica]
	softhsmtest.Write(s.t, path, b.Issuer.Mint(s.t, identitytest.GitHub(b.Public, "example/app", ref)))
	return append(s.at(replica), "NOTATION_HSM_BROKER_TOKEN=file:"+path)
}

// command prepares a program with variables.
func (s *site) command(variables []string, name string, args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := softhsmtest.Command(s.t, name, args...)
	cmd.Env = append(cmd.Env, variables...)
	return cmd
}

// run runs a program with variables, and returns what it prints and its exit code.
func (s *site) run(variables []string, name string, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	cmd := s.command(variables, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// succeeds runs a program that ends with exit code 0, and returns its standard output.
func (s *site) succeeds(variables []string, name string, args ...string) string {
	s.t.Helper()
	stdout, stderr, code := s.run(variables, name, args...)
	if code != 0 {
		s.t.Fatalf("%s %s: exit code %d\n%s%s", filepath.Base(name), strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// image pushes an image, and returns its name with its digest.
func (s *site) image(content string) string {
	s.t.Helper()
	name := s.registry + "/app"
	pushed, err := oci.PushImage(s.t.Context(), name+":latest", content)
	if err != nil {
		s.t.Fatal(err)
	}
	return name + "@" + pushed.String()
}

// create makes a request of a job on a tag at a replica.
func (s *site) create(replica int, image string) (r brokerapi.Request) {
	s.t.Helper()
	out := s.succeeds(s.job(replica, tag), s.program, "request", "create", "--key", "broker:release", "--image", image,
		"--json")
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// approve approves a request at a replica.
func (s *site) approve(replica int, name, id string) {
	s.t.Helper()
	s.balancer.to.Store(s.replicas[replica])
	variables := append(s.at(replica), "NOTATION_HSM_BROKER="+s.balancer.url()) // who signs in says where to
	s.succeeds(variables, s.replicas[0].Program, "approve", id, "--yes", "--plain-http", "--ssh",
		filepath.Join(s.dir, name))
}

// sign signs an image as a job on a ref at a replica. It returns what the command prints, and whether it has signed.
func (s *site) sign(replica int, ref, image string) (output string, signed bool) {
	s.t.Helper()
	repository, _, _ := strings.Cut(image, "@")
	stdout, stderr, code := s.run(s.job(replica, ref), s.notation.Program, "sign", "--insecure-registry", "--plugin",
		"hsm",
		"--id", "broker:release", "--plugin-config", "repository="+repository, image)
	return stdout + stderr, code == 0
}

// signs signs an image at a replica, and verifies it.
func (s *site) signs(replica int, ref, image string) {
	s.t.Helper()
	if output, signed := s.sign(replica, ref, image); !signed {
		s.t.Fatalf("replica %d does not sign %s:\n%s", replica, image, output)
	}
	softhsmtest.Run(s.t, s.notation.Program, "verify", "--insecure-registry", image)
}

// state returns the state of a request as a replica shows it.
func (s *site) state(replica int, ref, id string) brokerapi.State {
	s.t.Helper()
	var r brokerapi.Request
	out := s.succeeds(s.job(replica, ref), s.program, "request", "show", id, "--json")
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		s.t.Fatal(err)
	}
	return r.State
}

// readiness returns what a replica says of itself, and whether it is ready. It fails the test if it does not answer.
func (s *site) readiness(replica int) brokerapi.Readiness {
	s.t.Helper()
	b := s.replicas[replica]
	token := b.Issuer.Mint(s.t, identitytest.GitHub(b.Public, "example/app", "refs/heads/main"))
	status, body, err := b.Ask(b.Client(), token, http.MethodGet, brokerapi.ReadyPath, "")
	var r brokerapi.Readiness
	if err == nil {
		err = json.Unmarshal([]byte(body), &r)
	}
	if err != nil || (status == http.StatusOK) != r.Ready {
		s.t.Fatalf("status %d, %s: %v", status, body, err)
	}
	return r
}

// detail returns the detail of a part of a replica, and whether the part is ready.
func (s *site) detail(replica int, name string) (detail string, ready bool) {
	s.t.Helper()
	for _, p := range s.readiness(replica).Parts {
		if p.Name == name {
			return p.Detail, p.Ready
		}
	}
	s.t.Fatalf("replica %d has no part %q", replica, name)
	return "", false
}

// checkpoint returns the checkpoint that a replica serves.
func (s *site) checkpoint(replica int) string {
	s.t.Helper()
	b := s.replicas[replica]
	response, err := b.Client().Get(b.URL + brokerapi.LogPath + "/checkpoint") //nolint:noctx // the client has a timeout
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %v", response.Status, err)
	}
	return string(data)
}

// await waits until a condition holds.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

// leader returns the replica that leads, once there is one.
func (s *site) leader(alive ...int) (leader int) {
	s.t.Helper()
	await(s.t, "a replica to lead", func() bool {
		for _, leader = range alive {
			if detail, _ := s.detail(leader, "replica"); strings.Contains(detail, "it leads") {
				return true
			}
		}
		return false
	})
	return leader
}

// audit verifies the log that a replica serves, entry by entry. No signature was lost, and none failed.
func (s *site) audit(replica int) {
	s.t.Helper()
	b := s.replicas[replica]
	flags := b.LogFlags()
	block, _ := pem.Decode([]byte(softhsmtest.Read(s.t, flags[1])))
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	verifier, err := translog.NewVerifier(softhsmtest.LogOrigin, key)
	if err != nil {
		s.t.Fatal(err)
	}
	audit := broker.NewAudit()
	_, err = translog.VerifyDir(s.t.Context(), b.ExportLog(flags), []*translog.Verifier{verifier}, translog.Options{
		Each: func(index int64, _ translog.Event, data []byte) error {
			if e, err := entry.Decode(data); err == nil && (e.Type == entry.Lost || e.Type == entry.Failed) {
				s.t.Errorf("entry %d: %s", index, data)
			}
			return audit.Entry(index, data)
		}})
	if err != nil {
		s.t.Fatalf("the log: %v", err)
	}
}
