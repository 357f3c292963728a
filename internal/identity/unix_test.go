package identity

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// overSocket makes a request to an Authenticator over a Unix socket, as this process's user.
func overSocket(t *testing.T, a *Authenticator, token string) answer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan answer, 1)
	handler := func(_ http.ResponseWriter, r *http.Request) {
		caller, err := a.Caller(r)
		answers <- answer{caller, err}
	}
	server := &http.Server{ConnContext: ConnContext, Handler: http.HandlerFunc(handler)}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://broker/v1/keys", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return <-answers
}

func TestUnixPeer(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	const nobody = "4000000000"
	for label, test := range map[string]struct {
		config         *Unix
		administrators []Administrator
		accepted       bool
		admin          bool
	}{
		"user by name":        {&Unix{Users: []string{me.Username}}, nil, true, false},
		"user by id":          {&Unix{Users: []string{nobody, me.Uid}}, nil, true, false},
		"group by name":       {&Unix{Groups: []string{group.Name}}, nil, true, false},
		"group by id":         {&Unix{Groups: []string{me.Gid}}, nil, true, false},
		"administrator":       {nil, []Administrator{{Unix: me.Username}}, true, true},
		"administrator by id": {&Unix{Users: []string{me.Uid}}, []Administrator{{Unix: me.Uid}}, true, true},
		"another user":        {&Unix{Users: []string{nobody}}, nil, false, false},
		"another group":       {&Unix{Groups: []string{nobody}}, nil, false, false},
		"another's id":        {&Unix{Users: []string{nobody}}, []Administrator{{Unix: nobody}}, false, false},
		"no section":          {nil, nil, false, false},
		"certificate's name":  {nil, []Administrator{{MTLS: "CN=" + me.Uid}}, false, false},
	} {
		t.Run(label, func(t *testing.T) {
			got := overSocket(t, newAuthenticator(t, Config{Unix: test.config}, test.administrators...), "")
			if !test.accepted {
				checkFailure(t, got.err, failure.Denied, "user "+me.Uid+" is not listed")
				return
			}
			if got.err != nil {
				t.Fatal(got.err)
			}
			c := got.caller
			if c.Issuer != IssuerUnix || c.Subject != me.Uid || c.Admin != test.admin || c.Token != nil ||
				c.Claims["uid"] != int64(os.Getuid()) || c.Claims["gid"] != int64(os.Getgid()) ||
				c.Claims["user"] != me.Username {
				t.Errorf("caller is %+v", c)
			}
		})
	}
}

// TestTokenOverSocket verifies that a request with a token is the token's, over a Unix socket as well: a user who is
// listed gains nothing by a token that is refused.
func TestTokenOverSocket(t *testing.T) {
	b := newBench(t, nil)
	b.unix.users = []string{strconv.Itoa(os.Getuid())}
	if got := overSocket(t, b.Authenticator, b.mint(t, nil)); got.err != nil || got.caller.Issuer != b.issuer.URL {
		t.Errorf("caller with a token is %+v", got)
	}
	token := b.mint(t, map[string]any{"exp": 1})
	got := overSocket(t, b.Authenticator, token)
	checkFailure(t, got.err, failure.Denied, "expired")
	checkSecret(t, got.err, token)
}

func TestPeerWithoutAccount(t *testing.T) {
	rules := peerRules{users: []string{"4000000001"}, groups: []string{"4000000003"}}
	for _, peer := range []unix.Ucred{{Uid: 4000000001, Gid: 1}, {Uid: 4000000002, Gid: 4000000003}} {
		caller, err := rules.caller(peer)
		if err != nil || caller.Claims["user"] != "" || caller.Claims["uid"] != int64(peer.Uid) {
			t.Errorf("caller is %+v, %v", caller, err)
		}
	}
	_, err := rules.caller(unix.Ucred{Uid: 4000000003, Gid: 4000000001})
	checkFailure(t, err, failure.Denied, "user 4000000003 is not listed")
}

func TestUnknownUsers(t *testing.T) {
	const none = "no-such-user-or-group"
	for want, test := range map[string]struct {
		config         *Unix
		administrators []Administrator
	}{
		"cannot resolve callers.unix.users":  {&Unix{Users: []string{none}}, nil},
		"cannot resolve callers.unix.groups": {&Unix{Groups: []string{none}}, nil},
		"cannot resolve administrators":      {nil, []Administrator{{Unix: none}}},
	} {
		_, err := New(Config{Unix: test.config}, test.administrators)
		checkFailure(t, err, failure.NotFound, want)
	}
	for _, text := range []string{"007", "+1", "-1", "4294967296", "", " 1"} {
		if isID(text) {
			t.Errorf("%q is taken for an id", text)
		}
	}
}
