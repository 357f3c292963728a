package remote

import (
	"crypto"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// openWith opens the fake's key with settings.
func (f *fake) openWith(t *testing.T, b *Backend, s *config.Settings) keystore.Key {
	t.Helper()
	store, err := b.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	k, err := store.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func accept(w http.ResponseWriter, r brokerapi.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(r)
}

var pending = brokerapi.Request{ID: "r-1", State: brokerapi.Pending, Reason: "2 of release-managers must agree",
	URL: "https://broker.example.com/r/r-1"}

// TestAccepted waits for a request that people have to agree to, as long as the settings say.
func TestAccepted(t *testing.T) {
	t.Parallel()
	settled := func(state brokerapi.State, reason string) brokerapi.Request {
		r := pending
		r.State, r.Reason = state, reason
		return r
	}
	for name, c := range map[string]struct {
		wait  time.Duration
		ends  brokerapi.Request
		kind  failure.Kind
		text  string // "" if it signs
		posts int
	}{
		"no wait":        {0, pending, failure.Unavailable, "sign yet: https://broker.example.com/r/r-1 (2 of", 1},
		"approved":       {time.Hour, settled(brokerapi.Approved, ""), 0, "", 2},
		"rejected":       {time.Hour, settled(brokerapi.Rejected, "no"), failure.Denied, "was rejected: no", 1},
		"expired":        {time.Hour, settled(brokerapi.Expired, ""), failure.Unavailable, "has expired", 1},
		"cancelled":      {time.Hour, settled(brokerapi.Cancelled, ""), failure.Denied, "was cancelled", 1},
		"lost":           {time.Hour, settled(brokerapi.Lost, ""), failure.Unavailable, "without a signature (lost)", 1},
		"never":          {time.Millisecond, pending, failure.Unavailable, "does not sign yet", 1},
		"another":        {time.Hour, brokerapi.Request{ID: "r-2", State: "signed"}, failure.Internal, "another request", 1},
		"no state":       {time.Hour, brokerapi.Request{ID: "r-1", State: "new"}, failure.Internal, `unknown state "new"`, 1},
		"says otherwise": {time.Hour, settled(brokerapi.Approved, "again"), failure.Unavailable, "does not sign yet", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTLSFake(t, nil)
			s := f.settings()
			s.ApprovalWait, s.Repository = c.wait, "registry.example.com/app"
			k := f.openWith(t, New(), s)
			var approved atomic.Bool
			f.answers[brokerapi.SignaturesPath("release")] = func(w http.ResponseWriter, r *http.Request) {
				if !approved.Load() || c.ends.Reason == "again" {
					accept(w, pending)
					return
				}
				f.sign(w, r)
			}
			f.answers[brokerapi.RequestPath("r-1")] = func(w http.ResponseWriter, r *http.Request) {
				approved.Store(c.ends.State == brokerapi.Approved)
				if r.URL.Query().Get("wait") == "" {
					t.Errorf("it asks without waiting: %s", r.URL)
				}
				answer(w, c.ends)
			}
			_, err := k.SignMessage(t.Context(), []byte("message"), crypto.SHA256)
			if c.text == "" && err != nil {
				t.Error(err)
			} else if c.text != "" {
				failsWith(t, err, c.kind, c.text)
			}
			if posts := f.sent(http.MethodPost); len(posts) != c.posts ||
				posts[0].Header.Get("Idempotency-Key") != posts[len(posts)-1].Header.Get("Idempotency-Key") {
				t.Errorf("%d posts", len(posts))
			}
			if c.text == "" && (len(f.signed) != 1 || f.signed[0].Repository != s.Repository) {
				t.Errorf("signed were %+v", f.signed)
			}
		})
	}
}

// TestTooOld does not send a payload again that the broker would refuse for its time.
func TestTooOld(t *testing.T) {
	t.Parallel()
	f := newTLSFake(t, nil)
	s := f.settings()
	s.ApprovalWait = time.Hour
	k := f.openWith(t, New(), s)
	k.(*remoteKey).client.window = -1
	f.answers[brokerapi.SignaturesPath("release")] = func(w http.ResponseWriter, _ *http.Request) { accept(w, pending) }
	f.answers[brokerapi.RequestPath("r-1")] = func(w http.ResponseWriter, _ *http.Request) {
		r := pending
		r.State = brokerapi.Approved
		answer(w, r)
	}
	_, err := k.SignMessage(t.Context(), []byte("message"), crypto.SHA256)
	failsWith(t, err, failure.Unavailable, "is approved, but what was to be signed is older")
}

// TestTries makes a call again after failures that pass, a bounded number of times, and no other call.
func TestTries(t *testing.T) {
	t.Parallel()
	status := func(code int, after string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if after != "" {
				w.Header().Set("Retry-After", after)
			}
			problem(w, code, map[int]string{429: "throttled", 503: "unavailable", 403: "denied", 500: "internal"}[code], "busy")
		}
	}
	lost := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	proxy := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) }
	for name, c := range map[string]struct {
		fails http.HandlerFunc
		times int // that it fails
		kind  failure.Kind
		tries int
		works bool
	}{
		"lost":             {lost, 2, 0, 3, true},
		"lost for ever":    {lost, 99, failure.Unavailable, attempts, false},
		"throttled":        {status(429, ""), 2, 0, 3, true},
		"throttled always": {status(429, "0"), 99, failure.Throttled, attempts, false},
		"unavailable":      {status(503, "0"), 1, 0, 2, true},
		"later":            {status(503, "7200"), 99, failure.Unavailable, 1, false}, // the timeout is an hour
		"a date":           {status(503, "Fri, 31 Dec 1999 23:59:59 GMT"), 1, 0, 2, true},
		"a proxy":          {proxy, 1, 0, 2, true},
		"denied":           {status(403, "0"), 99, failure.Denied, 1, false},
		"internal":         {status(500, "0"), 99, failure.Internal, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTLSFake(t, nil)
			k := f.openWith(t, New(), f.settings())
			var tries atomic.Int64
			f.answers[brokerapi.SignaturesPath("release")] = func(w http.ResponseWriter, r *http.Request) {
				if int(tries.Add(1)) <= c.times {
					c.fails(w, r)
					return
				}
				f.sign(w, r)
			}
			_, err := k.SignMessage(t.Context(), []byte("message"), crypto.SHA256)
			if c.works && err != nil || !c.works && !failure.Is(err, c.kind) || int(tries.Load()) != c.tries {
				t.Errorf("%d tries, %v", tries.Load(), err)
			}
		})
	}
}

// TestHostile refuses answers that are no request, and shows nothing of them that a terminal would interpret.
func TestHostile(t *testing.T) {
	t.Parallel()
	f, b := newTLSFake(t, nil), New()
	s := f.settings()
	get := func(body brokerapi.Request) (brokerapi.Request, error) {
		f.mu.Lock()
		f.answers[brokerapi.RequestPath("r-1")] = func(w http.ResponseWriter, _ *http.Request) { answer(w, body) }
		f.mu.Unlock()
		return b.Request(t.Context(), s, "r-1", 0)
	}
	for _, address := range []string{"javascript:alert(1)", "http://broker.example.com/", "https://a\x1b[2J", "https://",
		"https://u:p@broker.example.com", "https://broker.example.com/" + strings.Repeat("x", urlLimit), "https://a/ü",
		"https://a/\"><script>", "\x9b2J"} {
		r := pending
		r.URL, r.Reason = address, "\x1b]0;x\x07y"
		got, err := get(r)
		if err != nil || got.URL != "" || got.Reason != "\ufffd]0;x\ufffdy" || Place(got) != "request r-1" {
			t.Errorf("%.30q: %+v, %v", address, got, err)
		}
	}
	for _, id := range []string{"", "..", "r-2", "a/b", "\x1b[2J", strings.Repeat("x", idLimit+1)} {
		_, err := get(brokerapi.Request{ID: id, State: brokerapi.Pending})
		failsWith(t, err, failure.Internal, "invalid answer (request)")
	}
	f.answers[brokerapi.RequestPath("r-1")] = func(w http.ResponseWriter, _ *http.Request) {
		problem(w, http.StatusForbidden, "denied", "no\x1b[2J")
	}
	_, err := b.Request(t.Context(), s, "r-1", 0)
	failsWith(t, err, failure.Denied, "no\ufffd[2J")
	f.answers[brokerapi.RequestPath("r-1")] = endless
	_, err = b.Request(t.Context(), s, "r-1", 0)
	failsWith(t, err, failure.Internal, "invalid answer")
}

// TestRequests creates, lists and cancels requests. A request whose answer was lost is created once: by its key.
func TestRequests(t *testing.T) {
	t.Parallel()
	f, b := newTLSFake(t, nil), New()
	s := f.settings()
	s.Repository = "registry.example.com/app"
	tries := 0
	f.answers[brokerapi.RequestsPath] = func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			if r.URL.RawQuery != "limit=2&state=pending" {
				t.Errorf("the query is %q", r.URL.RawQuery)
			}
			answer(w, brokerapi.Requests{Requests: []brokerapi.Request{pending}, Before: "r-1"})
			return
		}
		body, err := io.ReadAll(r.Body)
		var n brokerapi.NewRequest
		if err == nil {
			err = brokerapi.ReadRequest(body, &n)
		}
		if err != nil || n.Key != "release" {
			t.Errorf("%s: %v", body, err)
		}
		if tries++; tries == 1 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusCreated)
		answer(w, pending)
	}
	n := brokerapi.NewRequest{Key: "release", Repository: "registry.example.com/app",
		Artifact: brokerapi.Target{Format: "notation", Digest: "sha256:" + strings.Repeat("0", 64)}}
	for range 2 {
		if r, err := b.CreateRequest(t.Context(), s, n); err != nil || r.ID != "r-1" || r.URL != pending.URL {
			t.Errorf("%+v, %v", r, err)
		}
	}
	var keys []string
	for _, r := range f.sent(http.MethodPost) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if trace := r.Header.Get("Traceparent"); !regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-01$`).MatchString(trace) {
			t.Errorf("traceparent is %q", trace)
		}
	}
	if len(keys) != 3 || keys[0] != keys[1] || keys[1] == keys[2] {
		t.Errorf("the idempotency keys are %q", keys)
	}
	all, err := b.ListRequests(t.Context(), s, url.Values{"state": {"pending"}, "limit": {"2"}})
	if err != nil || len(all.Requests) != 1 || all.Before != "r-1" {
		t.Errorf("%+v, %v", all, err)
	}
	f.answers[brokerapi.CancelPath("r-1")] = func(w http.ResponseWriter, _ *http.Request) {
		r := pending
		r.State = brokerapi.Cancelled
		answer(w, r)
	}
	if r, err := b.CancelRequest(t.Context(), s, "r-1"); err != nil || r.State != brokerapi.Cancelled {
		t.Errorf("%+v, %v", r, err)
	}
	for _, state := range brokerapi.States {
		err := Outcome(brokerapi.Request{ID: "r-1", State: state})
		if good := state == brokerapi.Approved || state == brokerapi.Signed; good != (err == nil) ||
			err != nil && failure.From(err).Hint == "" {
			t.Errorf("%s: %v", state, err)
		}
	}
}

// TestTraceparent takes the one of the environment, if it is one.
func TestTraceparent(t *testing.T) {
	const given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	t.Setenv("TRACEPARENT", given)
	if got := traceparent(); got != given {
		t.Error(got)
	}
	t.Setenv("TRACEPARENT", given+"\r\nX: y")
	first, second := traceparent(), traceparent()
	if len(first) != 55 || first == second || strings.ContainsAny(first, "\r\n") {
		t.Errorf("%q, %q", first, second)
	}
}

// TestKeysOfTeam lists keys of several tokens by their names.
func TestKeysOfTeam(t *testing.T) {
	t.Parallel()
	f := newTLSFake(t, nil)
	f.answers[brokerapi.KeysPath] = func(w http.ResponseWriter, _ *http.Request) {
		answer(w, brokerapi.Keys{Keys: []brokerapi.Key{f.key}})
	}
	s := f.settings()
	s.Key = config.URI{Broker: true}
	store, err := New().Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	keys, err := store.Keys(t.Context())
	if err != nil || len(keys) != 1 || keys[0].(*remoteKey).name != "release" {
		t.Errorf("%+v, %v", keys, err)
	}
}

// TestGone waits through an update of the broker, and not for one that never answered.
func TestGone(t *testing.T) {
	t.Parallel()
	f, b := newTLSFake(t, nil), New()
	s := f.settings()
	var asked atomic.Int64
	f.answers[brokerapi.RequestPath("r-1")] = func(w http.ResponseWriter, _ *http.Request) {
		switch n := asked.Add(1); {
		case n == 1:
			answer(w, pending)
		case n <= attempts+2: // more than the tries of one call
			panic(http.ErrAbortHandler)
		default:
			r := pending
			r.State = brokerapi.Approved
			answer(w, r)
		}
	}
	r, err := b.WaitRequest(t.Context(), s, "r-1", time.Hour)
	if err != nil || r.State != brokerapi.Approved || asked.Load() != attempts+3 {
		t.Errorf("%+v, %v, asked %d times", r, err, asked.Load())
	}
	f.answers[brokerapi.RequestPath("r-1")] = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	_, err = b.WaitRequest(t.Context(), s, "r-1", time.Hour)
	failsWith(t, err, failure.Unavailable, "cannot reach the broker")
}

// TestSpread does not have all clients come back at the time that a broker asks for.
func TestSpread(t *testing.T) {
	t.Parallel()
	seen := map[time.Duration]bool{}
	for range 100 {
		d := spread(8 * time.Second)
		if d < 8*time.Second || d > 10*time.Second {
			t.Errorf("%s", d)
		}
		seen[d] = true
	}
	if len(seen) == 1 || spread(0) != 0 {
		t.Errorf("%v", seen)
	}
}
