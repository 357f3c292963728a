package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
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
