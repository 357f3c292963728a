package chaos

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const (
	brokerHost = "broker.example.com"
	audience   = "https://" + brokerHost
	origin     = "broker.example.com/log"

	// perMinute is the limit of the rule "limited".
	perMinute = 20
)

// policy is that of all replicas. RELEASE and FREEZE become the keys' URIs, ISSUER the issuer of CI's tokens.
const policy = `version: 1
people:
  ann: [{issuer: mtls, subject: "CN=ann"}]
  ben: [{issuer: mtls, subject: "CN=ben"}]
  cem: [{issuer: mtls, subject: "CN=cem"}]
groups:
  managers: [ann, ben, cem]
keys:
  release:
    key: RELEASE
    formats: [notation]
    use:
    - name: nightly
      when: caller.issuer == "ISSUER" && caller.claims.repository == "example/nightly"
      limit: 100000 per hour
    - name: limited
      when: caller.issuer == "ISSUER" && caller.claims.repository == "example/limited"
      limit: 20 per minute
    - name: release
      when: caller.issuer == "ISSUER" && caller.claims.repository == "example/release"
      approvals: [{group: managers, quorum: 2}]
      same: [repository, ref]
      timeout: 2h
    - name: short
      when: caller.issuer == "ISSUER" && caller.claims.repository == "example/short"
      approvals: [{group: managers, quorum: 2}]
      same: [repository, ref]
      timeout: 15s
    block: [{name: operators, when: caller.subject == "CN=operator"}]
    unblock: [{name: operators, when: caller.subject == "CN=operator"}]
    modify: [{name: operators, when: caller.subject == "CN=operator"}]
  freeze:
    key: FREEZE
    formats: [notation]
    use: [{name: freeze, when: caller.issuer == "ISSUER" && caller.claims.repository == "example/nightly"}]
    block: [{name: operators, when: caller.subject == "CN=operator"}]
    unblock: [{name: operators, when: caller.subject == "CN=operator"}]
    modify: [{name: operators, when: caller.subject == "CN=operator"}]
`

// replica is an 'hsm-broker serve' on a host of its own.
type replica struct {
	*host
	w    *world
	name string
	dir  string

	mu      sync.Mutex
	process *process
	started int // of all starts of replicas, the number of its newest
}

// startReplicas makes what all replicas share, and starts them.
func (w *world) startReplicas() {
	w.t.Helper()
	w.callers = softhsmtest.NewCA(w.t, "callers", nil)
	server := softhsmtest.NewCA(w.t, "server", nil)
	w.file("ca.pem", server.PEM())
	w.roots = x509.NewCertPool()
	w.roots.AddCert(server.Cert)
	w.file("db-ca.pem", w.postgres.ca.PEM())
	w.file("db-password", password)
	w.file("callers.pem", w.callers.PEM())
	w.file("pin", softhsmtest.PIN)
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	w.file("replicas.key", hex.EncodeToString(secret)+"\n")
	w.makePeople()
	w.file("policy.yaml", strings.NewReplacer("RELEASE", uris("release"), "FREEZE", uris("freeze"), "ISSUER",
		w.issuer.URL).Replace(policy))
	public, err := x509.MarshalPKIXPublicKey(w.keys["log"].Public())
	w.must(err)
	w.file("log.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})))
	for _, label := range []string{"release", "freeze"} {
		template := softhsmtest.Template(label)
		w.file(label+".pem", softhsmtest.PEM((&softhsmtest.CA{Cert: template, Key: w.keys[label]}).Issue(w.t, template,
			w.keys[label].Public())))
	}
	for n := range countReplicas {
		name := fmt.Sprintf("broker-%d", n+1)
		r := &replica{host: w.net.add(name), w: w, name: name, dir: filepath.Join(w.dir, name)}
		w.replicas = append(w.replicas, r)
	}
	for _, r := range w.replicas {
		r.prepare(server)
	}
	w.replicas[0].start()
	w.until("the log has a checkpoint", func() bool {
		checkpoint, err := w.replicas[0].checkpoint()
		for _, other := range w.replicas[1:] {
			w.file(filepath.Join(other.name, "checkpoint"), string(checkpoint))
		}
		return err == nil
	})
	for _, r := range w.replicas[1:] {
		r.start()
	}
}

// uris returns the references of a key in all modules, in YAML.
func uris(label string) string {
	var all []string
	for n := range countModules {
		all = append(all, fmt.Sprintf("%q", fmt.Sprintf("pkcs11:token=hsm-%d;object=%s", n+1, label)))
	}
	return "[" + strings.Join(all, ", ") + "]"
}

func (r *replica) url() string { return "https://" + r.address + ":8443" }

// prepare writes the replica's files, and connects it to the modules and the issuer of tokens.
func (r *replica) prepare(ca *softhsmtest.CA) {
	w := r.w
	w.t.Helper()
	template := softhsmtest.Template(r.name)
	template.DNSNames, template.IPAddresses = []string{brokerHost}, []net.IP{net.ParseIP(r.address)}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	chain, key := w.pair(ca, template)
	w.file(filepath.Join(r.name, "tls.pem"), chain)
	w.file(filepath.Join(r.name, "tls.key"), key)
	modules := ""
	for _, m := range w.modules {
		socket := filepath.Join(r.dir, m.label)
		l, err := net.Listen("unix", socket)
		w.must(err)
		w.t.Cleanup(func() { l.Close() })
		go forward(l, func(ctx context.Context) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
			defer cancel()
			return r.dial(ctx, "tcp", m.address+":"+modulePort)
		})
		modules += fmt.Sprintf("- {token: \"pkcs11:token=%s\", module-path: %s, pin-source: \"file:%s/pin\", "+
			"timeout: 5s}\n", m.label, m.library, w.dir)
	}
	issuer := strings.TrimPrefix(w.issuer.URL, "https://") // which listens on this machine's loopback address
	go forward(r.listen("tcp", issuer), func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", issuer)
	})
	w.file(filepath.Join(r.name, "config.yaml"), fmt.Sprintf(`version: 1
public-url: %[1]s
rp-id: %[2]s
listen:
  https:
    address: "%[3]s:8443"
    certificate: %[4]s/%[5]s/tls.pem
    key: %[4]s/%[5]s/tls.key
    client-ca: %[4]s/callers.pem
  unix: {path: %[4]s/%[5]s/socket}
  metrics: 127.0.0.1:9464
%[6]s
policy: %[4]s/policy.yaml
approvers: %[4]s/approvers.yaml
modules:
%[7]skeys:
  release: {certificate-chain: %[4]s/release.pem}
  freeze: {certificate-chain: %[4]s/freeze.pem}
log: {key: %[8]s, origin: %[9]s, checkpoint-file: %[4]s/%[5]s/checkpoint}
callers:
  oidc:
  - {issuer: %[10]s, audience: %[1]s, type: github, ca: %[11]s}
  mtls: {}
  unix: {users: ["0"]}
  limits: {requests: 1000000 per minute, open: 100000}
administrators: [{unix: "0"}]
`, audience, brokerHost, r.address, w.dir, r.name, r.store(), modules, uris("log"), origin, w.issuer.URL, w.issuer.CA))
}

// store returns the settings of the store.
func (r *replica) store() string {
	return fmt.Sprintf("store: %s\nstore-password: file:%s/db-password\nreplicas: {key: %s/replicas.key, name: %s}",
		r.w.postgres.url(), r.w.dir, r.w.dir, r.name)
}

// starts counts the starts of all replicas.
var starts struct {
	sync.Mutex
	count int
}

// start starts the replica, and waits until it serves.
func (r *replica) start() {
	r.w.t.Helper()
	for {
		r.run()
		if r.serves() {
			return
		}
		r.w.t.Logf("%s ended at its start", r.name) // it does while the database is not reached
		time.Sleep(time.Second)
	}
}

// run starts the replica.
func (r *replica) run() {
	starts.Lock()
	starts.count++
	number := starts.count
	starts.Unlock()
	p := r.w.start(r.host, nil, []string{"CHAOS_MODULES=" + r.dir, "CHAOS_CLOCK=" + filepath.Join(r.dir, "clock")},
		r.name+".log", r.w.program, "serve", "--config", filepath.Join(r.dir, "config.yaml"))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.process, r.started = p, number
}

// serves waits until the replica serves callers, and returns false when it ends before.
func (r *replica) serves() bool {
	r.w.t.Helper()
	ok := true
	r.w.until(r.name+" serves", func() bool {
		ok = r.running().runs()
		_, err := r.get(brokerapi.HealthPath)
		return err == nil || !ok
	})
	return ok
}

func (r *replica) running() *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process
}

// number returns the number of the replica's newest start.
func (r *replica) number() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.started
}

// oldest returns the replica that runs for the longest time: it leads, unless it was taken for dead.
func (w *world) oldest() *replica {
	return slices.MinFunc(w.replicas, func(a, b *replica) int { return cmp.Compare(a.number(), b.number()) })
}

// kill ends the replica at once.
func (r *replica) kill() { r.running().kill() }

// pause stops the replica's process, or has it go on. Those of its modules go on.
func (r *replica) pause(paused bool) {
	if paused {
		r.running().signal(syscall.SIGSTOP)
		return
	}
	r.running().signal(syscall.SIGCONT)
}

// skew sets the replica's clock wrong, by so many seconds.
func (r *replica) skew(seconds int) {
	path := filepath.Join(r.dir, "clock")
	if err := os.WriteFile(path+".new", fmt.Append(nil, seconds), 0o600); err != nil {
		r.w.t.Error(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		r.w.t.Error(err)
	}
}

// get returns what the replica answers to everybody.
func (r *replica) get(path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	a := r.w.anyone().do(ctx, r, "", http.MethodGet, path, nil, nil)
	if a.status != http.StatusOK {
		return nil, fmt.Errorf("%s of %s: %w", path, r.name, a.failure())
	}
	return a.body, nil
}

// checkpoint returns the replica's newest checkpoint.
func (r *replica) checkpoint() ([]byte, error) { return r.get(brokerapi.LogPath + "/checkpoint") }
