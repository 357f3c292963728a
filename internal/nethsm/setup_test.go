package nethsm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

// prepare returns the plan for a key "release" with the tag "pipeline".
func prepare(t *testing.T, s *config.Settings, o Order) (string, error) {
	t.Helper()
	p, err := Prepare(context.Background(), s, o)
	if err != nil {
		return "", err
	}
	defer p.Close()
	var plan strings.Builder
	for _, step := range p.Steps {
		plan.WriteString(step.What + "\n")
	}
	return plan.String(), nil
}

func order(spec key.Spec, usage key.Usage, label string) Order {
	return Order{Request: key.Request{Spec: spec, Usage: usage, Label: label}, Tag: "pipeline"}
}

// TestPrepareRefuses has what can't be done said before anything is made; what needs no look at the NetHSM, before any
// request.
func TestPrepareRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		order     Order
		arrange   func(*testing.T, *nethsmtest.Server, *config.Settings)
		words     string
		noRequest bool
	}{
		"EC to decrypt": {order(key.Specs[3], key.Decrypt, "release"), nil, "agrees on no keys", true},
		"a prefix":      {order(key.Specs[3], key.Sign, "rel*"), nil, "can't be the ID of a key", true},
		"no namespace": {Order{Request: key.Request{Spec: key.Specs[3], Usage: key.Sign, Label: "release"}, Tag: "pipeline",
			Root: "root"}, nil,
			"is in no namespace", true},
		"a key for something else": {order(key.Specs[0], key.Decrypt, "release"),
			func(t *testing.T, _ *nethsmtest.Server, s *config.Settings) {
				if _, err := generate(context.Background(), s,
					key.Request{Spec: key.Specs[0], Usage: key.Sign, Label: "release"}); err != nil {
					t.Fatal(err)
				}
			}, "can't decrypt: it was made for RSA_Signature_PSS_SHA256", false},
		"a short passphrase": {order(key.Specs[3], key.Sign, "release"),
			func(t *testing.T, _ *nethsmtest.Server, s *config.Settings) {
				s.NetHSM.User = "newcomer"
				t.Setenv("OPERATOR_PASSPHRASE", "short")
			}, "has 5 bytes", false},
		"no namespace yet": {order(key.Specs[3], key.Sign, "release"),
			func(_ *testing.T, _ *nethsmtest.Server, s *config.Settings) {
				s.NetHSM.User, s.NetHSM.Administrator = "signing~operator", "signing~admin"
			}, "does not let user signing~admin in", false},
		"a file for all to read": {order(key.Specs[3], key.Sign, "release"),
			func(t *testing.T, _ *nethsmtest.Server, s *config.Settings) {
				s.NetHSM.User, s.NetHSM.Administrator = "signing~operator", "signing~admin"
				file := filepath.Join(t.TempDir(), "admin")
				if err := os.WriteFile(file, []byte(adminPassphrase), 0o644); err != nil { //nolint:gosec // that is the point
					t.Fatal(err)
				}
				s.NetHSM.AdministratorPINSource = "file:" + file
			}, "others can read", true},
	} {
		t.Run(name, func(t *testing.T) {
			servers, s := start(t, 1)
			if c.arrange != nil {
				c.arrange(t, servers[0], s)
			}
			servers[0].ResetRequests()
			_, err := prepare(t, s, c.order)
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want %q", err, c.words)
			}
			if n := len(servers[0].Requests()); c.noRequest && n > 0 {
				t.Errorf("%d requests", n)
			}
			if len(paths(servers[0], http.MethodPut))+len(paths(servers[0], http.MethodPost)) > 0 {
				t.Error("something was made")
			}
			if hint := failure.From(err).Hint; strings.Contains(hint, "--root-administrator") != (name == "no namespace yet") {
				t.Errorf("the hint is %q", hint)
			}
		})
	}
}

// TestPrepareShows has the plan say what else the operator can do.
func TestPrepareShows(t *testing.T) {
	servers, s := start(t, 1)
	s.NetHSM.User = "signer"
	servers[0].AddUser("signer", nethsmtest.Operator, operatorPassphrase, "berlin")
	for id, tags := range map[string][]string{"open": nil, "capital": {"berlin"}, "foreign": {"paris"}} {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		servers[0].AddKey(id, private, tags...)
	}
	plan, err := prepare(t, s, order(key.Specs[3], key.Sign, "release"))
	if err != nil || !strings.Contains(plan, "(beside its tags berlin)") ||
		!strings.Contains(plan, "one of its tags: capital, open\n") {
		t.Errorf("%v\n%s", err, plan)
	}

	// A key that can do more than it is asked to is taken, as one that another program made.
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	servers[0].AddKey("recipient", private)
	if plan, err = prepare(t, s, order(key.Specs[0], key.Decrypt, "recipient")); err != nil ||
		!strings.Contains(plan, "key nethsm:recipient (RSA-2048)") {
		t.Errorf("%v\n%s", err, plan)
	}
}

// TestTags makes a key for the users of two tags alone, in the request that makes it.
func TestTags(t *testing.T) {
	servers, s := start(t, 1)
	// so that it is recognized by its tags as well
	servers[0].Inject(http.MethodPost, "/keys/generate", 1, nethsmtest.DropAfter())
	info, err := generate(context.Background(), s,
		key.Request{Spec: key.Specs[3], Usage: key.Sign, Label: "release", Tags: []string{"a", "b"}})
	if err != nil || !slices.Equal(info.Tags, []string{"a", "b"}) || len(paths(servers[0], http.MethodPut)) > 0 {
		t.Errorf("%+v, %v", info, err)
	}
}
