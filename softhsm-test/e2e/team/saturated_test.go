package team

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// saturatedPolicy lets example/app and example/other sign, and example/slow after an hour.
const saturatedPolicy = `version: 1
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: hog
      when: caller.claims.repository == "example/app"
    - name: other
      when: caller.claims.repository == "example/other"
    - name: slow
      when: caller.claims.repository == "example/slow"
      time-lock: 1h
`

// TestSaturated has 200 clients of one caller want more signatures than the module makes. They are refused with a time
// after which to try again, and with nothing else. All others go on.
func TestSaturated(t *testing.T) {
	softhsmtest.Parallel(t)
	token, settings := softhsmtest.NewToken(t, "prod"), t.TempDir()
	softhsmtest.Setenv(t, "SHIM_SETTINGS", settings)
	s := startOn(t, token, softhsmtest.TeamOptions{Policy: saturatedPolicy, Module: softhsmtest.Shim(t, token.Module),
		Limits: manyRequests})
	s.http.Transport.(*http.Transport).MaxIdleConnsPerHost = 300
	refusals := &refusals{RoundTripper: s.http.Transport, t: t}
	s.http.Transport = refusals
	s.signs()
	delay := filepath.Join(settings, "SHIM_DELAY_MS") // of each call: a signature takes two
	if err := os.WriteFile(delay, []byte("50"), 0o600); err != nil {
		t.Fatal(err)
	}
	var made atomic.Int64
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 200 {
		group.Go(func() { s.hog(stop, &made) })
	}
	for refusals.count.Load() < 100 {
		time.Sleep(10 * time.Millisecond)
	}
	const rounds = 9
	for range rounds {
		s.works()
	}
	close(stop)
	group.Wait()
	if err := os.Remove(delay); err != nil {
		t.Fatal(err)
	}
	s.Restart() // which publishes all
	events := s.audit()
	s.account(events)
	if n := count(events, "lost/v1") + count(events, "failed/v1"); n > 0 {
		t.Errorf("%d signatures were lost", n)
	}
	if n := int64(count(events, "signed/v1")); n != made.Load()+1+rounds {
		t.Errorf("%d signatures are in the log, and the hog has got %d", n, made.Load())
	}
	between := s.between(events)
	t.Logf("%d signatures of the hog, %d refusals; signatures of the hog meanwhile: %v", made.Load(),
		refusals.count.Load(), between)
	for what, all := range between { // the hog has 128 that wait
		if len(all) != rounds || all[rounds/2] > 100 {
			t.Errorf("%d times, half of them while %d signatures of the hog were made: %s", len(all), all[len(all)/2], what)
		}
	}
}

// hog signs without a pause.
func (s *team) hog(stop <-chan struct{}, made *atomic.Int64) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		_, problem, err := s.sign(s.ci(), s.image())
		switch {
		case err != nil:
			s.t.Errorf("signing: %v", err)
			return
		case problem == nil:
			made.Add(1)
		case problem.Kind != failure.Throttled:
			s.t.Errorf("signing: %s: %v", problem.Kind, problem)
			return
		default: // sooner than it is asked to
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// works asks for health, makes a request, lists and cancels it, and signs.
func (s *team) works() {
	s.t.Helper()
	var all any
	for _, path := range []string{brokerapi.HealthPath, brokerapi.ReadyPath} {
		if problem, err := s.call("", http.MethodGet, path, nil, &all); err != nil || problem != nil {
			s.t.Errorf("%s: %v, %v", path, problem, err)
		}
	}
	var made brokerapi.Request
	var page brokerapi.Requests
	artifact := brokerapi.Target{Format: payload.Notation, MediaType: "application/vnd.oci.image.manifest.v1+json",
		Digest: "sha256:" + strings.Repeat("0", 60) + strconv.Itoa(int(1000+s.images.Add(1)%1000)), Size: 500}
	slow := func(method, path string, body, answer any) {
		if problem, err := s.call(s.mint("example/slow", "main"), method, path, body, answer); err != nil || problem != nil {
			s.t.Errorf("%s %s: %v, %v", method, path, problem, err)
		}
	}
	slow(http.MethodPost, brokerapi.RequestsPath, brokerapi.NewRequest{Key: "release", Artifact: artifact}, &made)
	slow(http.MethodGet, brokerapi.RequestsPath, nil, &page)
	slow(http.MethodPost, brokerapi.CancelPath(made.ID), nil, &made)
	if len(page.Requests) == 0 || made.State != brokerapi.Cancelled {
		s.t.Errorf("%d requests are listed; request %s is %s", len(page.Requests), made.ID, made.State)
	}
	if _, problem, err := s.sign(s.mint("example/other", "main"), s.image()); err != nil || problem != nil {
		s.t.Errorf("signing: %v, %v", problem, err)
	}
}

// between returns how many signatures of the hog the log has between the beginning and the end of what others did, in
// order.
func (s *team) between(events []event) map[string][]int {
	all := map[string][]int{}
	hog, created, cancelled := 0, 0, 0
	rules := map[string]string{}
	for _, e := range events {
		switch e.Type {
		case "intent/v1":
			rules[e.Request] = e.Rule
		case "request/v1":
			created = hog
		case "ended/v1":
			all["a request is made, listed and cancelled"] = append(all["a request is made, listed and cancelled"], hog-created)
			cancelled = hog
		case "signed/v1":
			if rules[e.Request] == "hog" {
				hog++
			} else {
				all["another caller signs"] = append(all["another caller signs"], hog-cancelled)
			}
		}
	}
	for _, n := range all {
		slices.Sort(n)
	}
	return all
}

// refusals counts answers with status 429, which all say when to try again.
type refusals struct {
	http.RoundTripper
	t     testing.TB
	count atomic.Int64
}

// RoundTrip makes a request.
func (r *refusals) RoundTrip(request *http.Request) (*http.Response, error) {
	answer, err := r.RoundTripper.RoundTrip(request)
	if err == nil && answer.StatusCode == http.StatusTooManyRequests {
		r.count.Add(1)
		if n, err := strconv.Atoi(answer.Header.Get("Retry-After")); err != nil || n < 1 || n > 30 {
			r.t.Errorf("Retry-After is %q", answer.Header.Get("Retry-After"))
		}
	}
	return answer, err
}
