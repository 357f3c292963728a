package notaryv1_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/notaryv1"
)

// prefix is where a server has the files of a repository.
const prefix = "/v2/" + gun + "/_trust/tuf/"

// ServeHTTP serves the files as a Notary server does: the current ones by name, and those that are listed by hash.
func (f *forgery) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutPrefix(r.URL.Path, prefix)
	name, json := strings.CutSuffix(name, ".json")
	if ok && json {
		if role, sum, byHash := strings.Cut(name, "."); byHash && len(sum) == 64 {
			name = role
		}
		if data, ok := f.files[name]; ok {
			_, _ = w.Write(data)
			return
		}
	}
	http.NotFound(w, r)
}

func serve(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	return server
}

func TestServer(t *testing.T) {
	t.Parallel()
	f := newForgery(t)
	f.delegate("targets/alice", []string{"release-"}, "release-1")
	f.make()
	var asked []string
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, strings.TrimPrefix(r.URL.Path, prefix))
		f.ServeHTTP(w, r)
	}))
	r, err := notaryv1.FromServer(t.Context(), notaryv1.Server{URL: server.URL, Client: server.Client()}, gun, f.pin())
	if err != nil || digestOf(r, "targets/alice", "release-1") == "" || r.GUN != gun {
		t.Fatalf("%v: %+v", err, r)
	}
	for i, name := range []string{"root.json", "timestamp.json", "snapshot.", "targets.", "targets/alice."} {
		if i >= len(asked) || !strings.HasPrefix(asked[i], name) {
			t.Fatalf("%q are read", asked)
		}
	}
	for _, address := range []string{"", "notary.example.com", "ftp://notary.example.com", "https://",
		"https://user:secret@notary.example.com", "https://notary.example.com/?a=b", "https://notary.example.com/#a", ":"} {
		_, err := notaryv1.FromServer(t.Context(), notaryv1.Server{URL: address}, gun, f.pin())
		refused(t, err, failure.Invalid, "it is not an HTTPS or HTTP URL")
	}
}

// TestHostileServer refuses what a server does beside answering.
func TestHostileServer(t *testing.T) {
	t.Parallel()
	f := newForgery(t)
	f.make()
	elsewhere := serve(t, f)
	for name, c := range map[string]struct {
		kind   failure.Kind
		words  string
		answer func(w http.ResponseWriter, r *http.Request)
	}{
		"nothing there": {failure.NotFound, "has no root.json", http.NotFound},
		"no access":     {failure.Denied, "answers 403", status(http.StatusForbidden)},
		"no challenge":  {failure.Denied, "answers 401", status(http.StatusUnauthorized)},
		"broken":        {failure.Unavailable, "answers 500", status(http.StatusInternalServerError)},
		"no content":    {failure.Unavailable, "answers 204", status(http.StatusNoContent)},
		"redirects to another host": {failure.Denied, "it redirects to", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusFound)
		}},
		"redirects without TLS": {failure.Denied, "it redirects to", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+r.Host+r.URL.Path, http.StatusFound)
		}},
		"redirects without end": {failure.Denied, "it redirects to", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"a", http.StatusFound)
		}},
		"sends without end": {failure.Unavailable, "it is larger than 1048576 bytes", func(w http.ResponseWriter,
			_ *http.Request) {
			for chunk := make([]byte, 64<<10); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}},
		"wants a token to push": {failure.Denied, "it asks for a token for", challenge("repository:" + gun + ":pull,push")},
		"wants a token for all": {failure.Denied, "it asks for a token for", challenge("registry:catalog:*")},
		"hides what it wants": {failure.Denied, "it asks for a token for",
			challenge(`repository:a:pull\x2cpush\x20repository:a:pull`)},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, http.HandlerFunc(c.answer))
			for _, credential := range []auth.Credential{{}, {Username: "user", Password: "secret"}, {RefreshToken: "token"}} {
				_, err := notaryv1.FromServer(t.Context(), notaryv1.Server{URL: server.URL, Client: server.Client(),
					Credential: func(context.Context, string) (auth.Credential, error) { return credential, nil }}, gun, f.pin())
				refused(t, err, c.kind, c.words)
			}
		})
	}
	t.Run("does not answer", func(t *testing.T) {
		server := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		ctx, cancel := context.WithTimeout(t.Context(), 1)
		defer cancel()
		_, err := notaryv1.FromServer(ctx, notaryv1.Server{URL: server.URL, Client: server.Client()}, gun, f.pin())
		refused(t, err, failure.Timeout, "cannot reach Notary server")
	})
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// challenge asks for a token, which a part of the same server gives.
func challenge(scope string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="https://%s/token",service="notary",scope="%s"`, r.Host,
			scope))
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// TestToken reads from a server that wants a token from another address, as Docker Hub's and Azure's do.
func TestToken(t *testing.T) {
	t.Parallel()
	f := newForgery(t)
	f.make()
	var tokens atomic.Int64
	realm := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens.Add(1)
		user, password, _ := r.BasicAuth()
		if r.FormValue("scope") != "repository:"+gun+":pull" || r.FormValue("service") != "notary.example.com" ||
			(user != "user" || password != "secret") && r.FormValue("refresh_token") != "identity" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(object{"token": "good", "access_token": "good"})
	}))
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(
				`Bearer realm="%s/token",service="notary.example.com",scope="repository:%s:pull"`, realm.URL, gun))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		f.ServeHTTP(w, r)
	}))
	address, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	read := func(credential auth.Credential) error {
		_, err := notaryv1.FromServer(t.Context(), notaryv1.Server{URL: server.URL, Client: server.Client(),
			Credential: func(_ context.Context, host string) (auth.Credential, error) {
				if host != address.Host {
					t.Errorf("credentials for %s are asked for", host)
				}
				return credential, nil
			}}, gun, f.pin())
		return err
	}
	for _, credential := range []auth.Credential{{Username: "user", Password: "secret"}, {RefreshToken: "identity"}} {
		before := tokens.Load()
		if err := read(credential); err != nil {
			t.Errorf("%v", err)
		}
		if asked := tokens.Load() - before; asked != 1 {
			t.Errorf("%d tokens were asked for", asked)
		}
	}
	if err := read(auth.EmptyCredential); err == nil {
		t.Error("a repository is read without the token")
	}
}

// TestPlainHTTP reads over HTTP, and keeps credentials to itself on the way to another machine.
func TestPlainHTTP(t *testing.T) {
	t.Parallel()
	f := newForgery(t)
	f.make()
	open := true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, given := r.BasicAuth(); open || given {
			f.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="notary"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(server.Close)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn,
		error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}}}
	asked := 0
	read := func(address string) error {
		_, err := notaryv1.FromServer(t.Context(), notaryv1.Server{URL: address, Client: client,
			Credential: func(context.Context, string) (auth.Credential, error) {
				asked++
				return auth.Credential{Username: "user", Password: "secret"}, nil
			}}, gun, f.pin())
		return err
	}
	if err := read("http://notary.example.com"); err != nil {
		t.Error(err)
	}
	open = false
	if err := read("http://notary.example.com"); err == nil || asked > 0 {
		t.Errorf("credentials were asked for %d times: %v", asked, err)
	}
	if err := read(server.URL); err != nil || asked == 0 {
		t.Errorf("credentials were asked for %d times: %v", asked, err)
	}
}
