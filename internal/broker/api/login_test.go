package api

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/session"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestSession has people sign in, who see what all people of the policy see, until the session ends.
func TestSession(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	made := read[brokerapi.Request](t, f.token("people").want(201, wish(1)))
	for _, name := range []string{"alice", "bob"} {
		c := f.signedIn(name)
		got := read[brokerapi.Request](t, c.want(200, get(brokerapi.RequestPath(made.ID))))
		if !got.Waiting || len(got.Needs) != 1 || got.Needs[0].Alternatives[0].Groups[0].Lacking != 2 {
			t.Errorf("%s: %+v", name, got)
		}
		for query, want := range map[string]int{"": 1, "?mine=true": 1, "?mine=false": 1, "?mine=true&limit=1": 1,
			"?mine=true&key=other": 0, "?digest=" + made.Artifact.Digest: 1, "?digest=sha256:" + strings.Repeat("a", 64): 0,
			"?repository=registry.example.com/app": 0} {
			page := read[brokerapi.Requests](t, c.want(200, get(brokerapi.RequestsPath+query)))
			if len(page.Requests) != want || want > 0 && page.Requests[0].ID != made.ID {
				t.Errorf("%s: %s lists %+v", name, query, page)
			}
		}
		c.want(403, post(brokerapi.CancelPath(made.ID), nil)) // of another
		c.want(403, post(brokerapi.KeyPath("release")+"/block", nil))
		ready := read[brokerapi.Readiness](t, c.want(200, get(brokerapi.ReadyPath)))
		if !ready.Ready {
			t.Errorf("%+v", ready)
		}
	}
	local := f.unix()
	local.auth = f.signedIn("alice").auth
	local.want(200, get(brokerapi.RequestPath(made.ID)))

	left := f.signedIn("alice")
	left.want(200, get(brokerapi.KeysPath))
	if err := f.api.sessions.End(t.Context(), strings.TrimPrefix(left.auth, "Bearer hsm-session.")); err != nil {
		t.Error(err)
	}
	left.want(401, get(brokerapi.KeysPath))

	c := f.signedIn("alice")
	f.store.fail(failure.New(failure.Unavailable, "cannot read the store"))
	c.want(503, get(brokerapi.KeysPath)) // nobody knows whether the credential is enrolled
	f.store.fail(nil)
	f.late.Store(int64(session.Life - time.Minute))
	c.want(200, get(brokerapi.KeysPath))
	f.late.Store(int64(session.Life + time.Second))
	if answer := c.want(401, get(brokerapi.KeysPath)); !strings.Contains(string(answer.Body), "sign in again") {
		t.Errorf("%s", answer.Body)
	}
}

// TestSessionEnds ends the sessions of a credential that is removed, and of a person whom the policy names no more.
func TestSessionEnds(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	admin, alice, bob := f.admin(), f.signedIn("alice"), f.signedIn("bob")
	admin.want(201, post(brokerapi.CredentialPath(f.id("alice"))+"/remove", nil))
	alice.want(401, get(brokerapi.KeysPath))
	f.open().want(403, post(brokerapi.SessionsPath, f.people["alice"].login(newLogin())))
	bob.want(200, get(brokerapi.KeysPath))
	admin.want(201, post(brokerapi.PolicyPath, brokerapi.NewPolicy{
		Policy: strings.Replace(testPolicy, "[alice, bob, carol]", "[alice, carol]", 1)}))
	bob.want(401, get(brokerapi.KeysPath))
	f.open().want(403, post(brokerapi.SessionsPath, f.people["bob"].login(newLogin())))

	// The same key again is another credential: the session of the old one stays closed.
	admin.want(201, post(brokerapi.CredentialsPath, f.people["alice"].possession("alice")))
	alice.want(401, get(brokerapi.KeysPath))
	f.signedIn("alice").want(200, get(brokerapi.KeysPath))
}

// TestLogin refuses logins for another broker, of another time, that were used before, and that are something else.
func TestLogin(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	alice, bob, nobody := f.people["alice"], f.people["bob"], f.open()
	for name, change := range map[string]func(*approval.Login){
		"another broker": func(l *approval.Login) { l.Broker = "https://other.example.com" },
		"a slash":        func(l *approval.Login) { l.Broker += "/" },
		"upper case":     func(l *approval.Login) { l.Broker = strings.ToUpper(l.Broker) },
		"old":            func(l *approval.Login) { l.Time = l.Time.Add(-loginTime - time.Second) },
		"early":          func(l *approval.Login) { l.Time = l.Time.Add(loginTime + 30*time.Second) },
		"year 1":         func(l *approval.Login) { l.Time = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC) },
		"year 9999":      func(l *approval.Login) { l.Time = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		l := newLogin()
		change(l)
		if answer := nobody.want(403, post(brokerapi.SessionsPath, alice.login(l))); answer.Status != 403 {
			t.Error(name)
		}
	}
	for name, login := range map[string]brokerapi.Login{
		"the signature of another": {Envelope: alice.login(newLogin()).Envelope, Kind: "ssh", Public: bob.public},
		"a stranger":               newPerson(t, approval.Key).login(newLogin()),
		"a credential": {Kind: "key", Public: alice.public,
			Envelope: alice.sign(encode(t, newLogin()), f.id("alice"))},
		"an approval": {Kind: "key", Public: alice.public,
			Envelope: alice.sign(encode(t, &approval.Approval{Approver: "id", Decision: approval.Approve,
				Statement: approval.Hash(nil), Time: time.Now().UTC().Truncate(time.Second)}), "")},
	} {
		if answer := nobody.want(403, post(brokerapi.SessionsPath, login)); answer.Status != 403 {
			t.Error(name)
		}
	}
	login := alice.login(newLogin())
	nobody.want(201, post(brokerapi.SessionsPath, login))
	nobody.want(403, post(brokerapi.SessionsPath, login))
	f.admin().want(403, post(brokerapi.SessionsPath, login))

	// Another signature of the same document is the same login.
	l := newLogin()
	nobody.want(201, post(brokerapi.SessionsPath, alice.login(l)))
	nobody.want(403, post(brokerapi.SessionsPath, alice.login(l)))

	// What was used to show that a person has a key signs nobody in, and the reverse.
	carol := newPerson(t, approval.SSH)
	shown := carol.possession("carol")
	f.admin().want(201, post(brokerapi.CredentialsPath, shown))
	nobody.want(403, post(brokerapi.SessionsPath,
		brokerapi.Login{Envelope: shown.Possession, Kind: "ssh", Public: carol.public}))
	used := carol.login(newLogin())
	nobody.want(201, post(brokerapi.SessionsPath, used))
	f.admin().want(403, post(brokerapi.CredentialsPath, brokerapi.NewCredential{Person: "carol", Kind: "ssh",
		Public: carol.public, Possession: used.Envelope}))
}

// TestLoginOnce signs in once with a login that is sent many times at once.
func TestLoginOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	login := post(brokerapi.SessionsPath, f.people["bob"].login(newLogin()))
	var group sync.WaitGroup
	var sessions atomic.Int32
	for range 20 {
		c := f.open()
		group.Go(func() {
			if c.do(login).Status == http.StatusCreated {
				sessions.Add(1)
			}
		})
	}
	if group.Wait(); sessions.Load() != 1 {
		t.Errorf("%d sessions", sessions.Load())
	}
}

// TestTooManyLogins refuses further logins and credentials from an address that has tried often, and nothing else.
func TestTooManyLogins(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	begin := time.Now()
	f.api.attempts = session.NewAttempts(loginAttempts, time.Minute, func() time.Time {
		return begin.Add(time.Duration(f.late.Load()))
	})
	nobody := f.open()
	wrong := post(brokerapi.SessionsPath, brokerapi.Login{Kind: "key"})
	for range loginAttempts {
		nobody.want(400, wrong)
	}
	right := post(brokerapi.SessionsPath, f.people["alice"].login(newLogin()))
	nobody.want(429, right)
	f.admin().want(429, post(brokerapi.CredentialsPath, newPerson(t, approval.Key).possession("carol")))
	f.admin().want(200, get(brokerapi.KeysPath))
	f.late.Store(int64(time.Minute))
	nobody.want(201, right)
}

// TestSessionTokens refuses tokens that are no session, and sessions beside another credential.
func TestSessionTokens(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	valid := strings.TrimPrefix(f.signedIn("alice").auth, "Bearer ")
	oidc := strings.TrimPrefix(f.token("ci").auth, "Bearer ")
	bare := strings.TrimPrefix(valid, "hsm-session.")
	for _, token := range []string{"hsm-session.", "hsm-session..", "hsm-session." + oidc, oidc + "." + valid,
		valid + oidc, bare, "HSM-SESSION." + bare, "hsm-session." + valid, " " + valid, valid[:len(valid)-1],
		"hsm-session." + strings.Repeat("a", 8000)} {
		c := f.open()
		c.auth = "Bearer " + token
		c.want(401, get(brokerapi.KeysPath))
	}
	c := f.open()
	c.auth = "Basic " + valid
	c.want(401, get(brokerapi.KeysPath))
	c.auth = "bearer " + valid // RFC 9110: in any case
	c.want(200, get(brokerapi.KeysPath))
	both := f.admin()
	both.auth = "Bearer " + valid
	both.want(401, get(brokerapi.KeysPath))
	twice := get(brokerapi.KeysPath)
	twice.header = http.Header{"Authorization": {"Bearer " + valid, "Bearer " + valid}}
	f.open().want(401, twice)
	// The second key is what everyone can compute who has a copy of the database.
	for _, key := range [][]byte{make([]byte, 32), f.api.options.Broker.Derive("session")} {
		forged, _ := session.New(key, nil, time.Now).Issue("alice", f.id("alice"))
		c.auth = "Bearer hsm-session." + forged
		c.want(401, get(brokerapi.KeysPath))
	}
	cookie := get(brokerapi.KeysPath)
	cookie.header = http.Header{"Cookie": {"__Host-session=" + bare}}
	f.open().want(401, cookie)
}

// TestHostileBodies refuses bodies that are none of the description.
func TestHostileBodies(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.api.attempts = session.NewAttempts(1000, time.Minute, time.Now)
	admin := f.admin()
	made := read[brokerapi.Request](t, f.token("people").want(201, wish(1)))
	alice := f.people["alice"]
	right := map[string]any{brokerapi.SessionsPath: alice.login(newLogin()),
		brokerapi.CredentialsPath:        newPerson(t, approval.SSH).possession("carol"),
		brokerapi.ApprovalsPath(made.ID): json.RawMessage(f.decision("alice", made.ID, approval.Approve).body)}
	for path, message := range right {
		whole, _ := json.Marshal(message)
		bodies := []string{"null", "[]", "0", `""`, "{", string(whole) + "{}", "[" + string(whole) + "]",
			strings.Repeat("[", 2000), strings.Repeat(`{"a":`, 500),
			strings.Replace(string(whole), `"envelope"`, `"Envelope"`, 1),
			strings.Replace(string(whole), `{`, `{"other":1,`, 1),
			strings.Replace(string(whole), `{`, `{"kind":"key","kind":"ssh",`, 1)}
		var fields map[string]any
		if err := json.Unmarshal(whole, &fields); err != nil {
			t.Fatal(err)
		}
		for name, value := range fields {
			for _, wrong := range []any{nil, 1, true, []any{}, map[string]any{}, "!", "\x00", "passkey", "AAAA",
				strings.Repeat("A", 3000), value.(string) + "\n", value.(string) + "AAAA"} {
				fields[name] = wrong
				changed, _ := json.Marshal(fields)
				bodies = append(bodies, string(changed))
			}
			delete(fields, name)
			without, _ := json.Marshal(fields)
			bodies = append(bodies, string(without))
			fields[name] = value
		}
		for _, body := range bodies {
			if body == string(whole) {
				continue
			}
			r := post(path, json.RawMessage(nil))
			r.body = body
			if answer := admin.do(r); answer.Status < 400 || answer.Status >= 500 {
				t.Errorf("%s %.300s: %d %s", path, body, answer.Status, answer.Body)
			}
		}
	}
	right[brokerapi.CredentialsPath] = newPerson(t, approval.SSH).possession("carol") // that one was used, for others
	for path, message := range right {
		admin.want(201, post(path, message))
	}
	for _, path := range []string{brokerapi.ApproversPath + "?after=" + strings.Repeat("a", maxName+1),
		brokerapi.CredentialsPath + "?removed=false", brokerapi.CredentialsPath + "?removed=",
		brokerapi.ApproversPath + "?before=a", brokerapi.ApproversPath + "?limit=101", brokerapi.RequestsPath + "?mine=yes",
		brokerapi.RequestsPath + "?mine=true&state=pending",
		brokerapi.RequestsPath + "?mine=", brokerapi.RequestsPath + "?digest=sha256:1",
		brokerapi.RequestsPath + "?repository=" + strings.Repeat("a", maxRepository+1),
		brokerapi.EvidencePath(made.ID) + "?wait=1"} {
		admin.want(400, get(path))
	}
	for _, path := range []string{brokerapi.CredentialPath("a"), brokerapi.SessionsPath,
		brokerapi.ApproversPath + "/alice", "/v1/documents/" + approval.Hash(nil)} {
		if answer := admin.do(get(path)); answer.Status != 404 && answer.Status != 405 {
			t.Errorf("%s: %d", path, answer.Status)
		}
	}
	for _, name := range []string{"..", "%2e%2e", "a%2fb", strings.Repeat("a", 5000), "alice%00", "%ff"} {
		admin.want(404, post(brokerapi.ApproversPath+"/"+name+"/invitations", nil))
		admin.want(404, post(brokerapi.CredentialsPath+"/"+name+"/remove", nil))
	}
}

// TestKeys proposes keys that can sign approvals, and no others.
func TestKeys(t *testing.T) {
	t.Parallel()
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkix := func(public crypto.PublicKey) []byte {
		data, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	wire := func(public crypto.PublicKey) []byte {
		key, err := ssh.NewPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		return key.Marshal()
	}
	good := newPerson(t, approval.Key)
	certificate := &ssh.Certificate{Key: newPerson(t, approval.SSH).ssh.PublicKey(), CertType: ssh.UserCert,
		ValidPrincipals: []string{"carol"}}
	if err := certificate.SignCert(rand.Reader, newPerson(t, approval.SSH).ssh); err != nil {
		t.Fatal(err)
	}
	dsa := struct {
		Name       string
		P, Q, G, Y *big.Int
	}{"ssh-dss", new(big.Int).Lsh(big.NewInt(1), 1023), new(big.Int).Lsh(big.NewInt(1), 159), big.NewInt(2), big.NewInt(4)}
	// An element more in the outer sequence, which Go's decoder of DER passes over.
	more := append([]byte{good.public[0], good.public[1] + 2}, good.public[2:]...)
	more = append(more, 5, 0)
	f := newFixture(t)
	for name, n := range map[string]brokerapi.NewCredential{
		"RSA 1024":          {Kind: "key", Public: pkix(short.Public())},
		"P-224":             {Kind: "key", Public: pkix(small.Public())},
		"SSH RSA 1024":      {Kind: "ssh", Public: wire(short.Public())},
		"SSH certificate":   {Kind: "ssh", Public: certificate.Marshal()},
		"SSH DSA":           {Kind: "ssh", Public: ssh.Marshal(dsa)},
		"SSH with a tail":   {Kind: "ssh", Public: append(newPerson(t, approval.SSH).public, 0)},
		"DER with a tail":   {Kind: "key", Public: append(append([]byte{}, good.public...), 0)},
		"DER with an extra": {Kind: "key", Public: more},
		"PKCS #1":           {Kind: "key", Public: x509.MarshalPKCS1PublicKey(&short.PublicKey)},
		"the other kind":    {Kind: "ssh", Public: good.public},
		"a passkey":         {Kind: "passkey", Public: good.public},
		"another kind":      {Kind: "pgp", Public: good.public},
		"nothing":           {Kind: "key"},
	} {
		n.Person, n.Possession = "carol", good.possession("carol").Possession
		if answer := f.admin().want(400, post(brokerapi.CredentialsPath, n)); answer.Status != 400 {
			t.Error(name)
		}
	}
	f.admin().want(201, post(brokerapi.CredentialsPath, good.possession("carol")))
}
