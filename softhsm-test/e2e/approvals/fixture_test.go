// Package approvals tests requests that people agree to, from the outside: the programs, tokens, a registry, an issuer
// and a browser are real.
package approvals

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// site is a broker with a key for releases, a registry, and people.
type site struct {
	*softhsmtest.TeamBroker
	t        testing.TB
	token    *softhsmtest.Token
	notation *softhsmtest.Notation
	registry string
	people   map[string]*person
	program  string // notation-hsm
	chain    string // PEM file with the certificate of the key release
	clients  map[string]*http.Client
}

// options are what tests choose of a site.
type options struct {
	policy string   // REGISTRY in it becomes the registry, ISSUER that of the jobs' tokens
	people []person // enrolled from the start; those of another site keep their keys
	keys   []string // of the token, beside the key release
	config string   // is appended to the config
	log    string   // is appended to its section log
	// program replaces hsm-broker.
	program string
}

// start starts a site on tokens of its own.
func start(t testing.TB, o options) *site {
	t.Helper()
	token, registry := softhsmtest.NewToken(t, "prod"), oci.StartRegistry(t)
	token.Init(t, "cards")
	s := &site{t: t, token: token, registry: registry, people: map[string]*person{}, clients: map[string]*http.Client{},
		notation: softhsmtest.NewNotation(t, token), program: softhsmtest.Build(t, "notation-hsm")}
	_, s.chain = softhsmtest.NewKey(t, token, s.program, "EC-256", "release")
	for _, name := range o.keys {
		softhsmtest.NewKey(t, token, s.program, "EC-256", name)
	}
	dir := t.TempDir()
	var approvers []map[string]string
	for _, p := range o.people {
		if p.text == "" { // otherwise, the person is of another site as well
			p.make(t, dir)
		}
		s.people[p.name] = &p
		approvers = append(approvers, p.approver())
	}
	file, err := json.Marshal(map[string]any{"version": 1, "approvers": approvers}) // which is YAML
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, filepath.Join(dir, "approvers.yaml"), string(file))
	s.TeamBroker = softhsmtest.StartTeam(t, token, softhsmtest.TeamOptions{Host: "localhost", Program: o.program,
		Log:        o.log,
		Limits:     "requests: 100000 per hour, open: 1000",
		Policy:     strings.ReplaceAll(o.policy, "REGISTRY", registry),
		Registries: `registries: [{host: "` + registry + `", plain-http: true, loopback: true}]`,
		Config:     "approvers: " + filepath.Join(dir, "approvers.yaml") + "\n" + o.config})
	s.notation.Trust(t, s.chain)
	return s
}

// job returns variables of a job of example/app on a ref, with a token for one use.
func (s *site) job(ref string) []string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "token")
	softhsmtest.Write(s.t, path, s.Issuer.Mint(s.t, identitytest.GitHub(s.URL, "example/app", ref)))
	return append(s.caller(), "NOTATION_HSM_BROKER_TOKEN=file:"+path)
}

// caller returns variables of a caller who has neither a module nor a credential for the broker.
func (s *site) caller() []string {
	variables := []string{"NOTATION_HSM_BROKER=" + s.URL, "NOTATION_HSM_BROKER_CA=" + s.CA}
	for _, name := range []string{"PIN", "PIN_SOURCE", "MODULE_PATH", "BROKER_TOKEN", "BROKER_CERTIFICATE",
		"BROKER_KEY"} {
		variables = append(variables, "NOTATION_HSM_"+name+"=")
	}
	return variables
}

// run runs a program with variables, and returns what it prints and its exit code.
func (s *site) run(variables []string, name string, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	cmd := softhsmtest.Command(s.t, name, args...)
	cmd.Env = append(cmd.Env, variables...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ends runs a program that ends with an exit code and prints words, and returns its standard output.
func (s *site) ends(code int, words string, variables []string, name string, args ...string) string {
	s.t.Helper()
	stdout, stderr, got := s.run(variables, name, args...)
	if got != code || !strings.Contains(stdout+stderr, words) {
		s.t.Fatalf("%s %s: exit code %d, not %d with %q\n%s%s", filepath.Base(name), strings.Join(args, " "), got, code,
			words, stdout, stderr)
	}
	return stdout
}

// image pushes an image, and returns its repository and its digest.
func (s *site) image(repository, content string) (name, digest string) {
	s.t.Helper()
	name = s.registry + "/" + repository
	pushed, err := oci.PushImage(s.t.Context(), name+":latest", content)
	if err != nil {
		s.t.Fatal(err)
	}
	return name, pushed.String()
}

// create makes a request for an image as a job on a ref, and returns it. On a slow machine, one whose rule gives it a
// second has expired by then.
func (s *site) create(ref, image string) brokerapi.Request {
	s.t.Helper()
	var r brokerapi.Request
	stdout, stderr, code := s.run(s.job(ref), s.program, "request", "create", "--key", "broker:release", "--image", image,
		"--json")
	err := json.Unmarshal([]byte(stdout), &r)
	if err != nil || code != 0 && r.State != brokerapi.Expired {
		s.t.Fatalf("request create: exit code %d, %v\n%s%s", code, err, stdout, stderr)
	}
	return r
}

// sign signs an image with the notation command as a job on a ref. It returns what the command prints, and whether it
// has signed.
func (s *site) sign(ref, image string) (output string, signed bool) {
	s.t.Helper()
	repository, _, _ := strings.Cut(image, "@")
	stdout, stderr, code := s.run(s.job(ref), s.notation.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id",
		"broker:release", "--plugin-config", "repository="+repository, image)
	return stdout + stderr, code == 0
}

// signs signs and verifies an image.
func (s *site) signs(ref, image string) {
	s.t.Helper()
	if output, signed := s.sign(ref, image); !signed {
		s.t.Fatalf("%s is not signed:\n%s", image, output)
	}
	softhsmtest.Run(s.t, s.notation.Program, "verify", "--insecure-registry", image)
	if n := s.signatures(image); n != 1 {
		s.t.Errorf("%s has %d signatures", image, n)
	}
}

// refuses checks that an image is not signed, and that the requester is told words.
func (s *site) refuses(ref, image, words string) {
	s.t.Helper()
	if output, signed := s.sign(ref, image); signed || !strings.Contains(output, words) {
		s.t.Errorf("%s: signed %v, or not told %q:\n%s", image, signed, words, output)
	}
	if n := s.signatures(image); n != 0 {
		s.t.Errorf("%s has %d signatures", image, n)
	}
}

// signatures returns how many signatures an image has in the registry.
func (s *site) signatures(image string) (n int) {
	s.t.Helper()
	name, digest, _ := strings.Cut(image, "@")
	repository, err := oci.Open(name)
	if err != nil {
		s.t.Fatal(err)
	}
	subject, err := repository.Resolve(s.t.Context(), digest)
	if err == nil {
		err = repository.Referrers(s.t.Context(), subject, "application/vnd.cncf.notary.signature",
			func(found []ocispec.Descriptor) error {
				n += len(found)
				return nil
			})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// flags returns the flags of hsm-broker that name the person's key.
func (p *person) flags() []string {
	if p.kind == "ssh" {
		return []string{"--ssh", p.file}
	}
	return []string{"--key", p.uri}
}

// variables returns those of a person at their own machine, who has the module of their key.
func (s *site) variables() []string {
	pin := filepath.Join(s.Dir, "pin")
	return append(s.caller(), "NOTATION_HSM_MODULE_PATH="+s.token.Module, "NOTATION_HSM_PIN_SOURCE=file:"+pin)
}

// runAs runs hsm-broker with the key of a person. It ends with an exit code, prints words, and returns its standard
// output.
func (s *site) runAs(name string, code int, words string, args ...string) string {
	s.t.Helper()
	return s.ends(code, words, s.variables(), s.Program, append(args, s.people[name].flags()...)...)
}
