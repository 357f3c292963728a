package remote

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestSignIn makes further calls in the session, and sends no other credential with them.
func TestSignIn(t *testing.T) {
	t.Setenv("TEAM_TOKEN", "the.token")
	f, b := newTLSFake(t, nil), New()
	s := f.settings()
	s.Credentials.Token = config.TokenSource{Variable: "TEAM_TOKEN"}
	var sent string
	f.answers[brokerapi.SessionsPath] = func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		sent = string(data)
		w.WriteHeader(http.StatusCreated)
		answer(w, brokerapi.Session{Token: "abc.def", Person: "alice\x1b[2J"})
	}
	f.answers[brokerapi.EvidencePath("r-1")] = func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "Bearer hsm-session.abc.def" {
			t.Errorf("the credential is %q", got)
		}
		answer(w, brokerapi.Evidence{Statement: []byte("s"), You: "id"})
	}
	session, err := b.SignIn(t.Context(), s, brokerapi.Login{Envelope: []byte("e"), Kind: "ssh", Public: []byte("p")})
	if err != nil || session.Person != "alice\ufffd[2J" || sent != `{"envelope":"ZQ==","kind":"ssh","public":"cA=="}` {
		t.Fatalf("%+v, %v, sent %s", session, err, sent)
	}
	if e, err := b.Evidence(t.Context(), s, "r-1"); err != nil || string(e.Statement) != "s" || e.You != "id" {
		t.Errorf("%+v, %v", e, err)
	}
	f.answers[brokerapi.EvidencePath("r-1")] = func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]string{"you": "hsm-session.abc.def"})
	}
	_, err = b.Evidence(t.Context(), s, "r-1")
	failsWith(t, err, failure.Internal, "it repeats the token")
	f.answers[brokerapi.SessionsPath] = func(w http.ResponseWriter, _ *http.Request) {
		answer(w, brokerapi.Session{Token: "a\r\nb"})
	}
	_, err = New().SignIn(t.Context(), s, brokerapi.Login{})
	failsWith(t, err, failure.Internal, "invalid session")
}

// TestApprovers decides, enrols, invites, removes and lists.
func TestApprovers(t *testing.T) {
	t.Parallel()
	f, b := newTLSFake(t, nil), New()
	s := f.settings()
	bodies := map[string]string{}
	for _, path := range []string{brokerapi.ApprovalsPath("r-1"), brokerapi.CredentialsPath,
		brokerapi.CredentialPath("sha256:00") + "/remove", brokerapi.PolicyPath} {
		f.answers[strings.ReplaceAll(path, "%3A", ":")] = func(w http.ResponseWriter, r *http.Request) {
			data, _ := io.ReadAll(r.Body)
			bodies[r.Method+" "+r.URL.Path] = string(data)
			w.WriteHeader(http.StatusCreated)
			answer(w, pending)
		}
	}
	for _, do := range []func() (brokerapi.Request, error){
		func() (brokerapi.Request, error) { return b.Decide(t.Context(), s, "r-1", []byte("e")) },
		func() (brokerapi.Request, error) {
			return b.Enrol(t.Context(), s, brokerapi.NewCredential{Person: "alice", Kind: "ssh"})
		},
		func() (brokerapi.Request, error) {
			return b.Propose(t.Context(), s, brokerapi.CredentialPath("sha256:00")+"/remove")
		},
		func() (brokerapi.Request, error) { return b.ProposePolicy(t.Context(), s, []byte("p")) },
	} {
		if r, err := do(); err != nil || r.ID != "r-1" {
			t.Errorf("%+v, %v", r, err)
		}
	}
	for call, want := range map[string]string{"POST /v1/requests/r-1/approvals": `{"envelope":"ZQ=="}`,
		"POST /v1/credentials":                  `{"person":"alice","kind":"ssh","public":null,"possession":null}`,
		"POST /v1/credentials/sha256:00/remove": "", "POST /v1/policy": `{"policy":"p"}`} {
		if got, exists := bodies[call]; !exists || got != want {
			t.Errorf("%s: %q in %v", call, got, bodies)
		}
	}
	pages := map[string]brokerapi.Approvers{"": {Approvers: []brokerapi.Approver{{Name: "alice"}}, After: "alice"},
		"after=alice": {Approvers: []brokerapi.Approver{{Name: "bob"}}}}
	f.answers[brokerapi.ApproversPath] = func(w http.ResponseWriter, r *http.Request) { answer(w, pages[r.URL.RawQuery]) }
	all, err := b.Approvers(t.Context(), s)
	if err != nil || len(all) != 2 || all[1].Name != "bob" {
		t.Errorf("%+v, %v", all, err)
	}
	pages["after=alice"] = brokerapi.Approvers{After: "alice"}
	_, err = b.Approvers(t.Context(), s)
	failsWith(t, err, failure.Internal, "no end")
	exported := map[string]brokerapi.Export{
		"removed=true":             {Approvers: []brokerapi.Exported{{Name: "alice"}}, After: "alice"},
		"after=alice&removed=true": {Approvers: []brokerapi.Exported{{Name: "bob", Credentials: [][]byte{[]byte("c")}}}},
		"":                         {After: "alice"}}
	f.answers[brokerapi.CredentialsPath] = func(w http.ResponseWriter, r *http.Request) {
		answer(w, exported[r.URL.RawQuery])
	}
	people, err := b.Export(t.Context(), s, true)
	if err != nil || len(people) != 2 || string(people[1].Credentials[0]) != "c" {
		t.Errorf("%+v, %v", people, err)
	}
	_, err = b.Export(t.Context(), s, false)
	failsWith(t, err, failure.Internal, "no end")
	f.answers["/v1/approvers/carol/forget"] = func(w http.ResponseWriter, _ *http.Request) {
		answer(w, brokerapi.Forgotten{Documents: 3})
	}
	if done, err := b.Forget(t.Context(), s, "carol"); err != nil || done.Documents != 3 {
		t.Errorf("%+v, %v", done, err)
	}
	link := "https://broker.example.com/invitations/x"
	f.answers["/v1/approvers/bob/invitations"] = func(w http.ResponseWriter, _ *http.Request) {
		answer(w, brokerapi.Invitation{URL: link})
	}
	if i, err := b.Invite(t.Context(), s, "bob"); err != nil || i.URL != link {
		t.Errorf("%+v, %v", i, err)
	}
	link = "javascript:alert(1)"
	_, err = b.Invite(t.Context(), s, "bob")
	failsWith(t, err, failure.Internal, "no https URL")
}
