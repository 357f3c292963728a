package kubernetes

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// A cluster is an API server with etcd, both on loopback, and the kubectl command that speaks to it. It has no nodes
// and no controllers: Pods are admitted or refused, and none ever runs.
type cluster struct {
	kubectl string
	config  string          // kubectl's
	ca      *softhsmtest.CA // that the API server trusts its webhooks by
}

func startCluster(t testing.TB) *cluster {
	t.Helper()
	dir, ca, addresses := t.TempDir(), softhsmtest.NewCA(t, "cluster", nil), softhsmtest.FreeAddresses(t, 3)
	c := &cluster{kubectl: clusterProgram(t, "kubectl"), config: filepath.Join(dir, "kubeconfig"), ca: ca}
	etcd, peers, api := "http://"+addresses[0], "http://"+addresses[1], addresses[2]
	softhsmtest.Start(t, softhsmtest.Program(t, "etcd"), "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)

	tls, tokens, account := c.certificate(t), filepath.Join(dir, "tokens.csv"), filepath.Join(dir, "account.pem")
	softhsmtest.Write(t, tokens, "administrator,admin,1,system:masters\nnode,system:node:worker,2,system:nodes\n")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, account, keyPEM(t, key))
	softhsmtest.Write(t, c.config, fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: test,
contexts: [{name: test, context: {cluster: test, user: test}}],
clusters: [{name: test, cluster: {server: "https://%s", certificate-authority-data: %s}}],
users: [{name: test, user: {token: administrator}}]}`, api, base64.StdEncoding.EncodeToString([]byte(ca.PEM()))))
	_, port, _ := net.SplitHostPort(api)
	server := softhsmtest.Start(t, clusterProgram(t, "kube-apiserver"), "--etcd-servers", etcd, "--bind-address",
		"127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", port, "--endpoint-reconciler-type", "none",
		"--tls-cert-file", filepath.Join(tls, "tls.crt"), "--tls-private-key-file", filepath.Join(tls, "tls.key"),
		"--token-auth-file", tokens, "--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.0.0.0/24",
		"--service-account-issuer", "https://"+api, "--service-account-key-file", account,
		"--service-account-signing-key-file", account,
		"--disable-admission-plugins", "ServiceAccount") // whose accounts a controller makes
	waitFor(t, "the API server", server, func() bool {
		_, _, err := c.try(t, "", "get", "--raw", "/readyz")
		return err == nil
	})
	return c
}

// certificate returns a folder with tls.crt and tls.key for a server on loopback, and ca.crt.
func (c *cluster) certificate(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := softhsmtest.Template("127.0.0.1")
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	dir := t.TempDir()
	softhsmtest.Write(t, filepath.Join(dir, "tls.crt"), softhsmtest.PEM(c.ca.Issue(t, template, &key.PublicKey)))
	softhsmtest.Write(t, filepath.Join(dir, "tls.key"), keyPEM(t, key))
	softhsmtest.Write(t, filepath.Join(dir, "ca.crt"), c.ca.PEM())
	return dir
}

func keyPEM(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

// waitFor waits until a condition holds, or a service has ended.
func waitFor(t testing.TB, what string, of *softhsmtest.Service, condition func() bool) {
	t.Helper()
	if !of.Ready(condition) {
		t.Fatalf("waiting for %s: the server ended\n%s", what, tail(of.Output.String()))
	}
}

// logAtFailure prints the end of a server's output when the test has failed.
func logAtFailure(t testing.TB, s *softhsmtest.Service) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tail(s.Stop()))
		}
	})
}

func tail(text string) string {
	return text[max(0, len(text)-8000):]
}

func (c *cluster) try(t testing.TB, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return softhsmtest.Try(t, stdin, c.kubectl, append(
		[]string{"--kubeconfig", c.config, "--cache-dir", filepath.Join(filepath.Dir(c.config), "cache")}, args...)...)
}

func (c *cluster) run(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	stdout, stderr, err := c.try(t, stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// pod is the manifest of a Pod. Its volume and its init container are there when they have an image.
func pod(name, image, init, volume string) string {
	spec := map[string]any{"containers": []any{map[string]string{"name": "c", "image": image}}}
	if init != "" {
		spec["initContainers"] = []any{map[string]string{"name": "i", "image": init}}
	}
	if volume != "" {
		spec["volumes"] = []any{map[string]any{"name": "v", "image": map[string]string{"reference": volume}}}
	}
	data, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]string{"name": name}, "spec": spec})
	if err != nil {
		panic(err)
	}
	return string(data)
}

// signedImages are images in a registry, and the trust manifest that trusts alice in one repository, app, and mallory
// in all others.
type signedImages struct {
	notation, plugin                  string
	folder                            string
	app                               string // signed by alice
	digests                           map[string]string
	down                              atomic.Bool // of the registry
	second, unsigned, stranger, moved string
}

func newSignedImages(t testing.TB) *signedImages {
	t.Helper()
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	s := &signedImages{notation: n.Program, plugin: n.Plugin, folder: t.TempDir(), digests: map[string]string{}}
	backend, err := url.Parse("http://" + oci.StartRegistry(t))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(backend)
	server := &http.Server{ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.down.Load() {
				panic(http.ErrAbortHandler) // closes the connection
			}
			proxy.ServeHTTP(w, r)
		})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	registry := "localhost:" + port // which Kyverno and Ratify speak plain HTTP to
	for _, name := range []string{"alice", "mallory"} {
		uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", token.Label, "--spec", "EC-256",
			"--label", name))
		file := filepath.Join(s.folder, name+".pem")
		softhsmtest.Write(t, file, softhsmtest.Run(t, n.Plugin, "cert", "self-sign", uri, "--subject", "CN="+name+
			",O=Example,C=CH,ST=Zurich"))
		softhsmtest.Run(t, n.Plugin, "cert", "import", uri, file)
	}
	push := func(reference, signer string) string {
		digest, err := oci.PushImage(t.Context(), registry+"/team/"+reference, reference)
		if err != nil {
			t.Fatal(err)
		}
		s.digests[registry+"/team/"+reference] = digest.String()
		if signer != "" {
			repository, _, _ := strings.Cut(reference, ":")
			softhsmtest.Run(t, n.Program, "sign", "--plugin", "hsm", "--id", "pkcs11:token=signing;object="+signer,
				registry+"/team/"+repository+"@"+digest.String())
		}
		return registry + "/team/" + reference
	}
	s.app, s.second = push("app:signed", "alice"), push("app:second", "alice")
	s.unsigned, s.stranger, s.moved = push("app:unsigned", ""), push("app:stranger", "mallory"),
		push("other:signed", "alice")
	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", filepath.Join(s.folder, "trust.yaml"))
	softhsmtest.Setenv(t, "HOME", s.folder)
	softhsmtest.Run(t, n.Plugin, "trust", "init")
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "alice", "--scope", registry+"/team/app", "--cert",
		filepath.Join(s.folder, "alice.pem"))
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "mallory", "--scope", "*", "--cert", filepath.Join(s.folder,
		"mallory.pem"))
	return s
}

// pinned returns an image by its digest, without its tag.
func (s *signedImages) pinned(image string) string {
	return image[:strings.LastIndex(image, ":")] + "@" + s.digests[image]
}

// export writes the trust manifest for the cluster, and returns the file.
func (s *signedImages) export(t testing.TB, format string) string {
	t.Helper()
	path := filepath.Join(s.folder, format+".yaml")
	softhsmtest.Run(t, s.plugin, "trust", "export", "--format", format, "--to", path)
	return path
}

// unsign deletes the signatures of an image.
func (s *signedImages) unsign(t testing.TB, image string) {
	t.Helper()
	repository, err := oci.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	subject, err := repository.Resolve(t.Context(), repository.Reference.Reference)
	if err != nil {
		t.Fatal(err)
	}
	var all []ocispec.Descriptor
	err = repository.Referrers(t.Context(), subject, "", func(found []ocispec.Descriptor) error {
		all = append(all, found...)
		return nil
	})
	if err != nil || len(all) == 0 {
		t.Fatalf("%s has %d signatures: %v", image, len(all), err)
	}
	for _, signature := range all {
		if err := repository.Delete(t.Context(), signature); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	refusedUnsigned = "no signature of a signer trusted for it"
	refusedTag      = "does not have a digest"
)

// checkAdmission creates and changes Pods in a cluster that verifies images, and holds what it says against what the
// trust manifest says. It has the verifier hang for a part of it.
func checkAdmission(t *testing.T, c *cluster, s *signedImages, hang, resume func()) {
	t.Helper()
	refused := func(name, why, stdin string, args ...string) {
		t.Helper()
		stdout, stderr, err := c.try(t, stdin, args...)
		if err == nil || !strings.Contains(stderr, why) {
			t.Errorf("%s: not refused with %q: %v\n%s%s", name, why, err, stdout, stderr)
		}
	}
	create := []string{"create", "-f", "-"}
	images := func(pod string) string {
		return strings.TrimSpace(c.run(t, "", "get", "pod", pod, "-o",
			"jsonpath={.spec.containers[*].image} {.spec.initContainers[*].image} {.spec.volumes[*].image.reference}"))
	}

	// What comes in, and that it is what was verified: a tag becomes a digest.
	c.run(t, pod("tag", s.app, "", ""), create...)
	if got := images("tag"); !strings.HasSuffix(got, "@"+s.digests[s.app]) {
		t.Errorf("the tag became %q, not %s", got, s.digests[s.app])
	}
	c.run(t, pod("digest", s.pinned(s.app), "", ""), create...)
	c.run(t, pod("init", s.pinned(s.app), s.app, ""), create...)
	if got := images("init"); strings.Count(got, "@"+s.digests[s.app]) != 2 {
		t.Errorf("the images with an init container are %q", got)
	}
	c.run(t, pod("volume", s.pinned(s.app), "", s.pinned(s.app)), create...)

	for _, bad := range []struct{ name, why, pod string }{
		{"unsigned", refusedUnsigned, pod("bad", s.unsigned, "", "")},
		{"unsigned digest", refusedUnsigned, pod("bad", s.pinned(s.unsigned), "", "")},
		{"stranger", refusedUnsigned, pod("bad", s.stranger, "", "")},
		{"other repository", refusedUnsigned, pod("bad", s.moved, "", "")},
		{"unsigned init container", refusedUnsigned, pod("bad", s.app, s.unsigned, "")},
		{"unsigned volume", refusedUnsigned, pod("bad", s.app, "", s.pinned(s.unsigned))},
		{"stranger's volume", refusedUnsigned, pod("bad", s.app, "", s.pinned(s.stranger))},
		{"volume of another repository", refusedUnsigned, pod("bad", s.app, "", s.pinned(s.moved))},
		{"registry in capitals", "", pod("bad", strings.Replace(s.pinned(s.stranger), "localhost", "LOCALHOST", 1), "",
			"")},
		{"port with a zero", "", pod("bad", strings.Replace(s.pinned(s.stranger), ":", ":0", 1), "", "")},
		{"volume from a port with a zero", "", pod("bad", s.app, "", strings.Replace(s.pinned(s.stranger), ":", ":0", 1))},
		{"volume with a tag", refusedTag, pod("bad", s.app, "", s.app)},
	} {
		refused(bad.name, bad.why, bad.pod, create...)
	}

	// Changes to a Pod that runs.
	c.run(t, "", "debug", "tag", "--image", s.pinned(s.app), "--container", "good", "--profile", "general")
	refused("ephemeral container", refusedUnsigned, "", "debug", "tag", "--image", s.pinned(s.unsigned), "--container",
		"bad", "--profile", "general")
	refused("update to unsigned", refusedUnsigned, "", "set", "image", "pod/digest", "c="+s.pinned(s.unsigned))
	c.run(t, "", "patch", "pod", "digest", "--type", "merge", "-p", `{"metadata": {"finalizers": ["example.com/hold"]}}`)

	// Without the registry nothing comes in, and what is in can be changed otherwise and removed.
	s.down.Store(true)
	refused("the registry is down", "", pod("bad", s.pinned(s.second), "", ""), create...)
	c.run(t, "", "label", "pod", "digest", "colour=red")
	s.down.Store(false)
	c.run(t, pod("up", s.pinned(s.second), "", ""), create...)

	// A signature that is deleted counts at once, as no answer is remembered.
	c.run(t, pod("before", s.pinned(s.app), "", ""), create...)
	s.unsign(t, s.app)
	refused("the signature is deleted", refusedUnsigned, pod("bad", s.pinned(s.app), "", ""), create...)
	c.run(t, "", "delete", "pod", "digest", "--wait=false", "--grace-period", "0", "--force")
	c.run(t, "", "patch", "pod", "digest", "--type", "merge", "-p", `{"metadata": {"finalizers": null}}`)
	if left := c.run(t, "", "get", "pod", "digest", "--ignore-not-found"); left != "" {
		t.Errorf("a Pod that verifies no more cannot be removed: %s", left)
	}

	// While the verifier hangs, no Pod is admitted.
	hang()
	refused("the verifier hangs", "", pod("bad", s.pinned(s.second), "", ""), create...)
	resume()
	c.run(t, pod("resumed", s.pinned(s.second), "", ""), create...)
	if left := c.run(t, "", "get", "pod", "bad", "--ignore-not-found"); left != "" {
		t.Errorf("a refused Pod is there: %s", left)
	}
}
