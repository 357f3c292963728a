package api

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestLongPoll answers those who wait for a request when it is settled, and no more than maxPolls wait at once.
func TestLongPoll(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	made := read[brokerapi.Request](t, f.token("people").want(201, wish(1)))
	if made.State != brokerapi.Pending || made.URL != audience+"/requests/"+made.ID {
		t.Errorf("%+v", made)
	}
	waiting := get(brokerapi.RequestPath(made.ID) + "?wait=60")
	var group sync.WaitGroup
	for range 3 {
		one := f.token("people")
		group.Go(func() {
			if got := read[brokerapi.Request](t, one.want(200, waiting)); got.State != brokerapi.Cancelled {
				t.Errorf("woken in the state %s", got.State)
			}
		})
	}
	for f.api.polls.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	f.api.polls.Add(maxPolls - 3)
	f.token("people").want(429, waiting)
	f.api.polls.Add(3 - maxPolls)
	f.token("people").want(200, post(brokerapi.CancelPath(made.ID), nil))
	group.Wait()
	if n := f.api.polls.Load(); n != 0 {
		t.Errorf("%d requests wait", n)
	}
}

// TestLocation names the request that waits in a header, and gives a caller that asks again the same one.
func TestLocation(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	slow := f.token("slow")
	answer := slow.want(202, sign(1))
	made := read[brokerapi.Request](t, answer)
	if got := answer.Header.Get("Location"); got != brokerapi.RequestPath(made.ID) || made.NotBefore == nil {
		t.Errorf("Location: %s of %+v", got, made)
	}
	if again := read[brokerapi.Request](t, slow.want(202, sign(1))); again.ID != made.ID {
		t.Errorf("another request for the same: %s", again.ID)
	}
	if got := read[brokerapi.Request](t, slow.want(200, get(answer.Header.Get("Location")))); got.ID != made.ID {
		t.Errorf("%+v", got)
	}
}

// TestRequest refuses what the description does not have, and gives every request a name of its own.
func TestRequest(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ci := f.token("ci")
	list, one := brokerapi.RequestsPath, brokerapi.RequestPath("r-1")
	long := strings.Repeat("a", maxName+1)
	for _, path := range []string{list + "?state=other", list + "?state=signed&state=lost", list + "?limit=",
		list + "?limit=01", list + "?limit=101", list + "?limit=-1", list + "?limit=1.5", list + "?wait=1",
		list + "?State=signed",
		list + "?key=" + long, list + "?before=" + long, list + "?state=%zz", list + "?state=signed;limit=1", one + "?wait=",
		one + "?wait=0", one + "?wait=1s", one + "?wait=1&wait=2", one + "?limit=1", brokerapi.KeysPath + "?limit=1",
		brokerapi.ReadyPath + "?verbose", brokerapi.LogPath + "/checkpoint?x=1"} {
		ci.want(400, get(path))
	}
	ci.want(400, post(brokerapi.CancelPath("r-1")+"?wait=1", nil))
	for _, path := range []string{"/", "/v1", "/v1/", "/v2/keys", "/v1/keys/", "//v1/keys", "/v1/keys/../keys", "/V1/keys",
		"/v1/keys/a/b/signatures", "/v1/requests/", "/healthz/", "/metrics", "/v1/log", "/v1/log/../version",
		"/v1/keys/release/layer-keys", "/v1/agent"} {
		ci.want(404, get(path))
	}
	for path, allowed := range map[string]string{list: "GET, POST", brokerapi.EpochPath: "POST", brokerapi.KeysPath: "GET",
		brokerapi.LogPath + "/checkpoint": "GET"} {
		for _, method := range []string{"HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get"} {
			if answer := ci.want(405, request{method: method, path: path}); answer.Header.Get("Allow") != allowed {
				t.Errorf("%s %s: Allow: %s", method, path, answer.Header.Get("Allow"))
			}
		}
	}
	names := map[string]bool{}
	for _, path := range []string{"/", brokerapi.KeysPath, brokerapi.KeysPath, brokerapi.VersionPath} {
		r := get(path)
		r.header = http.Header{requestID: {"mine"}}
		names[ci.do(r).Header.Get(requestID)] = true
	}
	if len(names) != 4 || names["mine"] {
		t.Errorf("names of requests: %v", names)
	}
}

// TestWish refuses requests beforehand that no payload can fulfil, and keeps none of them.
func TestWish(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for name, change := range map[string]func(*brokerapi.NewRequest){
		"no digest":         func(n *brokerapi.NewRequest) { n.Artifact.Digest = "" },
		"another digest":    func(n *brokerapi.NewRequest) { n.Artifact.Digest = "md5:" + strings.Repeat("a", 32) },
		"a short digest":    func(n *brokerapi.NewRequest) { n.Artifact.Digest = n.Artifact.Digest[:70] },
		"a long media type": func(n *brokerapi.NewRequest) { n.Artifact.MediaType = strings.Repeat("a", maxMediaType+1) },
		"a negative size":   func(n *brokerapi.NewRequest) { n.Artifact.Size = -1 },
		"negative expiry":   func(n *brokerapi.NewRequest) { n.Expiry = -1 },
		"late expiry":       func(n *brokerapi.NewRequest) { n.Expiry = maxExpiry + 1 },
	} {
		n := newRequest(1)
		change(&n)
		if answer := f.token("ci").want(400, post(brokerapi.RequestsPath, n)); answer.Status != 400 {
			t.Error(name)
		}
	}
	long := newRequest(1)
	long.Artifact.Annotations = map[string]string{"a": strings.Repeat("b", maxAnnotations)}
	if err := checkWish(long); err == nil {
		t.Error("long annotations")
	}
	if page := read[brokerapi.Requests](t, f.admin().want(200, get(brokerapi.RequestsPath))); len(page.Requests) != 0 {
		t.Errorf("%+v", page)
	}
}

// TestPage leaves to the page what is not of the API, with all that came.
func TestPage(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.api.options.Page = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "page %s %s %s", r.Method, r.URL, body)
	})
	for _, path := range []string{"/", "/requests/r-1", "/login?next=%2Fv1", "/V1/keys", "//v1/keys", "/healthz/",
		"/v1x"} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "https://broker.example.com"+path, strings.NewReader("a=b"))
		w := httptest.NewRecorder()
		f.api.Handler().ServeHTTP(w, r)
		if got := w.Body.String(); w.Code != 200 || !strings.HasPrefix(got, "page POST ") || !strings.HasSuffix(got,
			path+" a=b") {
			t.Errorf("%s: %d %s", path, w.Code, got)
		}
	}
	ci := f.token("ci")
	for path, status := range map[string]int{"/v1": 404, "/v1/": 404, "/v1/requests/": 404, "/v1/../requests": 404,
		brokerapi.KeysPath: 200, brokerapi.HealthPath: 200, brokerapi.ReadyPath: 200} {
		ci.want(status, get(path))
	}
	ends := []func(){}
	for range httpapi.MaxRequestsOfOne {
		end, err := f.api.limits.Begin(t.Context(), "page 192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	w := httptest.NewRecorder()
	f.api.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)) // from 192.0.2.1
	if w.Code != http.StatusTooManyRequests {
		t.Errorf("one address more than its share: %d", w.Code)
	}
	ci.want(200, get(brokerapi.KeysPath))
	for _, end := range ends {
		end()
	}
}

// TestCredentials takes tokens, certificates of the client CA and users of the Unix socket, one of them at once.
func TestCredentials(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.unix().want(200, get(brokerapi.KeysPath))
	f.admin().want(200, get(brokerapi.KeysPath))
	for name, c := range map[string]*client{"token": f.open(), "certificate": f.admin(), "unix": f.unix()} {
		c.auth = "Bearer x.y.z"
		if answer := c.want(401, get(brokerapi.KeysPath)); answer.Header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s: %v", name, answer.Header)
		}
	}
	both := f.admin()
	both.auth = f.token("ci").auth
	both.want(401, get(brokerapi.KeysPath))

	foreign := f.open(f.clientCertificate(softhsmtest.NewCA(t, "callers", nil), "admin"))
	if answer, err := foreign.http.Get(foreign.base + brokerapi.KeysPath); err == nil { //nolint:noctx // it is refused
		answer.Body.Close()
		if answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("a certificate of another CA: %s", answer.Status)
		}
	}
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		old := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: version, MaxVersion: version} //nolint:gosec // refused
		old.RootCAs.AddCert(f.server.Cert)
		if conn, err := tls.Dial("tcp", f.address, old); err == nil { //nolint:noctx // it is refused
			conn.Close()
			t.Errorf("the server speaks %s", tls.VersionName(version))
		}
	}
}

// TestCertificate serves a new certificate once its files have changed, and the old one while they cannot be used.
func TestCertificate(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	served := func() string {
		c := f.open()
		c.want(200, get(brokerapi.HealthPath))
		conn, err := tls.Dial("tcp", f.address, c.http.Transport.(*http.Transport).TLSClientConfig) //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	second := f.writeCertificate().SerialNumber.String()
	for served() != second {
		time.Sleep(10 * time.Millisecond)
	}
	softhsmtest.Write(t, f.certificate.Key, "no key")
	for end := time.Now().Add(2 * fresh); time.Now().Before(end); { // it looks meanwhile
		if served() != second {
			t.Fatal("it serves a certificate without a key")
		}
	}
	if err := os.Remove(f.certificate.Key); err != nil {
		t.Fatal(err)
	}
	third := f.writeCertificate().SerialNumber.String()
	for served() != third {
		time.Sleep(10 * time.Millisecond)
	}
	other := f.certificate
	softhsmtest.Write(t, f.certificate.ClientCA, "no CA")
	if _, err := ListenTLS(t.Context(), "127.0.0.1:0", other); failure.From(err).Kind != failure.Invalid {
		t.Error(err)
	}
}

// TestReadiness tells everyone which parts are ready, and callers alone what is wrong with them.
func TestReadiness(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.keys.fail(failure.New(failure.Unavailable, "cannot open /opt/module.so"))
	f.open().want(503, get(brokerapi.ReadyPath))
	for name, c := range map[string]*client{"": f.open(), "cannot open /opt/module.so": f.token("ci")} {
		found := false
		for _, part := range read[brokerapi.Readiness](t, c.want(503, get(brokerapi.ReadyPath))).Parts {
			if part.Name == "key release" {
				found = !part.Ready && part.Needed && part.Detail == name
			}
		}
		if !found {
			t.Errorf("the answer does not have the key with the detail %q", name)
		}
	}
	f.keys.fail(nil)
	for f.open().do(get(brokerapi.ReadyPath)).Status != http.StatusOK {
		time.Sleep(10 * time.Millisecond)
	}
}

// TestModulesReady shows the modules of keys that are in several, and is ready while one of a key has failed.
func TestModulesReady(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for detail, c := range map[string]*client{"": f.open(), "the module is not available": f.token("ci")} {
		parts := map[string]brokerapi.Part{}
		for _, part := range read[brokerapi.Readiness](t, c.want(200, get(brokerapi.ReadyPath))).Parts {
			parts[part.Name] = part
		}
		first, second := parts["module 1 of key release"], parts["module 2 of key release"]
		if _, has := parts["module 1 of key alone"]; has || !first.Ready || first.Needed || second.Ready || second.Needed ||
			second.Detail != detail {
			t.Errorf("the parts are %+v", parts)
		}
	}
}

// TestListenUnix replaces a socket that nobody listens to, and no other file.
func TestListenUnix(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if _, err := ListenUnix(t.Context(), f.socket); failure.From(err).Kind != failure.Conflict {
		t.Errorf("a second listener: %v", err)
	}
	softhsmtest.Write(t, f.database+".file", "kept")
	if _, err := ListenUnix(t.Context(), f.database+".file"); err == nil || softhsmtest.Read(t,
		f.database+".file") != "kept" {
		t.Errorf("a file was replaced: %v", err)
	}
	if info, err := os.Stat(f.socket); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v", info, err)
	}
}
