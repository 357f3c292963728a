package nethsmtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestContract asks for every operation of the table once with success; each request and response is checked against
// the description.
func TestContract(t *testing.T) {
	s := Start(t, RateLimit(0))
	public := caller{t: t, server: s}
	admin, op := public.as(AdminUser, adminPassphrase), public.as(OperatorUser, operatorPassphrase)
	served := map[string]bool{}
	note := func() {
		for _, r := range s.Requests() {
			path, _, _ := bytes.Cut([]byte(r.Path), []byte("?"))
			for _, o := range route(string(path)) {
				if o.method == r.Method && r.Status < http.StatusBadRequest && r.Status > 0 {
					served[o.method+" "+o.path] = true
				}
			}
		}
		s.ResetRequests()
	}

	public.want(200, "GET", "/info", nil)
	public.want(200, "GET", "/health/alive", nil)
	public.want(412, "GET", "/health/ready", nil)
	public.want(200, "GET", "/health/state", nil)
	public.want(200, "GET", "/health/diagnose", nil)
	public.want(204, "POST", "/provision", object{"unlockPassphrase": UnlockPassphrase, "adminPassphrase": adminPassphrase,
		"systemTime": time.Now().UTC().Format(time.RFC3339)})
	public.want(412, "GET", "/health/alive", nil)
	public.want(200, "GET", "/health/ready", nil)
	admin.want(200, "GET", "/health/diagnose", nil)

	admin.want(201, "PUT", "/users/"+OperatorUser,
		object{"realName": "O", "role": Operator, "passphrase": operatorPassphrase})
	admin.want(201, "PUT", "/users/metrics", object{"realName": "M", "role": Metrics, "passphrase": "metrics passphrase"})
	admin.want(201, "PUT", "/users/backup", object{"realName": "B", "role": Backup, "passphrase": "backup passphrase"})
	made := admin.field("id", "POST", "/users",
		object{"realName": "X", "role": Operator, "passphrase": "other passphrase"})
	admin.field("id", "POST", "/users/berlin~",
		object{"realName": "X", "role": Operator, "passphrase": "other passphrase"})
	admin.want(200, "GET", "/users", nil)
	admin.want(200, "GET", "/users/"+made, nil)
	admin.want(204, "POST", "/users/"+made+"/passphrase", object{"passphrase": "better passphrase"})
	admin.want(204, "PUT", "/users/"+OperatorUser+"/tags/release", nil)
	admin.want(304, "PUT", "/users/"+OperatorUser+"/tags/release", nil)
	op.want(200, "GET", "/users/"+OperatorUser+"/tags", nil)
	admin.want(204, "DELETE", "/users/"+OperatorUser+"/tags/release", nil)
	admin.want(204, "DELETE", "/users/"+made, nil)
	admin.want(204, "PUT", "/namespaces/berlin", nil)
	admin.want(200, "GET", "/namespaces", nil)
	admin.want(204, "DELETE", "/namespaces/berlin", nil)
	note()

	op.want(200, "POST", "/random", object{"length": 16})
	admin.want(201, "POST", "/keys/generate",
		object{"type": "EC_P256", "id": "myKey1", "mechanisms": []string{"ECDSA_Signature"},
			"restrictions": object{"tags": []string{"release"}}, "label": "first"})
	admin.want(200, "GET", "/keys", nil)
	op.want(200, "GET", "/keys?filter=1", nil)
	op.want(200, "GET", "/keys/myK*", nil)
	op.want(200, "GET", "/keys/myKey1", nil)
	admin.want(204, "PUT", "/keys/myKey1/label", object{"label": "second"})
	admin.want(204, "DELETE", "/keys/myKey1/label", nil)
	op.want(200, "GET", "/keys/myKey1/public.pem", nil)
	admin.want(200, "POST", "/keys/myKey1/csr.pem",
		object{"commonName": "example.com", "emailAddress": "a@example.com", "subjectAltNames": []string{}})
	admin.want(204, "PUT", "/keys/myKey1/restrictions/tags/berlin", nil)
	admin.want(204, "DELETE", "/keys/myKey1/restrictions/tags/berlin", nil)
	admin.want(204, "DELETE", "/keys/myKey1/restrictions/tags/release", nil)
	op.want(200, "POST", "/keys/myKey1/sign", object{"mode": "ECDSA", "message": encode64(randomBytes(32))})
	admin.want(201, "PUT", "/keys/myKey1/cert", []byte("-----BEGIN CERTIFICATE-----"))
	op.want(200, "GET", "/keys/myKey1/cert", nil)
	admin.want(204, "DELETE", "/keys/myKey1/cert", nil)
	admin.want(200, "POST", "/keys/myKey1/move", object{"newId": "myKey2"})
	admin.want(204, "DELETE", "/keys/myKey2", nil)
	admin.want(201, "POST", "/keys",
		object{"type": "Generic", "mechanisms": mechanismsOf["Generic"],
			"private": object{"data": encode64(randomBytes(32))}})
	aes := s.Keys("")[0]
	message, iv := encode64(randomBytes(32)), encode64(randomBytes(16))
	encrypted := op.field("encrypted", "POST", "/keys/"+aes+"/encrypt",
		object{"mode": "AES_CBC", "message": message, "iv": iv})
	got := op.field("decrypted", "POST", "/keys/"+aes+"/decrypt",
		object{"mode": "AES_CBC", "encrypted": encrypted, "iv": iv})
	if got != message {
		t.Errorf("decrypted %s, want %s", got, message)
	}
	form, contentType := pemForm(t)
	admin.want(204, "PUT", "/keys/imported", form, "Content-Type", contentType)
	note()

	admin.want(204, "PUT", "/config/unlock-passphrase",
		object{"newPassphrase": "new unlock passphrase", "currentPassphrase": UnlockPassphrase})
	for path, value := range map[string]any{
		"unattended-boot": object{"status": "on"},
		"network": object{"ipAddress": "192.168.1.2", "netmask": "255.255.255.0",
			"ipv6": object{"cidr": "fd00::2/64", "gateway": nil}},
		"logging": object{"ipAddress": "192.168.1.3", "port": 514, "logLevel": "debug"},
		"time":    object{"time": "2030-01-02T03:04:05Z"},
	} {
		admin.want(200, "GET", "/config/"+path, nil)
		admin.want(204, "PUT", "/config/"+path, value)
		admin.want(200, "GET", "/config/"+path, nil)
	}
	checkTLSConfig(t, admin)
	admin.want(200, "GET", "/system/info", nil)
	var metrics map[string]string
	if err := json.Unmarshal(public.as("metrics", "metrics passphrase").want(200, "GET", "/metrics", nil),
		&metrics); err != nil ||
		metrics["generate"] == "0" || metrics["http response 200"] == "" || metrics["uptime"] == "" {
		t.Errorf("%v, %v", metrics, err)
	}
	admin.want(204, "PUT", "/config/backup-passphrase",
		object{"newPassphrase": "the backup passphrase", "currentPassphrase": ""})
	if backup := public.as("backup", "backup passphrase").want(200, "POST", "/system/backup",
		nil); !bytes.HasSuffix(backup, []byte("\x00\x00\x00_NETHSM_BACKUP_END_")) {
		t.Errorf("the backup ends with %q", backup[len(backup)-30:])
	}
	note()

	members := admin.want(200, "GET", "/cluster/members", nil)
	admin.want(201, "POST", "/cluster/members", object{"urls": []string{"https://192.168.1.9:2380"}})
	learner := "/cluster/members/" + s.state.members[1].ID
	admin.want(204, "POST", learner+"/promote", nil)
	admin.want(204, "PUT", learner, object{"urls": []string{"https://192.168.1.8:2380"}})
	admin.want(204, "DELETE", learner, nil)
	if got := admin.want(200, "GET", "/cluster/members", nil); !bytes.Equal(got, members) {
		t.Errorf("members %s, want %s", got, members)
	}

	admin.want(204, "POST", "/lock", nil)
	public.want(403, "POST", "/unlock", object{"passphrase": UnlockPassphrase})
	public.want(204, "POST", "/unlock", object{"passphrase": "new unlock passphrase"})
	admin.want(204, "POST", "/system/reboot", nil)
	if s.State() != Operational { // of unattended boot
		t.Errorf("after a reboot: %s", s.State())
	}
	admin.want(204, "POST", "/system/factory-reset", nil)
	public.want(204, "POST", "/system/shutdown", nil)
	note()

	want := map[string]bool{}
	for _, o := range all {
		if o.handle != nil {
			want[o.method+" "+o.path] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !served[name] {
			t.Errorf("%s was not asked for", name)
		}
	}
}

func checkTLSConfig(t *testing.T, admin caller) {
	t.Helper()
	before := admin.server.Fingerprint()
	admin.want(204, "POST", "/config/tls/generate", object{"type": "EC_P384"})
	if admin.server.Fingerprint() == before {
		t.Error("the certificate of a new TLS key is the old one")
	}
	admin.want(200, "GET", "/config/tls/public.pem", nil)
	csr := admin.want(200, "POST", "/config/tls/csr.pem",
		object{"commonName": "localhost", "subjectAltNames": []string{"IP:127.0.0.1"}})
	ca, leaf := issue(t, csr)
	admin.want(404, "GET", "/config/tls/cluster-ca.pem", nil)
	admin.want(412, "PUT", "/config/tls/cluster-ca.pem", ca, "Content-Type", typePEM)
	admin.want(201, "PUT", "/config/tls/cert.pem", leaf, "Content-Type", typePEM)
	chain := slices.Concat(leaf, ca)
	admin.want(201, "PUT", "/config/tls/cert.pem", chain, "Content-Type", typePEM)
	if got := admin.want(200, "GET", "/config/tls/cert.pem", nil); !bytes.Equal(got, chain) {
		t.Errorf("the certificate is %s", got)
	}
	connection, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(t.Context(), "tcp",
		admin.server.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if shown := connection.(*tls.Conn).ConnectionState().PeerCertificates; len(shown) != 2 {
		t.Errorf("%d certificates of a chain of 2 are served", len(shown))
	}
	admin.want(201, "PUT", "/config/tls/cluster-ca.pem", ca, "Content-Type", typePEM)
	admin.want(200, "GET", "/config/tls/cluster-ca.pem", nil)
}

// issue makes a CA and a certificate for a request, in PEM.
func issue(t *testing.T, csrPEM []byte) (ca, leaf []byte) {
	t.Helper()
	block, _ := pem.Decode(csrPEM)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := selfSigned(key)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "nethsm"},
		NotAfter: time.Now().Add(time.Hour), IPAddresses: csr.IPAddresses}
	der, err := x509.CreateCertificate(rand.Reader, template, authority.Leaf, csr.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	return encode(authority.Leaf.Raw), encode(der)
}

// pemForm is the form that imports a new P-384 key from a PEM file.
func pemForm(t *testing.T) (body []byte, contentType string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	for name, part := range map[string]struct{ contentType, content string }{
		"arguments": {typeJSON, `{"mechanisms":["ECDSA_Signature"],"restrictions":{"tags":["berlin"]}}`},
		"key_file":  {typePEM, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))},
	} {
		w, err := form.CreatePart(textproto.MIMEHeader{
			"Content-Disposition": {fmt.Sprintf("form-data; name=%q", name)}, "Content-Type": {part.contentType},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(part.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), form.FormDataContentType()
}

// TestContractNotices shows that the validation can fail, on either side.
func TestContractNotices(t *testing.T) {
	c := loadContract(t)
	request := func(method, path, body string, header ...string) error {
		r, err := http.NewRequest(method, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("operator", "operator passphrase")
		if body != "" {
			r.Header.Set("Content-Type", typeJSON)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		return c.checkRequest(r, []byte(body))
	}
	for name, err := range map[string]error{
		"unknown property": request("POST", "/keys/k/sign", `{"mode":"ECDSA","message":"AAAA","more":1}`),
		"unknown nested property": request("POST", "/keys/generate",
			`{"type":"RSA","mechanisms":[],"restrictions":{"users":[]}}`),
		"missing property": request("POST", "/keys/k/sign", `{"mode":"ECDSA"}`),
		"unknown mode":     request("POST", "/keys/k/sign", `{"mode":"DSA","message":"AAAA"}`),
		"empty message":    request("POST", "/keys/k/sign", `{"mode":"ECDSA","message":""}`),
		"URL-safe base64":  request("POST", "/keys/k/sign", `{"mode":"ECDSA","message":"AA-_"}`),
		"content type": request("POST", "/keys/k/sign", `{"mode":"ECDSA","message":"AAAA"}`, "Content-Type",
			"text/plain"),
		"no body":                request("POST", "/keys/k/sign", ""),
		"body where none is":     request("DELETE", "/keys/k", `{}`),
		"no credentials":         request("GET", "/keys", "", "Authorization", ""),
		"bad name":               request("GET", "/keys/-k", ""),
		"bad user":               request("GET", "/users/a~b~c", ""),
		"namespace without user": request("PUT", "/users/a~", `{"realName":"","role":"Operator","passphrase":"0123456789"}`),
		"unknown path":           request("GET", "/keys/k/private.pem", ""),
		"unknown method":         request("PATCH", "/keys/k", ""),
		"short passphrase":       request("POST", "/unlock", `{"passphrase":"short"}`),
		"bad time":               request("PUT", "/config/time", `{"time":"tomorrow"}`),
	} {
		if err == nil {
			t.Errorf("request with %s: not noticed", name)
		}
	}
	for name, err := range map[string]error{
		"sign":      request("POST", "/keys/k/sign", `{"mode":"ECDSA","message":"AAAA"}`),
		"list":      request("GET", "/keys/pfx*?filter=1", ""),
		"namespace": request("POST", "/users/a~", `{"realName":"","role":"Operator","passphrase":"0123456789"}`),
		"public":    request("GET", "/health/diagnose", "", "Authorization", ""),
	} {
		if err != nil {
			t.Errorf("request %s: %v", name, err)
		}
	}

	response := func(method, path string, r *reply) error {
		request, err := http.NewRequest(method, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.checkResponse(request, nil, r)
	}
	for name, err := range map[string]error{
		"unknown status":     response("GET", "/keys", &reply{status: 202}),
		"unknown error":      response("GET", "/keys", fail(409, "conflict")),
		"error without JSON": response("GET", "/keys", &reply{status: 403}),
		"missing property":   response("GET", "/keys/k", answer(object{"type": "RSA"})),
		"wrong type":         response("GET", "/keys", answer(object{})),
		"bad base64":         response("POST", "/keys/k/sign", answer(object{"signature": "-_"})),
		"content type":       response("GET", "/keys/k/public.pem", answer("x")),
		"body where none is": response("DELETE", "/keys/k", &reply{status: 204, contentType: typeJSON, body: []byte("{}")}),
	} {
		if err == nil {
			t.Errorf("response with %s: not noticed", name)
		}
	}
	if err := response("GET", "/keys", fail(429, "wait")); err != nil {
		t.Error(err)
	}
}

// violations is a test that notes its errors instead of failing.
type violations struct {
	testing.TB
	mu   sync.Mutex
	said []string
}

func (v *violations) Errorf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.said = append(v.said, fmt.Sprintf(format, args...))
}

// TestViolationsFailTheTest shows that a server that Start made reports each wrong request, unless Wrong announced it,
// and each wrong response.
func TestViolationsFailTheTest(t *testing.T) {
	v := &violations{TB: t}
	s := Start(v)
	s.Provision(adminPassphrase, operatorPassphrase)
	op := caller{t: t, server: s}.as(OperatorUser, operatorPassphrase)
	op.want(200, "POST", "/random", object{"length": 1})
	op.wrong(400, "POST", "/random", object{"length": 0})
	if len(v.said) != 0 {
		t.Errorf("violations without any: %v", v.said)
	}
	op.want(400, "POST", "/random", object{"length": 1, "unit": "byte"})
	s.logging.LogLevel = "loud" // no level of the description
	op.as(AdminUser, adminPassphrase).want(200, "GET", "/config/logging", nil)
	if len(v.said) != 2 || !strings.Contains(v.said[0], "unit") || !strings.Contains(v.said[1], "loud") {
		t.Errorf("violations: %v", v.said)
	}
}
