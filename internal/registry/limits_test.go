package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestLimited verifies that the number of requests, the bytes of a reply and the bytes of all replies are limited.
func TestLimited(t *testing.T) {
	get := func(l *limitedTransport, length int64) (int64, error) {
		response, err := l.RoundTrip((&http.Request{Method: http.MethodGet,
			URL: &url.URL{Path: fmt.Sprint(length)}}).WithContext(t.Context()))
		if err != nil {
			return 0, err
		}
		return io.Copy(io.Discard, response.Body)
	}
	l := &limitedTransport{base: zeros{}, limits: OneImage}
	if n, err := get(l, maxReply); n != maxReply || err != nil {
		t.Errorf("the longest reply: %d bytes, %v", n, err)
	}
	if _, err := get(l, maxReply+1); err == nil || !strings.Contains(err.Error(), "the reply is longer") {
		t.Errorf("a longer one: %v", err)
	}
	read, requests := int64(2*maxReply), 2
	for ; ; requests++ {
		n, err := get(l, maxReply-1)
		if read += n; err != nil {
			if !strings.Contains(err.Error(), "the replies are longer") || read > OneImage.Bytes ||
				read < OneImage.Bytes-maxReply {
				t.Errorf("after %d bytes: %v", read, err)
			}
			break
		}
	}
	for requests = 0; ; requests++ {
		if _, err := l.RoundTrip((&http.Request{Method: http.MethodGet, URL: &url.URL{}}).WithContext(
			context.Background())); err != nil {
			break
		}
		if int64(requests) > OneImage.Requests {
			t.Fatal("requests do not end")
		}
	}
}

// zeros is a transport whose replies have the number of bytes in the path of the request.
type zeros struct{}

func (zeros) RoundTrip(r *http.Request) (*http.Response, error) {
	var length int64
	_, _ = fmt.Sscan(r.URL.Path, &length)
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{},
		Body: io.NopCloser(io.LimitReader(zeroReader{}, length))}, nil
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestTags verifies that a list of tags is checked before it is parsed, and ends after maxTags pages.
func TestTags(t *testing.T) {
	for name, c := range map[string]struct{ page, reason string }{
		"good":     {`{"tags":["a","b"]}`, ""},
		"deep":     {`{"tags":` + strings.Repeat("[", 10000), "the list is refused: it is nested deeper than 16"},
		"many":     {`{"tags":[` + strings.Repeat(`"",`, 20000) + `""]}`, "more than 20000 elements"},
		"long":     {`{"tags":["` + strings.Repeat("a", MaxPage) + `"]}`, "more than 1048576"},
		"twice":    {`{"tags":["a"],"tags":["b"]}`, `"tags" twice`},
		"not JSON": {`tags`, "not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			h := oci.NewHostile(t)
			h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				if got := r.URL.Query().Get("last"); got != "x" {
					t.Errorf("the list begins after %q", got)
				}
				fmt.Fprint(w, c.page)
				return true
			}
			var got []string
			err := Tags(t.Context(), New(Options{PlainHTTP: true}).Repository(h.Address+"/app"), "x",
				func(page []string) error { got = append(got, page...); return nil })
			if c.reason == "" && (err != nil || len(got) != 2) || c.reason != "" && (err == nil ||
				!strings.Contains(err.Error(), c.reason) || Kind(err) != failure.Invalid || Exhausted(err)) {
				t.Errorf("%q: %v", got, err)
			}
		})
	}
	h := oci.NewHostile(t)
	h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Link", fmt.Sprintf("<%s?page=next>; rel=\"next\"", r.URL.Path))
		fmt.Fprint(w, `{"tags":["a"]}`)
		return true
	}
	limits := Limits{Requests: 2 * maxTags, Bytes: 1 << 20}
	err := Tags(t.Context(), New(Options{PlainHTTP: true, Limits: limits}).Repository(h.Address+"/app"), "x",
		func([]string) error { return nil })
	if n, _ := h.Count("/tags/list"); n != maxTags || Kind(err) != failure.Invalid || !strings.Contains(err.Error(),
		"1000 pages") {
		t.Errorf("%d pages: %v", n, err)
	}
}

// TestRefusedPages verifies that tags are listed as the registry likes where it refuses the size of pages.
func TestRefusedPages(t *testing.T) {
	for status, want := range map[int]int{http.StatusRequestEntityTooLarge: 2, http.StatusBadRequest: 2,
		http.StatusMethodNotAllowed: 2, http.StatusNotFound: 1, http.StatusForbidden: 1, http.StatusTooManyRequests: 1,
		http.StatusInternalServerError: 1} {
		h := oci.NewHostile(t)
		h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.RawQuery == "" {
				fmt.Fprint(w, `{"tags":["a","b"]}`)
			} else {
				w.WriteHeader(status)
			}
			return true
		}
		found := 0
		err := Tags(t.Context(), New(Options{PlainHTTP: true}).Repository(h.Address+"/app"), "x",
			func(page []string) error { found += len(page); return nil })
		if n, _ := h.Count("/tags/list"); n != want || (err == nil) != (want == 2) || found != 2*(want-1) {
			t.Errorf("%d: %d tags after %d requests, %v", status, found, n, err)
		}
	}
}

// TestLimitsAreARepositorys verifies that the limits count for a repository, and anew for another one.
func TestLimitsAreARepositorys(t *testing.T) {
	h := oci.NewHostile(t)
	registries := New(Options{PlainHTTP: true, Limits: Limits{Requests: 3, Bytes: 1 << 20}})
	defer registries.Close()
	for range 2 {
		repository := registries.Repository(h.Address + "/app")
		for i := range 5 {
			_, err := repository.Resolve(t.Context(), "tag")
			if want := failure.NotFound; i < 3 && (Kind(err) != want || Exhausted(err)) ||
				i >= 3 && (!Exhausted(err) || !strings.Contains(err.Error(), "it needs more than 3 requests")) {
				t.Errorf("request %d: %v", i, err)
			}
		}
	}
}
