package approvals

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// noticesPolicy asks one of two people.
const noticesPolicy = `version: 1
people:
  erin: [{issuer: mtls, subject: CN=erin}]
  frank: [{issuer: mtls, subject: CN=frank}]
groups:
  shells: [erin, frank]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: release
      when: caller.issuer == "ISSUER" && artifact.repository == "REGISTRY/app"
      approvals: [{group: shells, quorum: 1}]
      same: [repository, ref]
      timeout: 72h
`

// told is what a receiver was told: the event of a request, and which message it came in.
type told struct{ event, request, id, url string }

// TestNotices tells a webhook and a chat what happens to a request. A broker that starts again tells nothing twice.
func TestNotices(t *testing.T) {
	softhsmtest.Parallel(t)
	key := []byte("0123456789abcdef0123456789abcdef")
	webhook, chat := make(chan told, 100), make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.URL.Path == "/chat" {
			chat <- string(body)
			return
		}
		id := r.Header.Get("webhook-id")
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + r.Header.Get("webhook-timestamp") + "." + string(body)))
		if r.Header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
			t.Errorf("the signature of %s does not verify", body)
		}
		var m struct {
			Type string
			Data struct {
				ID, URL string
				People  []string
			}
		}
		if err := json.Unmarshal(body, &m); err != nil {
			t.Error(err)
		}
		if m.Type == "request.pending" && !slices.Equal(m.Data.People, []string{"erin", "frank"}) {
			t.Errorf("%s is told as who can approve", m.Data.People)
		}
		webhook <- told{m.Type, m.Data.ID, id, m.Data.URL}
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	secret, url := filepath.Join(dir, "secret"), filepath.Join(dir, "url")
	softhsmtest.Write(t, secret, "whsec_"+base64.StdEncoding.EncodeToString(key))
	softhsmtest.Write(t, url, server.URL+"/chat")
	s := start(t, options{policy: noticesPolicy, people: []person{{name: "erin", kind: "ssh"}, {name: "frank",
		kind: "ssh"}},
		config: "notices:\n- {name: hook, webhook: \"" + server.URL + "\", secret: " + secret + "}\n" +
			"- {name: chat, slack: " + url + ", events: [request.pending]}\n"})
	const ref = "refs/tags/v1"
	seen := map[string]bool{}
	await := func(request string, events ...string) {
		t.Helper()
		for _, event := range events {
			got := <-webhook
			if got.event != event || got.request != request || got.url != s.URL+"/requests/"+request || seen[got.id] {
				t.Fatalf("%+v instead of %s of %s", got, event, request)
			}
			seen[got.id] = true
		}
	}
	name, digest := s.image("app", "release")
	made := s.create(ref, name+"@"+digest)
	await(made.ID, "request.pending")
	if text := <-chat; !strings.Contains(text, digest) || !strings.Contains(text, s.URL+"/requests/"+made.ID) {
		t.Errorf("%s", text)
	}
	s.Restart()
	s.decide("erin", made.ID, approval.Approve)
	await(made.ID, "request.approved")
	s.signs(ref, name+"@"+digest)
	await(made.ID, "request.signed")
	s.Restart()
	name, digest = s.image("app", "refused")
	made = s.create(ref, name+"@"+digest)
	s.decide("frank", made.ID, approval.Reject)
	await(made.ID, "request.pending", "request.rejected")
	<-chat
	if len(webhook) != 0 || len(chat) != 0 {
		t.Errorf("%d notices besides", len(webhook)+len(chat))
	}
}
