package telemetry

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Bounds of what waits for a collector. What does not fit is dropped, and counted.
const (
	queueLength = 2048
	maxBatch    = 256
	sendEvery   = time.Second
	sendTimeout = 10 * time.Second
	maxAnswer   = 64 << 10 // bytes
)

// Tracer sends spans to a collector. A nil Tracer records none.
type Tracer struct {
	endpoint string
	resource []attribute
	client   *http.Client
	spans    chan *Span
	dropped  atomic.Int64
}

// New returns a Tracer for the URL of a collector; without a path in it, spans go to /v1/traces there, as OTLP over
// HTTP has it. Run sends them. version is the program's. It fails with Invalid for a URL that is none.
func New(collector, version string) (*Tracer, error) {
	endpoint, err := Endpoint(collector)
	if err != nil {
		return nil, err
	}
	return &Tracer{endpoint: endpoint, spans: make(chan *Span, queueLength),
		resource: []attribute{{"service.name", "hsm-broker"}, {"service.version", version}},
		client: &http.Client{Timeout: sendTimeout,
			Transport:     &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

// Endpoint returns the URL that spans are sent to.
func Endpoint(collector string) (string, error) {
	u, err := url.Parse(collector)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" ||
		u.Fragment != "" {
		return "", failure.New(failure.Invalid, "%.200q is not the URL of a collector", collector).
			WithHint("write it like http://127.0.0.1:4318")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return u.String(), nil
}

// Dropped returns the number of spans that the collector did not get.
func (t *Tracer) Dropped() int64 { return t.dropped.Load() }

// queue has a span sent, unless too many wait. It does not wait.
func (t *Tracer) queue(s *Span) {
	select {
	case t.spans <- s:
	default:
		t.dropped.Add(1)
	}
}

// Run sends spans until ctx ends, and then what is left, once.
func (t *Tracer) Run(ctx context.Context) {
	tick := time.NewTicker(sendEvery)
	defer tick.Stop()
	var batch []*Span
	down := false
	send := func(ctx context.Context) {
		if len(batch) == 0 {
			return
		}
		err := t.send(ctx, batch)
		if err != nil {
			t.dropped.Add(int64(len(batch)))
		}
		if err != nil && !down {
			slog.Warn("cannot send traces, and drops them until the collector answers", "error", err)
		}
		down, batch = err != nil, nil
	}
	for {
		select {
		case s := <-t.spans:
			if batch = append(batch, s); len(batch) == maxBatch {
				send(ctx)
			}
		case <-tick.C:
			send(ctx)
		case <-ctx.Done():
			for more := true; more; {
				select {
				case s := <-t.spans:
					batch = append(batch, s)
				default:
					more = false
				}
			}
			ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSend)
			defer cancel()
			send(ending)
			return
		}
	}
}

// lastSend is how long the end of the program waits for a collector.
const lastSend = 2 * time.Second

// send sends spans in one request.
func (t *Tracer) send(ctx context.Context, spans []*Span) error {
	data, err := json.Marshal(t.encode(spans))
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.endpoint, bytes.NewReader(data))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := t.client.Do(r)
	if err != nil {
		return errors.Unwrap(err) // without the URL
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer)) // so that the connection is used again
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return fmt.Errorf("the collector answered %s", answer.Status)
	}
	return nil
}

// Kinds of spans and codes of statuses, as OTLP numbers them.
const (
	kindInternal = 1
	kindServer   = 2
	statusError  = 2
)

// The messages of OTLP (opentelemetry/proto/trace/v1), in their encoding as JSON.
type (
	export struct {
		ResourceSpans []resourceSpans `json:"resourceSpans"`
	}
	resourceSpans struct {
		Resource   resource     `json:"resource"`
		ScopeSpans []scopeSpans `json:"scopeSpans"`
	}
	resource struct {
		Attributes []keyValue `json:"attributes"`
	}
	scopeSpans struct {
		Scope scope  `json:"scope"`
		Spans []span `json:"spans"`
	}
	scope struct {
		Name string `json:"name"`
	}
	span struct {
		TraceID    string     `json:"traceId"`
		SpanID     string     `json:"spanId"`
		Parent     string     `json:"parentSpanId,omitempty"`
		Name       string     `json:"name"`
		Kind       int        `json:"kind"`
		Start      string     `json:"startTimeUnixNano"`
		End        string     `json:"endTimeUnixNano"`
		Attributes []keyValue `json:"attributes,omitempty"`
		Status     *status    `json:"status,omitempty"`
	}
	status struct {
		Code    int    `json:"code"`
		Message string `json:"message,omitempty"`
	}
	keyValue struct {
		Key   string `json:"key"`
		Value value  `json:"value"`
	}
	value struct {
		String string `json:"stringValue"`
	}
)

// encode returns the message that has spans.
func (t *Tracer) encode(spans []*Span) export {
	all := make([]span, len(spans))
	for i, s := range spans {
		all[i] = span{TraceID: hex.EncodeToString(s.trace[:]), SpanID: hex.EncodeToString(s.id[:]), Name: s.name,
			Kind: kindInternal, Start: strconv.FormatInt(s.began.UnixNano(), 10),
			// The clock may jump meanwhile.
			End:        strconv.FormatInt(s.began.UnixNano()+int64(s.ended.Sub(s.began)), 10),
			Attributes: keyValues(s.attributes)}
		if s.server {
			all[i].Kind = kindServer
		}
		if s.parent != (spanID{}) {
			all[i].Parent = hex.EncodeToString(s.parent[:])
		}
		if s.failed != "" {
			all[i].Status = &status{Code: statusError, Message: s.failed}
		}
	}
	return export{[]resourceSpans{{Resource: resource{keyValues(t.resource)},
		ScopeSpans: []scopeSpans{{Scope: scope{"hsm-broker"}, Spans: all}}}}}
}

func keyValues(attributes []attribute) (all []keyValue) {
	for _, a := range attributes {
		all = append(all, keyValue{a.name, value{a.value}})
	}
	return all
}
