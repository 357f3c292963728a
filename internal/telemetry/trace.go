// Package telemetry records traces of requests, and sends them to a collector of OpenTelemetry: as JSON of OTLP over
// HTTP. It is that small part of OpenTelemetry alone, so that a process with PINs links neither gRPC nor an SDK that
// takes settings from the environment.
//
// A span has names of keys, rules, operations and kinds of failures; never a payload, a token, a caller, or the text of
// a failure.
package telemetry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"
)

// traceID and spanID are those of W3C Trace Context.
type (
	traceID [16]byte
	spanID  [8]byte
)

// Span is an operation that takes time. A nil Span records nothing.
type Span struct {
	tracer     *Tracer
	trace      traceID
	id, parent spanID
	name       string
	server     bool // it answers a request
	began      time.Time
	ended      time.Time
	attributes []attribute
	failed     string // kind of the failure; "" for none
}

type attribute struct{ name, value string }

type spanKey struct{}

type traceKey struct{}

// Request returns a context for a request with a traceparent header, which may be empty or wrong: then the request
// begins a trace. The span is nil for a nil Tracer, and for a caller that wants no trace recorded.
func (t *Tracer) Request(ctx context.Context, traceparent, name string) (context.Context, *Span) {
	trace, parent, sampled := parse(traceparent)
	if trace == (traceID{}) {
		_, _ = rand.Read(trace[:])
	}
	ctx = context.WithValue(ctx, traceKey{}, hex.EncodeToString(trace[:]))
	if t == nil || !sampled {
		return ctx, nil
	}
	s := &Span{tracer: t, trace: trace, parent: parent, name: name, server: true}
	s.begin()
	return context.WithValue(ctx, spanKey{}, s), s
}

// Trace returns the ID of the trace that a context belongs to, in hexadecimal; "" if it belongs to none.
func Trace(ctx context.Context) string {
	id, _ := ctx.Value(traceKey{}).(string)
	return id
}

// Start begins a span within the span of a context, and returns a context for what happens in it. The span is nil if
// the context has none.
func Start(ctx context.Context, name string) (context.Context, *Span) {
	parent, _ := ctx.Value(spanKey{}).(*Span)
	if parent == nil {
		return ctx, nil
	}
	s := &Span{tracer: parent.tracer, trace: parent.trace, parent: parent.id, name: name}
	s.begin()
	return context.WithValue(ctx, spanKey{}, s), s
}

func (s *Span) begin() {
	_, _ = rand.Read(s.id[:])
	s.began = time.Now()
}

// Set gives a span an attribute.
func (s *Span) Set(name, value string) {
	if s != nil && len(s.attributes) < maxAttributes {
		s.attributes = append(s.attributes, attribute{name, value[:min(len(value), maxValue)]})
	}
}

const (
	maxAttributes = 16
	maxValue      = 256 // bytes
)

// End ends a span. kind is that of the failure of what happened in it, or "".
func (s *Span) End(kind string) {
	if s == nil {
		return
	}
	s.ended, s.failed = time.Now(), kind
	s.tracer.queue(s)
}

// parse reads a traceparent header (W3C Trace Context, version 00). sampled is true for one that cannot be read.
func parse(header string) (trace traceID, parent spanID, sampled bool) {
	parts := strings.Split(header, "-")
	if len(header) != 55 || len(parts) != 4 || parts[0] != "00" || strings.ToLower(header) != header {
		return traceID{}, spanID{}, true
	}
	var flags [1]byte
	for i, to := range [][]byte{trace[:], parent[:], flags[:]} {
		if n, err := hex.Decode(to, []byte(parts[i+1][:min(len(parts[i+1]), 2*len(to))])); err != nil || n != len(to) {
			return traceID{}, spanID{}, true
		}
	}
	if trace == (traceID{}) || parent == (spanID{}) {
		return traceID{}, spanID{}, true
	}
	return trace, parent, flags[0]&1 == 1
}
