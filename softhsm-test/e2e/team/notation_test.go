package team

import (
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// imagePolicy lets jobs sign the images of REGISTRY/app, and builders those of REGISTRY/nightly.
const imagePolicy = `version: 1
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: jobs
      when: caller.issuer == "ISSUER" && caller.claims.repository == "example/app" &&
        caller.claims.ref == "refs/heads/main" && artifact.repository == "REGISTRY/app"
    - name: builders
      when: caller.subject == "CN=builder" && artifact.repository == "REGISTRY/nightly"
`

// door is a way to a registry that can be shut.
type door struct {
	address string
	shut    atomic.Bool
	passing sync.Map // the connections that pass
}

// close shuts the door, and ends all connections.
func (d *door) close() {
	d.shut.Store(true)
	d.passing.Range(func(conn, _ any) bool {
		conn.(net.Conn).Close()
		return true
	})
}

// openDoor listens on loopback, and passes connections on.
func openDoor(t testing.TB, to string) *door {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it ends with the test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	d := &door{address: listener.Addr().String()}
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			go d.pass(from, to)
		}
	}()
	return d
}

func (d *door) pass(from net.Conn, to string) {
	defer from.Close()
	d.passing.Store(from, nil)
	defer d.passing.Delete(from)
	if d.shut.Load() {
		return
	}
	on, err := net.Dial("tcp", to) //nolint:noctx // both are on loopback
	if err != nil {
		return
	}
	defer on.Close()
	go func() {
		_, _ = io.Copy(on, from)
		on.Close()
	}()
	_, _ = io.Copy(from, on)
}

// TestNotation signs real images with the notation command: those that the policy allows to a job with a token and to a
// builder with a certificate. All else is refused, with the rule.
func TestNotation(t *testing.T) {
	softhsmtest.Parallel(t)
	registry := oci.StartRegistry(t)
	way := openDoor(t, registry)
	s := start(t, softhsmtest.TeamOptions{Limits: manyRequests,
		Policy:     strings.ReplaceAll(imagePolicy, "REGISTRY", way.address),
		Registries: `registries: [{host: "` + way.address + `", plain-http: true, loopback: true}]`})
	s.notation.Trust(t, s.chain)
	images := map[string]string{}
	for _, name := range []string{"app", "app2", "nightly"} {
		repository := strings.TrimSuffix(name, "2")
		digest, err := oci.PushImage(t.Context(), registry+"/"+repository+":"+name, name)
		if err != nil {
			t.Fatal(err)
		}
		images[name] = repository + "@" + digest.String()
	}
	sign := func(image string) (string, error) {
		repository, _, _ := strings.Cut(images[image], "@")
		stdout, stderr, err := softhsmtest.Try(t, "", s.notation.Program, "sign", "--insecure-registry", "--plugin", "hsm",
			"--id", "broker:release", "--plugin-config", "repository="+way.address+"/"+repository,
			way.address+"/"+images[image])
		return stdout + stderr, err
	}
	refused := func(what, image, words string) {
		t.Helper()
		if output, err := sign(image); err == nil || !strings.Contains(output, words) {
			t.Errorf("%s: %v\n%s", what, err, output)
		}
	}
	signed := func(image string) {
		t.Helper()
		if output, err := sign(image); err != nil {
			t.Fatalf("%s: %v\n%s", image, err, output)
		}
		softhsmtest.Run(t, s.notation.Program, "verify", "--insecure-registry", registry+"/"+images[image])
	}
	const no = `rule "jobs": `
	s.Use(t, s.ci())
	signed("app")
	refused("a used token", "app2", "token was used")
	s.Use(t, s.mint("example/other", "main"))
	refused("a job of another repository", "app", no)
	s.Use(t, s.mint("example/app", "feature"))
	refused("a job on another branch", "app", no)
	s.Use(t, s.Issuer.Mint(t, identitytest.GitHub(s.URL, "example/app", "refs/tags/main")))
	refused("a job on a tag", "app", no)
	s.Use(t, s.ci())
	refused("an image of another repository", "nightly", no)
	s.UseCertificate(t, "builder")
	signed("nightly")
	refused("another image of a builder", "app", `rule "builders": `)
	s.UseCertificate(t, "stranger")
	refused("another machine", "nightly", `rule "builders": `)

	way.shut.Store(true)
	s.Use(t, s.ci())
	refused("no registry", "app2", way.address)
	way.shut.Store(false)
	s.Use(t, s.ci())
	signed("app2")
	s.accounted()
}
