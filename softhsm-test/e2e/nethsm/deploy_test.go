package nethsm

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// What Nitrokey documents of the production container, besides the certificate authority's own key, which no container
// sees.
var (
	nethsmVariables = []string{"DEBUG_LOG", "ETCD_CA_CERT", "ETCD_CLIENT_CERT", "ETCD_CLIENT_KEY", "ETCD_HOST",
		"ETCD_PORT", "MODE", "UNLOCKPW"}
	nethsmSecrets = []string{"ca_cert", "client_cert", "client_key", "device_key", "server_cert", "server_key"}
)

// composeFile has the keys that the files of deploy/nethsm may have; any other is a mistake.
type composeFile struct {
	Name     string                    `yaml:"name"`
	Services map[string]composeService `yaml:"services"`
	Networks map[string]any            `yaml:"networks"`
	Volumes  map[string]any            `yaml:"volumes"`
	Secrets  map[string]struct {
		File string `yaml:"file"`
	} `yaml:"secrets"`
}

type composeService struct {
	Extends struct {
		File    string `yaml:"file"`
		Service string `yaml:"service"`
	} `yaml:"extends"`
	Image       string             `yaml:"image"`
	Command     []string           `yaml:"command"`
	Environment map[string]*string `yaml:"environment"`
	Ports       []string           `yaml:"ports"`
	Volumes     []string           `yaml:"volumes"`
	Networks    any                `yaml:"networks"`
	Secrets     []string           `yaml:"secrets"`
	Devices     []string           `yaml:"devices"`
	CapAdd      []string           `yaml:"cap_add"`
	SecurityOpt []string           `yaml:"security_opt"`
	ExtraHosts  []string           `yaml:"extra_hosts"`
	Restart     string             `yaml:"restart"`
	DependsOn   map[string]struct {
		Condition string `yaml:"condition"`
	} `yaml:"depends_on"`
	Healthcheck struct {
		Test        []string `yaml:"test"`
		Interval    string   `yaml:"interval"`
		Timeout     string   `yaml:"timeout"`
		StartPeriod string   `yaml:"start_period"`
		Retries     int      `yaml:"retries"`
	} `yaml:"healthcheck"`
}

func readCompose(t testing.TB, name string) composeFile {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(softhsmtest.Root(), "deploy", "nethsm", name))
	if err != nil {
		t.Fatal(err)
	}
	var file composeFile
	if err := yaml.Load(data, &file, yaml.WithKnownFields()); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return file
}

// needs are the secrets that a service's settings name by their path in the container.
func (s composeService) needs() (names []string) {
	words := slices.Concat(s.Command, s.Healthcheck.Test)
	for _, value := range s.Environment {
		if value != nil {
			words = append(words, *value)
		}
	}
	for _, word := range words {
		if _, name, ok := strings.Cut(word, "/run/secrets/"); ok {
			names = append(names, name)
		}
	}
	return names
}

func TestNetHSMCompose(t *testing.T) {
	softhsmtest.Parallel(t)
	for _, mode := range []string{"unix", "unikernel"} {
		t.Run(mode, func(t *testing.T) {
			file := readCompose(t, "compose-"+mode+".yaml")
			nethsm, etcd := file.Services["nethsm"], file.Services["etcd"]
			if got := slices.Sorted(maps.Keys(nethsm.Environment)); !slices.Equal(got, nethsmVariables) {
				t.Errorf("variables %v, not %v", got, nethsmVariables)
			}
			for name, want := range map[string]string{"MODE": mode, "ETCD_HOST": "etcd", "ETCD_PORT": "2379",
				"ETCD_CA_CERT":     "/run/secrets/ca_cert",
				"ETCD_CLIENT_CERT": "/run/secrets/client_cert", "ETCD_CLIENT_KEY": "/run/secrets/client_key"} {
				if value := nethsm.Environment[name]; value == nil || *value != want {
					t.Errorf("%s is not %s", name, want)
				}
			}
			for _, name := range []string{"UNLOCKPW", "DEBUG_LOG"} {
				if nethsm.Environment[name] != nil {
					t.Errorf("the file has a value for %s", name)
				}
			}
			if got := slices.Sorted(maps.Keys(file.Secrets)); !slices.Equal(got, nethsmSecrets) {
				t.Errorf("secrets %v, not %v", got, nethsmSecrets)
			}
			for name, secret := range file.Secrets {
				if secret.File != "./secrets/"+name {
					t.Errorf("%s is in %s, where make-secrets.sh does not put it", name, secret.File)
				}
			}
			for name, service := range file.Services {
				for _, secret := range service.Secrets {
					if _, ok := file.Secrets[secret]; !ok {
						t.Errorf("%s gets the secret %s, which is not defined", name, secret)
					}
				}
				for _, secret := range service.needs() {
					if !slices.Contains(service.Secrets, secret) {
						t.Errorf("%s does not get the secret %s", name, secret)
					}
				}
				if len(service.Healthcheck.Test) == 0 || service.Restart == "" || service.Image == "" {
					t.Errorf("%s has no health check, image or restart policy", name)
				}
				for _, volume := range service.Volumes {
					if volume, _, _ = strings.Cut(volume, ":"); !contains(file.Volumes, volume) {
						t.Errorf("%s has the volume %s, which is not defined", name, volume)
					}
				}
			}
			if !slices.Contains(nethsm.Secrets, "device_key") || slices.Contains(nethsm.Secrets, "server_key") ||
				slices.Contains(etcd.Secrets, "device_key") {
				t.Errorf("secrets in the wrong container: %v for NetHSM, %v for etcd", nethsm.Secrets, etcd.Secrets)
			}
			if want := []string{"${NETHSM_ADDRESS:-127.0.0.1}:8443:8443"}; !slices.Equal(nethsm.Ports, want) ||
				etcd.Ports != nil {
				t.Errorf("ports %v and %v", nethsm.Ports, etcd.Ports)
			}
			var devices, capabilities []string
			if mode == "unikernel" {
				devices, capabilities = []string{"/dev/kvm", "/dev/net/tun"}, []string{"NET_ADMIN"}
			}
			if !slices.Equal(nethsm.Devices, devices) || !slices.Equal(nethsm.CapAdd, capabilities) {
				t.Errorf("devices %v, capabilities %v", nethsm.Devices, nethsm.CapAdd)
			}
		})
	}
	unix, unikernel := readCompose(t, "compose-unix.yaml"), readCompose(t, "compose-unikernel.yaml")
	if !reflect.DeepEqual(unix.Services["etcd"], unikernel.Services["etcd"]) {
		t.Error("the two modes have different etcds")
	}

	three := readCompose(t, "compose-three-etcd.yaml")
	for number, name := range []string{"etcd", "etcd2", "etcd3"} {
		service := three.Services[name]
		if _, ok := three.Services["nethsm"].DependsOn[name]; !ok {
			t.Errorf("NetHSM does not wait for %s", name)
		}
		if want := fmt.Sprintf("etcd%d:/etcd-data", number+1); !slices.Equal(service.Volumes, []string{want}) ||
			!contains(three.Volumes, want[:5]) {
			t.Errorf("%s has the volumes %v, and there are %v", name, service.Volumes, three.Volumes)
		}
		if name != "etcd" && (service.Extends.File != "compose-unix.yaml" || service.Extends.Service != "etcd") {
			t.Errorf("%s extends %v", name, service.Extends)
		}
		for _, secret := range service.needs() {
			if !slices.Contains(unix.Services["etcd"].Secrets, secret) {
				t.Errorf("%s does not get the secret %s", name, secret)
			}
		}
		// What one member has, three have too.
		for _, flag := range unix.Services["etcd"].Command {
			if !strings.Contains(flag, "client-urls") && !slices.Contains(service.Command, flag) {
				t.Errorf("%s lacks %s", name, flag)
			}
		}
	}
	machines := readCompose(t, "compose-three-machines.yaml")
	for name, service := range machines.Services {
		if _, ok := three.Services[name]; !ok || len(service.ExtraHosts) != 3 {
			t.Errorf("%s on a machine of its own: %v", name, service.ExtraHosts)
		}
	}
	tests := readCompose(t, "compose-testing.yaml").Services["nethsm"]
	if !strings.HasPrefix(tests.Image, "${NETHSM_IMAGE:-docker.io/nitrokey/nethsm:testing}@") ||
		!slices.Equal(tests.Ports, []string{"127.0.0.1:8443:8443"}) {
		t.Errorf("the test container: %+v", tests)
	}
}

func contains(set map[string]any, name string) bool {
	_, ok := set[name]
	return ok
}

// The health checks of NetHSM's containers, against each state that it can answer with.
func TestNetHSMComposeHealth(t *testing.T) {
	softhsmtest.Parallel(t)
	softhsmtest.Program(t, "curl")
	answer := make(chan string, 2)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch state := <-answer; {
		case r.URL.Path != "/api/v1/health/state":
			w.WriteHeader(http.StatusNotFound)
		case state == "":
			w.WriteHeader(http.StatusInternalServerError)
		default:
			fmt.Fprintf(w, `{"state":"%s"}`, state)
		}
	}))
	defer server.Close()
	address := server.Listener.Addr().String()
	for _, name := range []string{"unix", "unikernel", "testing"} {
		check := readCompose(t, "compose-"+name+".yaml").Services["nethsm"].Healthcheck.Test
		if len(check) != 2 || check[0] != "CMD-SHELL" {
			t.Fatalf("the health check of %s: %v", name, check)
		}
		command := strings.NewReplacer("127.0.0.1:8443", address, "192.168.1.1:8443", address, "https://192.168.1.1/",
			"https://"+address+"/").Replace(check[1])
		for state, healthy := range map[string]bool{"Operational": true, "Locked": true, "Unprovisioned": true,
			"Failed": false, "": false} {
			answer <- state
			answer <- state // the second address is asked after the first has failed
			if _, stderr, err := softhsmtest.Try(t, "", "sh", "-c", command); (err == nil) != healthy {
				t.Errorf("%s in state %q: %v\n%s", name, state, err, stderr)
			}
			for len(answer) > 0 {
				<-answer
			}
		}
	}
}

// makeSecrets runs the script in a careless environment.
func makeSecrets(t testing.TB, dir string) (stdout, stderr string, err error) {
	t.Helper()
	softhsmtest.Program(t, "openssl")
	return softhsmtest.Try(t, "", "bash", "-c", `umask 000; exec "$0" "$1"`,
		filepath.Join(softhsmtest.Root(), "deploy", "nethsm", "make-secrets.sh"), dir)
}

// newSecrets returns a folder with secrets.
func newSecrets(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "secrets")
	if stdout, stderr, err := makeSecrets(t, dir); err != nil || stderr != "" {
		t.Fatalf("make-secrets.sh: %v\n%s%s", err, stdout, stderr)
	}
	return dir
}

func readFolder(t testing.TB, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[entry.Name()] = string(data)
	}
	return files
}

func readCertificate(t testing.TB, dir, name string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(data)
	if block == nil || len(rest) > 0 {
		t.Fatalf("%s is not one PEM block", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestNetHSMSecrets(t *testing.T) {
	softhsmtest.Parallel(t)
	dir := newSecrets(t)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder has %v (%v)", info.Mode(), err)
	}
	files := readFolder(t, dir)
	if got, want := slices.Sorted(maps.Keys(files)),
		slices.Sorted(slices.Values(append([]string{"ca_key"}, nethsmSecrets...))); !slices.Equal(got, want) {
		t.Errorf("made %v, not %v", got, want)
	}
	for name := range files {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has %v (%v)", name, info.Mode(), err)
		}
	}
	if key, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(files["device_key"], "\n")); err != nil ||
		len(key) != 32 {
		t.Errorf("the device key has %d bytes (%v)", len(key), err)
	}

	ca, client, server := readCertificate(t, dir, "ca_cert"), readCertificate(t, dir, "client_cert"),
		readCertificate(t, dir, "server_cert")
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if !ca.IsCA || !ca.MaxPathLenZero || ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign ||
		time.Until(ca.NotAfter) < 9*365*24*time.Hour {
		t.Errorf("the CA: path length %d, usage %v, until %v", ca.MaxPathLen, ca.KeyUsage, ca.NotAfter)
	}
	for _, test := range []struct {
		cert    *x509.Certificate
		purpose x509.ExtKeyUsage
		names   []string
		ok      bool
	}{
		{client, x509.ExtKeyUsageClientAuth, nil, true},
		{client, x509.ExtKeyUsageServerAuth, nil, false},
		{server, x509.ExtKeyUsageServerAuth, []string{"etcd", "etcd1", "etcd2", "etcd3", "localhost", "127.0.0.1", "::1"},
			true},
		{server, x509.ExtKeyUsageClientAuth, nil, true},
		{server, x509.ExtKeyUsageCodeSigning, nil, false},
	} {
		options := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{test.purpose}}
		if _, err := test.cert.Verify(options); (err == nil) != test.ok {
			t.Errorf("%s for %v: %v", test.cert.Subject, test.purpose, err)
		}
		for _, name := range test.names {
			if err := test.cert.VerifyHostname(name); err != nil {
				t.Error(err)
			}
		}
		if left := time.Until(test.cert.NotAfter); left < 700*24*time.Hour || left > 825*24*time.Hour {
			t.Errorf("%s runs for %v", test.cert.Subject, left)
		}
	}
	// etcd holds a client certificate with names against the address that the client comes from.
	if len(client.DNSNames)+len(client.IPAddresses) > 0 {
		t.Error("the client certificate names hosts")
	}
}

// What is there is kept, what is missing is made, and what does not belong together is reported.
func TestNetHSMSecretsAgain(t *testing.T) {
	softhsmtest.Parallel(t)
	made := newSecrets(t)
	before := readFolder(t, made)
	for _, test := range []struct {
		name   string
		remove []string
		change func(dir string)
		remade []string // besides them nothing changes
		says   string   // of an error
	}{
		{name: "nothing"},
		{name: "certificate", remove: []string{"client_cert"}, remade: []string{"client_cert"}},
		{name: "client", remove: []string{"client_cert", "client_key"}, remade: []string{"client_cert", "client_key"}},
		{name: "device key", remove: []string{"device_key"}, remade: []string{"device_key"}},
		{name: "authority put away", remove: []string{"ca_key"}},
		{name: "authority put away, certificate wanted", remove: []string{"ca_key", "server_cert"},
			says: "put ca_key back"},
		{name: "authority lost", remove: []string{"ca_key", "ca_cert"}, says: "no ca_cert"},
		{name: "key lost", remove: []string{"server_key"}, remade: []string{"server_key"},
			says: "server_key is not the key of server_cert"},
		{name: "another authority's certificate", change: func(dir string) {
			other := readFolder(t, newSecrets(t))
			for _, name := range []string{"client_cert", "client_key"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(other[name]), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, remade: []string{"client_cert", "client_key"}, says: "client_cert was not issued by ca_cert"},
		{name: "readable by all", change: func(dir string) {
			if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "device_key"), 0o644)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "secrets")
			if err := os.CopyFS(dir, os.DirFS(made)); err != nil {
				t.Fatal(err)
			}
			for _, name := range test.remove {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			if test.change != nil {
				test.change(dir)
			}
			_, stderr, err := makeSecrets(t, dir)
			if (err == nil) != (test.says == "") || !strings.Contains(stderr, test.says) {
				t.Errorf("%v: %s", err, stderr)
			}
			if err != nil && (!strings.HasPrefix(stderr, "error: ") || !strings.Contains(stderr, "\nhint: ")) {
				t.Errorf("not said as errors are: %s", stderr)
			}
			after := readFolder(t, dir)
			for name, text := range before {
				switch {
				case slices.Contains(test.remade, name):
					if after[name] == "" || after[name] == text {
						t.Errorf("%s was not made again", name)
					}
				case slices.Contains(test.remove, name):
					if after[name] != "" {
						t.Errorf("%s was made again", name)
					}
				case after[name] != text:
					t.Errorf("%s has changed", name)
				}
			}
			if err == nil {
				if info, err := os.Stat(filepath.Join(dir, "device_key")); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("the device key has %v (%v)", info.Mode(), err)
				}
			}
		})
	}
}

// Runs at the same time end with one set of secrets.
func TestNetHSMSecretsAtOnce(t *testing.T) {
	softhsmtest.Parallel(t)
	dir := filepath.Join(t.TempDir(), "secrets")
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if _, stderr, err := makeSecrets(t, dir); err != nil {
				t.Errorf("%v: %s", err, stderr)
			}
		})
	}
	group.Wait()
	if files := readFolder(t, dir); len(files) != len(nethsmSecrets)+1 {
		t.Errorf("left %v", slices.Sorted(maps.Keys(files)))
	}
}

// etcdTLS is how NetHSM's proxy speaks to etcd: it trusts the CA of one folder, shows the client certificate of another
// (none: ""), and knows every member by the name that ETCD_HOST has.
func etcdTLS(t testing.TB, trusted, shown string) *tls.Config {
	t.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "etcd", NextProtos: []string{"h2"}}
	config.RootCAs.AddCert(readCertificate(t, trusted, "ca_cert"))
	if shown != "" {
		cert, err := tls.LoadX509KeyPair(filepath.Join(shown, "client_cert"), filepath.Join(shown, "client_key"))
		if err != nil {
			t.Fatal(err)
		}
		// By GetClientCertificate it is shown whatever authorities the server asks for.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return config
}

// isRefused connects, and tells (by nil) a refused handshake from a server that speaks (HTTP/2's server begins), or is
// silent, or not there.
func isRefused(address string, config *tls.Config) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Minute}, "tcp", address, config)
	if err == nil {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, err = conn.Read(make([]byte, 1)) // with TLS 1.3 the refusal comes when the client's side is done
	}
	switch {
	case err == nil:
		return errors.New("was let in")
	case strings.Contains(err.Error(), "tls: ") || errors.Is(err, syscall.ECONNRESET):
		return nil
	default:
		return fmt.Errorf("was not refused: %w", err)
	}
}

func newEtcdClient(t testing.TB, secrets string) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: etcdTLS(t, secrets, secrets), ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// ask posts a request to etcd's JSON gateway.
func ask(client *http.Client, url string, request, response any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	answer, err := client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", answer.Status, text)
	}
	return json.Unmarshal(text, response)
}

// transaction puts as many keys at once.
func transaction(client *http.Client, url string, puts int) error {
	operations := make([]map[string]any, puts)
	for i := range operations {
		operations[i] = map[string]any{"requestPut": map[string][]byte{"key": fmt.Appendf(nil, "key-%d", i),
			"value": []byte("value")}}
	}
	var response struct{ Succeeded bool }
	if err := ask(client, url+"/v3/kv/txn", map[string]any{"success": operations}, &response); err != nil {
		return err
	}
	if !response.Succeeded {
		return errors.New("the transaction did not succeed")
	}
	return nil
}

// here makes a word of a compose file one for this machine.
func here(secrets, data string, addresses ...string) *strings.Replacer {
	return strings.NewReplacer(append(addresses, "/run/secrets/", secrets+"/", "/etcd-data", data)...)
}

func hasEnded(s *softhsmtest.Service) bool {
	select {
	case <-s.Ended:
		return true
	default:
		return false
	}
}

func startEtcd(t testing.TB, of composeService, words *strings.Replacer, more ...string) *softhsmtest.Service {
	t.Helper()
	program := softhsmtest.Program(t, "etcd")
	if len(of.Command) == 0 || of.Command[0] != "etcd" {
		t.Fatalf("the command is %v", of.Command)
	}
	var args []string
	for _, word := range of.Command[1:] {
		args = append(args, words.Replace(word))
	}
	return softhsmtest.Start(t, program, append(args, more...)...)
}

// Debian's etcd with the secrets of make-secrets.sh, as the compose files start it.
func TestNetHSMEtcd(t *testing.T) {
	softhsmtest.Parallel(t)
	secrets, others := newSecrets(t), newSecrets(t)
	etcd := readCompose(t, "compose-unix.yaml").Services["etcd"]
	client := newEtcdClient(t, secrets)
	var url string
	var running *softhsmtest.Service
	var words *strings.Replacer
	for range 5 { // should someone else take the port in between
		addresses := softhsmtest.FreeAddresses(t, 1)
		url = "https://" + addresses[0]
		words = here(secrets, filepath.Join(t.TempDir(), "data"), "0.0.0.0:2379", addresses[0], "etcd:2379", addresses[0],
			"127.0.0.1:2379", addresses[0])
		// In a container of its own, etcd may have its default port for members it does not have.
		running = startEtcd(t, etcd, words, "--listen-peer-urls=http://127.0.0.1:0")
		if running.Ready(func() bool { return transaction(client, url, 1) == nil }) {
			break
		}
		if !hasEnded(running) {
			t.Fatalf("etcd does not answer:\n%s", running.Stop())
		}
		url = ""
	}
	if url == "" {
		t.Fatal("etcd did not start")
	}

	if err := transaction(client, url, 512); err != nil {
		t.Errorf("512 operations in a transaction: %v", err)
	}
	if err := transaction(client, url, 513); err == nil || !strings.Contains(err.Error(), "too many operations") {
		t.Errorf("513 operations in a transaction: %v", err)
	}
	for name, config := range map[string]*tls.Config{
		"a client without certificate":              etcdTLS(t, secrets, ""),
		"a client with another CA's certificate":    etcdTLS(t, secrets, others),
		"an etcd that another CA has not certified": etcdTLS(t, others, secrets),
	} {
		if err := isRefused(strings.TrimPrefix(url, "https://"), config); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := transaction(client, "http"+strings.TrimPrefix(url, "https"), 1); err == nil {
		t.Error("etcd takes requests in the clear")
	}

	check := etcd.Healthcheck.Test
	if len(check) < 2 || check[0] != "CMD" || check[1] != "etcdctl" {
		t.Fatalf("the health check is %v", check)
	}
	var args []string
	for _, word := range check[2:] {
		args = append(args, words.Replace(word))
	}
	softhsmtest.Run(t, softhsmtest.Program(t, "etcdctl"), args...)
	client.CloseIdleConnections() // etcd waits for them before it ends
	running.Stop()
	if _, _, err := softhsmtest.Try(t, "", softhsmtest.Program(t, "etcdctl"), args...); err == nil {
		t.Error("an etcd that does not run is healthy")
	}
}

// Three members find each other, and two go on without the third, even when it was the one that led.
func TestNetHSMThreeEtcd(t *testing.T) {
	softhsmtest.Parallel(t)
	secrets := newSecrets(t)
	file := readCompose(t, "compose-three-etcd.yaml")
	client := newEtcdClient(t, secrets)
	var members map[string]*softhsmtest.Service // by URL
	var peers []string
	for range 5 {
		addresses := softhsmtest.FreeAddresses(t, 6)
		urls := map[string]*softhsmtest.Service{}
		peers = addresses[3:]
		for i, name := range []string{"etcd", "etcd2", "etcd3"} {
			words := here(secrets, filepath.Join(t.TempDir(), "data"), "0.0.0.0:2379", addresses[i], "0.0.0.0:2380", peers[i],
				fmt.Sprintf("etcd%d:2379", i+1), addresses[i], "etcd1:2380", peers[0], "etcd2:2380", peers[1], "etcd3:2380",
				peers[2])
			urls["https://"+addresses[i]] = startEtcd(t, file.Services[name], words)
		}
		ended := func() bool { return slices.ContainsFunc(slices.Collect(maps.Values(urls)), hasEnded) }
		for url, member := range urls {
			member.Ready(func() bool { return ended() || transaction(client, url, 512) == nil })
		}
		if !ended() {
			members = urls
			break
		}
		for _, member := range urls {
			member.Stop()
		}
	}
	if members == nil {
		t.Fatal("the members did not find each other")
	}

	for _, peer := range peers { // members prove themselves to each other too
		if err := isRefused(peer, etcdTLS(t, secrets, "")); err != nil {
			t.Errorf("a member without certificate: %v", err)
		}
	}

	for url, member := range members {
		var status struct {
			Leader string
			Header struct {
				MemberID string `json:"member_id"`
			}
		}
		if err := ask(client, url+"/v3/maintenance/status", struct{}{}, &status); err != nil {
			t.Fatal(err)
		}
		if status.Leader == status.Header.MemberID {
			client.CloseIdleConnections() // etcd waits for them before it ends
			member.Stop()
			delete(members, url)
			break
		}
	}
	if len(members) != 2 {
		t.Fatal("no member led")
	}
	for url, member := range members {
		if !member.Ready(func() bool { return transaction(client, url, 512) == nil }) {
			t.Errorf("a member did not go on without the third: %v", transaction(client, url, 512))
		}
	}
	for url, member := range members { // alone, one cannot know what the others have; so it was three that agreed above
		client.CloseIdleConnections()
		member.Stop()
		delete(members, url)
		break
	}
	for url := range members {
		if transaction(client, url, 1) == nil {
			t.Error("one of three members goes on by itself")
		}
	}
	client.CloseIdleConnections()
}
