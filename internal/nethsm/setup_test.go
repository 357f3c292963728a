package nethsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

// planOf returns the steps of a setup, one per line.
func planOf(t *testing.T, s *config.Settings, r SetupRequest) (string, error) {
	t.Helper()
	p, err := warnTo(io.Discard).Prepare(t.Context(), s, r)
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

// setupOf returns a request for a key with the tag "pipeline".
func setupOf(spec key.Spec, usage key.Usage, label string) SetupRequest {
	return SetupRequest{Request: key.Request{Spec: spec, Usage: usage, Label: label}, Tag: "pipeline"}
}

// inNamespace changes the settings to users of the namespace "signing".
func inNamespace(s *config.Settings) {
	s.NetHSM.User, s.NetHSM.Administrator = "signing~operator", "signing~admin"
}

// TestSetup creates namespace, users, tag and key in an order in which an interrupted setup can be repeated, and
// nothing that exists. Nobody but the operator can use the key.
func TestSetup(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	servers[0].AddUser("root", nethsmtest.Administrator, "root passphrase")
	inNamespace(s)
	request := setupOf(signSpec, key.Sign, "release")
	request.Root, request.RootPINSource = "root", "env:TEST_ROOT"
	b := warnTo(io.Discard)
	run := func(fail func(step int) bool) (made []string, err error) {
		t.Helper()
		p, err := b.Prepare(t.Context(), s, request)
		if err != nil {
			return nil, err
		}
		defer p.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err = p.Run(ctx, func(step string) {
			if made = append(made, step); fail(len(made)) {
				cancel()
			}
		})
		return made, err
	}
	var created []string
	for i := 0; ; i++ { // each run gets one step further
		if i == 10 {
			t.Fatal("it does not end")
		}
		made, err := run(func(step int) bool { return step == 2 })
		if len(made) > 0 && (err == nil || len(made) == 2) {
			created = append(created, made[0])
		}
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "interrupted while") {
			t.Fatal(err)
		}
	}
	want := []string{"user signing~admin (Administrator)", "namespace signing", "user signing~operator (Operator)",
		"tag pipeline for user signing~operator", "key nethsm:release (EC-256, to sign)"}
	if len(created) != len(want) {
		t.Fatalf("created %q", created)
	}
	for i := range want {
		if !strings.HasPrefix(created[i], want[i]) {
			t.Errorf("step %d: %s", i, created[i])
		}
	}
	if made, err := run(func(int) bool { return false }); err != nil || len(made) > 0 {
		t.Errorf("again: %v, %v", made, err)
	}
	if err := sign(t.Context(), openWith(t, b, s), nil); err != nil {
		t.Error(err)
	}
	servers[0].AddUser("signing~visitor", nethsmtest.Operator, operatorPassphrase)
	s.NetHSM.User = "signing~visitor"
	if err := sign(t.Context(), openWith(t, b, s), nil); !failure.Is(err, failure.Denied) {
		t.Errorf("a user without the tag: %v", err)
	}
}

// TestSetupAfterRejection sets up a namespace whose users the same process has tried before.
func TestSetupAfterRejection(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	servers[0].AddUser("root", nethsmtest.Administrator, "root passphrase")
	inNamespace(s)
	b := warnTo(io.Discard)
	request := setupOf(signSpec, key.Sign, "release")
	if _, err := b.Prepare(t.Context(), s, request); !errors.Is(err, errRejected) {
		t.Fatal(err)
	}
	request.Root, request.RootPINSource = "root", "env:TEST_ROOT"
	p, err := b.Prepare(t.Context(), s, request)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	lost := servers[0].Inject(http.MethodPut, "/users/*", 2, nethsmtest.DropAfter())
	if err := p.Run(t.Context(), func(string) {}); err != nil || lost.Hits() != 2 {
		t.Errorf("%d hits: %v", lost.Hits(), err)
	}
	if all := paths(http.MethodPut, servers...); len(all) != 4 {
		t.Errorf("it took the requests %v", all)
	}
	if err := sign(t.Context(), openWith(t, b, s), nil); err != nil {
		t.Error(err)
	}
}

// TestPrepareRefuses reports what cannot be done before anything is created; what needs no look at the NetHSM, before
// any request.
func TestPrepareRefuses(t *testing.T) {
	t.Parallel()
	release := setupOf(signSpec, key.Sign, "release")
	root, badTag := release, release
	root.Root, root.RootPINSource = "root", "env:TEST_ROOT"
	badTag.Tag = "a/b"
	for name, c := range map[string]struct {
		request   SetupRequest
		arrange   func(*testing.T, *nethsmtest.Server, *config.Settings)
		kind      failure.Kind
		words     string
		noRequest bool
	}{
		"EC to decrypt": {setupOf(signSpec, key.Decrypt, "release"), nil, failure.Unsupported, "does not support ECDH", true},
		"a prefix":      {setupOf(signSpec, key.Sign, "rel*"), nil, failure.Invalid, "invalid key ID", true},
		"a bad tag":     {badTag, nil, failure.Invalid, `invalid tag "a/b"`, true},
		"no namespace":  {root, nil, failure.Invalid, "has no namespace to create", true},
		"no administrator": {release, func(_ *testing.T, _ *nethsmtest.Server, s *config.Settings) {
			s.NetHSM.Administrator = ""
		}, failure.Invalid, "no administrator", true},
		"no user": {release, func(_ *testing.T, _ *nethsmtest.Server, s *config.Settings) { s.NetHSM.User = "" },
			failure.Invalid, "no user", true},
		"two namespaces": {release, func(_ *testing.T, _ *nethsmtest.Server, s *config.Settings) {
			s.NetHSM.User = "signing~operator"
		}, failure.Invalid, "administrator admin cannot manage user signing~operator", true},
		"a key of another usage": {setupOf(decryptSpec, key.Decrypt, "release"),
			func(t *testing.T, _ *nethsmtest.Server, s *config.Settings) {
				request := key.Request{Spec: decryptSpec, Usage: key.Sign, Label: "release"}
				if _, err := generate(t.Context(), s, request); err != nil {
					t.Fatal(err)
				}
			}, failure.Conflict, "cannot decrypt: its mechanisms are RSA_Signature_PSS_SHA256", false},
		"a key of another spec": {setupOf(decryptSpec, key.Sign, "release"),
			func(t *testing.T, server *nethsmtest.Server, _ *config.Settings) { ecKey(t, server) },
			failure.Conflict, "exists, and is not an RSA-2048 key", false},
		"a short passphrase": {release, func(_ *testing.T, _ *nethsmtest.Server, s *config.Settings) {
			s.NetHSM.User, s.PINSource = "newcomer", "env:TEST_SHORT"
		}, failure.Invalid, "has 5 bytes", false},
		"a prompt for a new user": {release, func(_ *testing.T, _ *nethsmtest.Server, s *config.Settings) {
			s.NetHSM.User, s.PINSource = "newcomer", "prompt"
		}, failure.Invalid, "cannot prompt", false},
		"a user of another role": {release, func(_ *testing.T, server *nethsmtest.Server, s *config.Settings) {
			s.NetHSM.User = "backup"
			server.AddUser("backup", nethsmtest.Backup, "backup passphrase")
		}, failure.Conflict, "exists with the role Backup", false},
		"no namespace yet": {release, func(_ *testing.T, _ *nethsmtest.Server, s *config.Settings) { inNamespace(s) },
			failure.Denied, "rejected the credentials of user signing~admin", false},
		"a namespace without the administrator": {root, func(_ *testing.T, server *nethsmtest.Server, s *config.Settings) {
			inNamespace(s)
			server.AddUser("root", nethsmtest.Administrator, "root passphrase")
			server.AddNamespace("signing")
		}, failure.Conflict, "cannot create administrator signing~admin", false},
		"a file that all can read": {release, func(t *testing.T, _ *nethsmtest.Server, s *config.Settings) {
			inNamespace(s)
			file := filepath.Join(t.TempDir(), "admin")
			if err := os.WriteFile(file, []byte(adminPassphrase), 0o644); err != nil { //nolint:gosec // that is the point
				t.Fatal(err)
			}
			if err := os.Chmod(file, 0o644); err != nil { //nolint:gosec // the same
				t.Fatal(err)
			}
			s.NetHSM.AdministratorPINSource = "file:" + file
		}, failure.Denied, "others can read", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers, s := start(t, 1)
			if c.arrange != nil {
				c.arrange(t, servers[0], s)
			}
			servers[0].ResetRequests()
			_, err := planOf(t, s, c.request)
			if !failure.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want %q", err, c.words)
			}
			if n := len(servers[0].Requests()); c.noRequest && n > 0 {
				t.Errorf("%d requests", n)
			}
			if len(paths(http.MethodPut, servers...))+len(paths(http.MethodPost, servers...)) > 0 {
				t.Error("something was created")
			}
			hint := failure.From(err).Hint
			if strings.Contains(hint, "add --root-administrator") != (name == "no namespace yet") {
				t.Errorf("the hint is %q", hint)
			}
		})
	}
}

// TestPrepareShows plans nothing for what exists, and shows what else the operator can do.
func TestPrepareShows(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	s.NetHSM.User = "signer"
	servers[0].AddUser("signer", nethsmtest.Operator, operatorPassphrase, "berlin")
	for id, tags := range map[string][]string{"open": nil, "capital": {"berlin"}, "foreign": {"paris"}} {
		servers[0].AddKey(id, newECKey(t), tags...)
	}
	plan, err := planOf(t, s, setupOf(signSpec, key.Sign, "release"))
	if err != nil || !strings.Contains(plan, "(besides its tags berlin)") ||
		!strings.Contains(plan, "with one of its tags: capital, open\n") {
		t.Errorf("%v\n%s", err, plan)
	}

	// A key with more mechanisms than requested, as another program has generated it, gets the tag.
	servers[0].AddKey("recipient", rsaKey(), "london")
	plan, err = planOf(t, s, setupOf(decryptSpec, key.Decrypt, "recipient"))
	if err != nil || !strings.Contains(plan, "key nethsm:recipient (RSA-2048)") ||
		!strings.Contains(plan, "only for users with the tag pipeline (and, as before, those with london)") {
		t.Errorf("%v\n%s", err, plan)
	}

	for i := range 101 {
		servers[0].AddKey(fmt.Sprintf("key-%d", i), rsaKey())
	}
	servers[0].ResetRequests()
	plan, err = planOf(t, s, setupOf(signSpec, key.Sign, "release"))
	if n := len(servers[0].Requests()); err != nil || !strings.Contains(plan, "105 other keys: ") || n > 10 {
		t.Errorf("%d requests, %v\n%s", n, err, plan)
	}
}
