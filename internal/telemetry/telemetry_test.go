package telemetry

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// collect starts a collector, and returns its URL and what it got.
func collect(t *testing.T) (string, <-chan export) {
	t.Helper()
	got := make(chan export, 64)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var e export
		data, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(data, &e)
		}
		if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("the collector got %s %s: %v", r.URL, data, err)
		}
		got <- e
	}))
	t.Cleanup(server.Close)
	return server.URL, got
}

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// TestSpans sends a span of a request and one within it.
func TestSpans(t *testing.T) {
	t.Parallel()
	url, got := collect(t)
	tracer, err := New(url, "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	ctx, request := tracer.Request(t.Context(), traceparent, "POST /v1/x")
	_, within := Start(ctx, "module")
	within.Set("key", "release")
	within.End("timeout")
	request.End("")
	if Trace(ctx) != traceparent[3:35] {
		t.Errorf("the trace is %s", Trace(ctx))
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	tracer.Run(ended)
	spans := (<-got).ResourceSpans[0].ScopeSpans[0].Spans
	if len(spans) != 2 {
		t.Fatalf("the collector got %+v", spans)
	}
	module, root := spans[0], spans[1]
	if root.TraceID != traceparent[3:35] || root.Parent != traceparent[36:52] || root.Kind != kindServer ||
		root.Status != nil || root.Name != "POST /v1/x" {
		t.Errorf("the span of the request is %+v", root)
	}
	if module.TraceID != root.TraceID || module.Parent != root.SpanID || module.Kind != kindInternal ||
		module.Status == nil || *module.Status != (status{statusError, "timeout"}) ||
		len(module.Attributes) != 1 || module.Attributes[0] != (keyValue{"key", value{"release"}}) {
		t.Errorf("the span of the module is %+v", module)
	}
}

// TestNoTracer records nothing without a tracer, and for callers that ask for no record.
func TestNoTracer(t *testing.T) {
	t.Parallel()
	var none *Tracer
	ctx, span := none.Request(t.Context(), "", "x")
	if _, within := Start(ctx, "y"); span != nil || within != nil || len(Trace(ctx)) != 32 {
		t.Error("a span is recorded, or the request has no trace")
	}
	span.Set("a", "b")
	span.End("")
	tracer, err := New("http://127.0.0.1:1", "")
	if err != nil {
		t.Fatal(err)
	}
	unsampled := traceparent[:len(traceparent)-1] + "0"
	if ctx, span := tracer.Request(t.Context(), unsampled, "x"); span != nil || Trace(ctx) != traceparent[3:35] {
		t.Error("a trace is recorded against the wish of the caller")
	}
}

// TestTraceparents takes headers that can be read, and begins a trace for others.
func TestTraceparents(t *testing.T) {
	t.Parallel()
	for _, wrong := range []string{"", "x", traceparent + "0", "01" + traceparent[2:],
		"00-00000000000000000000000000000000-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
		"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-101", "00-0af7651916cd43dd8448eb211c8031 c-b7ad6b7169203331-01"} {
		if trace, _, sampled := parse(wrong); trace != (traceID{}) || !sampled {
			t.Errorf("%q is taken", wrong)
		}
	}
	if trace, parent, sampled := parse(traceparent); trace[0] != 0x0a || parent[0] != 0xb7 || !sampled {
		t.Error("a header is not read")
	}
}

// TestCollectorAway drops spans, and waits for nobody.
func TestCollectorAway(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	asked := make(chan struct{}, 64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-release
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer server.Close()
	defer close(release)
	tracer, err := New(server.URL, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); tracer.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	one := func() {
		_, span := tracer.Request(t.Context(), "", "x")
		span.End("") // never blocks
	}
	one()
	<-asked // and Run waits for the answer
	for range queueLength + 10 {
		one()
	}
	if n := tracer.Dropped(); n < 10 {
		t.Errorf("%d spans were dropped", n)
	}
}

// TestEndpoints refuses what is no URL of a collector.
func TestEndpoints(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{"http://127.0.0.1:4318": "http://127.0.0.1:4318/v1/traces",
		"https://c.example.com/": "https://c.example.com/v1/traces", "https://c.example.com/x": "https://c.example.com/x"} {
		if got, err := Endpoint(given); err != nil || got != want {
			t.Errorf("%s is %s, %v", given, got, err)
		}
	}
	for _, wrong := range []string{"", "127.0.0.1:4318", "grpc://c.example.com", "https://", "https://u:p@c.example.com",
		"https://c.example.com/?x=y", "https://c.example.com/#x"} {
		if got, err := Endpoint(wrong); err == nil {
			t.Errorf("%s is taken as %s", wrong, got)
		}
	}
}
