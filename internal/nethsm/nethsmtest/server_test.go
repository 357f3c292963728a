package nethsmtest

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestStates asks for the state and for a key in each state.
func TestStates(t *testing.T) {
	s := Start(t)
	public := caller{t: t, server: s}
	op := public.as(OperatorUser, operatorPassphrase)
	in := func(state State, keys, ready, alive int) {
		t.Helper()
		if got := public.field("state", "GET", "/health/state", nil); got != string(state) || s.State() != state {
			t.Errorf("state %s, want %s", got, state)
		}
		op.want(keys, "GET", "/keys", nil)
		public.want(ready, "GET", "/health/ready", nil)
		public.want(alive, "GET", "/health/alive", nil)
	}
	in(Unprovisioned, 412, 412, 200)
	s.Provision(adminPassphrase, operatorPassphrase)
	in(Operational, 200, 200, 412)
	s.SetState(Locked)
	in(Locked, 412, 412, 200)
	public.want(204, "POST", "/unlock", object{"passphrase": UnlockPassphrase})
	in(Operational, 200, 200, 412)
	public.want(412, "POST", "/unlock", object{"passphrase": UnlockPassphrase})
	s.SetState(Failed)
	in(Failed, 412, 412, 412)
	s.SetState(Unprovisioned)
	in(Unprovisioned, 412, 412, 200)
}

// TestStrict sends what the description does not allow.
func TestStrict(t *testing.T) {
	_, admin, op, public := provisioned(t)
	admin.generate("key", "EC_P256", nil)
	message := encode64(randomBytes(32))
	sign := object{"mode": "ECDSA", "message": message}
	for name, body := range map[string]string{
		"unknown property": `{"mode":"ECDSA","message":"` + message + `","hash":"SHA256"}`,
		"another case":     `{"Mode":"ECDSA","message":"` + message + `"}`,
		"missing property": `{"mode":"ECDSA"}`,
		"null":             `{"mode":"ECDSA","message":null}`,
		"number":           `{"mode":"ECDSA","message":1}`,
		"list":             `[]`,
		"two values":       `{"mode":"ECDSA","message":"` + message + `"}{}`,
		"half":             `{"mode":"ECDSA"`,
		"empty":            ``,
		"not base64":       `{"mode":"ECDSA","message":"%"}`,
	} {
		t.Run(name, func(*testing.T) { op.wrong(400, "POST", "/keys/key/sign", body) })
	}
	op.wrong(415, "POST", "/keys/key/sign", sign, "Content-Type", "text/plain")
	op.wrong(415, "POST", "/keys/key/sign", sign, "Content-Type", "")
	op.want(406, "GET", "/keys/key/public.pem", nil, "Accept", typeJSON)
	op.want(200, "GET", "/keys/key/public.pem", nil, "Accept", "application/json, application/*;q=0.5")
	op.wrong(400, "GET", "/keys/-key", nil)
	op.wrong(400, "GET", "/keys/*", nil)
	op.wrong(404, "GET", "/keys/key/private.pem", nil)
	op.wrong(405, "GET", "/keys/key/sign", nil)
	op.wrong(405, "GET", "/keys/generate", nil)
	admin.wrong(400, "POST", "/users/"+OperatorUser,
		object{"realName": "", "role": Operator, "passphrase": operatorPassphrase})
	admin.wrong(400, "PUT", "/users/short", object{"realName": "", "role": Operator, "passphrase": "short"})
	admin.wrong(400, "PUT", "/keys/key/label", object{"label": 1})
	admin.wrong(400, "PUT", "/keys/key/label", object{"label": strings.Repeat("x", 33)})
	public.wrong(401, "GET", "/keys", nil)
	public.as(OperatorUser, "other passphrase").want(401, "GET", "/keys", nil)
	public.as("nobody", operatorPassphrase).want(401, "GET", "/keys", nil)
	admin.want(403, "POST", "/keys/key/sign", sign)
	op.want(414, "GET", "/keys?filter="+strings.Repeat("x", 2000), nil)
	admin.wrong(501, "POST", "/system/cancel-update", nil)
}

func TestRateLimit(t *testing.T) {
	s := Start(t, RateLimit(time.Hour))
	s.Provision(adminPassphrase, operatorPassphrase)
	public := caller{t: t, server: s}
	public.as(OperatorUser, "wrong passphrase").want(401, "GET", "/keys", nil)
	public.as(OperatorUser, operatorPassphrase).want(429, "GET", "/keys", nil)
	public.as(AdminUser, adminPassphrase).want(200, "GET", "/keys", nil)
	second := s.Instance()
	public.server = second
	public.as(OperatorUser, operatorPassphrase).want(200, "GET", "/keys", nil)
	public.server = s
	s.SetState(Locked)
	public.want(403, "POST", "/unlock", object{"passphrase": "wrong passphrase"})
	public.want(429, "POST", "/unlock", object{"passphrase": UnlockPassphrase})
	s.rateLimit = 0
	public.want(204, "POST", "/unlock", object{"passphrase": UnlockPassphrase})
	public.as(OperatorUser, operatorPassphrase).want(200, "GET", "/keys", nil)
}

func TestNamespaces(t *testing.T) {
	_, admin, op, public := provisioned(t)
	person := func(role Role) object {
		return object{"realName": "x", "role": role, "passphrase": "berlin passphrase"}
	}
	admin.want(201, "PUT", "/users/berlin~admin", person(Administrator))
	nsAdmin := public.as("berlin~admin", "berlin passphrase")
	nsAdmin.want(403, "GET", "/keys", nil) // not before the namespace is created
	admin.want(204, "PUT", "/namespaces/berlin", nil)
	admin.want(400, "PUT", "/namespaces/berlin", nil)
	nsAdmin.want(403, "PUT", "/namespaces/munich", nil)
	nsAdmin.want(403, "GET", "/system/info", nil)
	admin.want(403, "PUT", "/users/berlin~operator", person(Operator)) // no longer its business
	nsAdmin.want(403, "PUT", "/users/operator2", person(Operator))
	nsAdmin.want(400, "PUT", "/users/berlin~backup", person(Backup))
	nsAdmin.want(201, "PUT", "/users/berlin~operator", person(Operator))
	nsAdmin.want(409, "PUT", "/users/berlin~operator", person(Operator))
	nsOperator := public.as("berlin~operator", "berlin passphrase")

	nsAdmin.generate("key", "EC_P256", nil)
	admin.generate("root-key", "EC_P256", nil)
	admin.generate("key", "EC_P384", nil) // another one of the same name
	sign := object{"mode": "ECDSA", "message": encode64(randomBytes(32))}
	nsOperator.want(200, "POST", "/keys/key/sign", sign)
	nsOperator.want(404, "POST", "/keys/root-key/sign", sign)
	if got := nsOperator.list("/keys"); !slices.Equal(got, []string{"key"}) {
		t.Errorf("keys of the namespace: %v", got)
	}
	if got := op.list("/keys"); !slices.Equal(got, []string{"key", "root-key"}) {
		t.Errorf("keys of the root namespace: %v", got)
	}
	if got := nsAdmin.list("/users"); !slices.Equal(got, []string{"berlin~admin", "berlin~operator"}) {
		t.Errorf("users of the namespace: %v", got)
	}
	admin.want(200, "GET", "/users/berlin~operator", nil)
	nsAdmin.want(403, "GET", "/users/operator", nil)
	nsOperator.want(200, "GET", "/users/berlin~operator", nil)
	nsOperator.want(403, "GET", "/users/berlin~admin", nil)
	admin.want(403, "PUT", "/users/berlin~operator/tags/release", nil)
	nsAdmin.want(204, "PUT", "/users/berlin~operator/tags/release", nil)
	nsOperator.want(204, "POST", "/users/berlin~operator/passphrase", object{"passphrase": "another passphrase"})
	nsOperator.want(401, "GET", "/keys", nil)
	admin.want(403, "DELETE", "/users/berlin~operator", nil)
	nsAdmin.want(400, "DELETE", "/users/berlin~admin", nil)
	nsAdmin.want(204, "DELETE", "/users/berlin~operator", nil)
	admin.want(204, "DELETE", "/namespaces/berlin", nil)
	admin.want(404, "DELETE", "/namespaces/berlin", nil)
	nsAdmin.want(403, "GET", "/keys", nil)
	nsAdmin.want(403, "DELETE", "/users/operator", nil)
	admin.want(204, "DELETE", "/users/berlin~admin", nil) // nobody of the namespace could
	admin.want(404, "DELETE", "/users/berlin~admin", nil)
	if got := admin.server.Keys("berlin"); len(got) != 0 {
		t.Errorf("keys left: %v", got)
	}
}

// TestInstances stops one of two instances: the other goes on with the same keys, and the first comes back at its
// address.
func TestInstances(t *testing.T) {
	s, admin, op, _ := provisioned(t)
	other := op
	other.server = s.Instance()
	admin.generate("key", "EC_P256", nil)
	other.want(200, "GET", "/keys/key", nil)
	if s.URL == other.server.URL || s.Fingerprint() == other.server.Fingerprint() {
		t.Error("instances with the same address or certificate")
	}
	s.Stop()
	s.Stop()
	if _, err := op.do("GET", "/keys/key", nil); err == nil {
		t.Error("a stopped instance answers")
	}
	other.want(200, "GET", "/keys/key", nil)
	s.Restart()
	op.want(200, "GET", "/keys/key", nil)
	s.SetState(Locked)
	op.want(412, "GET", "/keys/key", nil)
	other.want(200, "GET", "/keys/key", nil)

	want := []Request{
		{"POST", "/keys/generate", "admin", Administrator, 201},
		{"GET", "/keys/key", "operator", Operator, 200},
		{"GET", "/keys/key", "operator", "", 412},
	}
	if got := s.Requests(); !slices.Equal(got, want) {
		t.Errorf("log %v, want %v", got, want)
	}
	s.ResetRequests()
	if got := s.Requests(); len(got) != 0 {
		t.Errorf("log after its reset: %v", got)
	}
}

func TestShutdown(t *testing.T) {
	s, admin, _, public := provisioned(t)
	admin.want(204, "POST", "/system/shutdown", nil)
	s.Restart()
	if got := public.field("state", "GET", "/health/state", nil); got != string(Locked) {
		t.Errorf("after a shutdown: %s", got)
	}
}

func TestCertificateIsTrustedByItself(t *testing.T) {
	s := Start(t)
	if _, err := new(http.Client).Get(s.URL + "/info"); err == nil {
		t.Error("trusted without its certificate")
	}
	connection, err := tls.Dial("tcp", s.Address, &tls.Config{RootCAs: s.pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if !connection.ConnectionState().PeerCertificates[0].Equal(s.Certificate()) {
		t.Error("another certificate")
	}
}

func TestFaults(t *testing.T) {
	s, admin, op, _ := provisioned(t)
	generate := func(id string) (*response, error) {
		return admin.do("POST", "/keys/generate", object{"id": id, "type": "EC_P256", "mechanisms": mechanismsOf["EC_P256"]})
	}
	s.Inject("POST", "/keys/generate", 1, Drop())
	if _, err := generate("dropped"); !errors.Is(err, io.EOF) || len(s.Keys("")) != 0 {
		t.Errorf("Drop: %v, keys %v", err, s.Keys(""))
	}
	s.Inject("POST", "/keys/generate", 1, DropAfter())
	if _, err := generate("key"); !errors.Is(err, io.EOF) || !slices.Equal(s.Keys(""), []string{"key"}) {
		t.Errorf("DropAfter: %v, keys %v", err, s.Keys(""))
	}

	busy := s.Inject("", "/keys/*", 2, Respond(503))
	op.want(503, "GET", "/keys/key", nil)
	op.want(200, "GET", "/keys", nil) // another path
	op.want(503, "GET", "/keys/key", nil)
	op.want(200, "GET", "/keys/key", nil)
	if busy.Hits() != 2 {
		t.Errorf("%d hits", busy.Hits())
	}
	s.Inject("", "", 1, Malformed())
	if got := op.want(200, "GET", "/keys/key", nil); len(got) == 0 || got[len(got)-1] == '}' {
		t.Errorf("Malformed: %s", got)
	}
	s.Inject("", "", 1, Huge(3<<20))
	if got := op.want(200, "GET", "/keys/key", nil); len(got) < 3<<20 {
		t.Errorf("Huge: %d bytes", len(got))
	}

	always := s.Inject("", "", 0, Respond(500))
	for range 3 {
		op.want(500, "GET", "/keys/key", nil)
	}
	always.Remove()
	op.want(200, "GET", "/keys/key", nil)
}

// TestHang holds a request until it is released, until the instance stops, and until the client leaves.
func TestHang(t *testing.T) {
	s, admin, op, _ := provisioned(t)
	hanging := func(f *Fault, c caller, method, path string, body any) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := c.do(method, path, body)
			done <- err
		}()
		for deadline := time.Now().Add(10 * time.Second); f.Hits() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the request did not come")
			}
		}
		return done
	}
	f := s.Inject("GET", "/keys", 1, Hang())
	done := hanging(f, op, "GET", "/keys", nil)
	select {
	case err := <-done:
		t.Fatalf("not held: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	f.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}

	ec := object{"type": "EC_P256", "mechanisms": mechanismsOf["EC_P256"]}
	done = hanging(s.Inject("POST", "/keys/*", 1, Hang()), admin, "POST", "/keys/generate", ec)
	s.Stop()
	if err := <-done; err == nil || len(s.Keys("")) != 0 {
		t.Errorf("a request held when the instance stopped: error %v, keys %v", err, s.Keys(""))
	}
	s.Restart()

	s.Inject("GET", "/keys", 1, Hang())
	impatient := s.Client()
	impatient.Timeout = 50 * time.Millisecond
	r, err := http.NewRequest(http.MethodGet, s.URL+"/keys", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(OperatorUser, operatorPassphrase)
	if _, err := impatient.Do(r); err == nil {
		t.Error("not held")
	}
}
