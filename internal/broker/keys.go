package broker

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// HeldKeys are Keys that stay open, each in one or several modules.
type HeldKeys struct {
	Held *held.Keys
	// References returns where a key of the policy is: the same references as long as these do not change.
	References func(key string) ([]*keystore.Reference, error)
	// Log is the log's key, whose modules are shown beside those of the policy's keys; nil for none.
	Log *held.Copies

	mu     sync.Mutex
	copies map[string]*held.Copies // by name in the policy
}

// find returns a key of the policy.
func (k *HeldKeys) find(key string) (*held.Copies, error) {
	references, err := k.References(key)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	found := k.copies[key]
	if found != nil && found.Are(references) {
		return found, nil
	}
	if found != nil {
		found.Stop()
	}
	if k.copies == nil {
		k.copies = map[string]*held.Copies{}
	}
	k.copies[key] = held.NewCopies(k.Held, key, references, held.RightByChain(references[0].CertificateChain))
	return k.copies[key], nil
}

// LogKeyName is what the log's key is called among those of the policy, which cannot have this name.
const LogKeyName = "(log)"

// Module is the state of a module that has a key.
type Module struct {
	Key string // name in the policy, or LogKeyName
	held.Copy
	Number int // of the URI among those of the key, from 1
	Alone  bool
	Detail string // why it is not used, as callers are told; "" if it is
}

// Modules returns the state of all modules whose keys were used.
func (k *HeldKeys) Modules() (all []Module) {
	add := func(name string, copies *held.Copies) {
		states := copies.State()
		for i, one := range states {
			m := Module{Key: name, Copy: one, Number: i + 1, Alone: len(states) == 1}
			switch {
			case one.Other:
				m.Detail = "the module has another key in its place, which is never used"
			case one.Err != nil:
				m.Detail = reasons[failure.From(one.Err).Kind]
			}
			all = append(all, m)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(k.copies)) {
		add(name, k.copies[name])
	}
	if k.Log != nil {
		add(LogKeyName, k.Log)
	}
	return all
}

var (
	moduleUpMetric = prometheus.NewDesc("hsm_broker_module_up",
		"1 if a module is used for a key, 0 if it is left out since it failed.", []string{"key", "module"}, nil)
	otherKeyMetric = prometheus.NewDesc("hsm_broker_module_other_key",
		"1 if a module has another key under the URI of a key, and is never used for it.", []string{"key", "module"}, nil)
)

// moduleCollector tells Prometheus the state of modules.
type moduleCollector struct{ keys *HeldKeys }

// Collector returns the metrics of the modules.
func (k *HeldKeys) Collector() prometheus.Collector { return moduleCollector{k} }

// Describe sends the descriptions of the metrics.
func (moduleCollector) Describe(to chan<- *prometheus.Desc) {
	to <- moduleUpMetric
	to <- otherKeyMetric
}

// Collect sends the metrics of each module.
func (c moduleCollector) Collect(to chan<- prometheus.Metric) {
	value := map[bool]float64{true: 1}
	for _, m := range c.keys.Modules() {
		to <- prometheus.MustNewConstMetric(moduleUpMetric, prometheus.GaugeValue, value[m.Err == nil], m.Key, m.URI)
		to <- prometheus.MustNewConstMetric(otherKeyMetric, prometheus.GaugeValue, value[m.Other], m.Key, m.URI)
	}
}

// Describe returns the public half of a key and its chain.
func (k *HeldKeys) Describe(ctx context.Context, key string) (crypto.PublicKey, []*x509.Certificate, error) {
	found, err := k.find(key)
	if err != nil {
		return nil, nil, err
	}
	public, chain, err := found.Describe(ctx)
	return public, chain, hide(key, err)
}

// Sign signs bytes and verifies the signature.
func (k *HeldKeys) Sign(ctx context.Context, key string, data []byte, algorithm string) ([]byte, error) {
	found, err := k.find(key)
	if err != nil {
		return nil, err
	}
	signature, err := found.Sign(ctx, data, algorithm)
	return signature, hide(key, err)
}

// hide returns a failure of a module as callers see it: without the module, the token and the key's URI there. It logs
// the cause.
func hide(key string, err error) error {
	if err == nil {
		return nil
	}
	f := failure.From(err)
	slog.Error("cannot use a key", "key", key, "error", err)
	shown := failure.New(f.Kind, "cannot use key %q: %s", key, reasons[f.Kind]).
		WithHint("try again later; the operator of the broker finds the cause in its log")
	shown.CKR = f.CKR
	if f.Kind == failure.Unavailable {
		shown.RetryAfter = soon
	}
	return shown
}

// reasons are what callers are told of a module's failures, by kind.
var reasons = map[failure.Kind]string{
	failure.Internal:    "the module misbehaved",
	failure.Invalid:     "the module refused the operation",
	failure.NotFound:    "the module does not have it",
	failure.Denied:      "the module refused the login or the operation",
	failure.Conflict:    "the module has another key in its place",
	failure.Unavailable: "the module is not available",
	failure.Throttled:   "the module has no free session",
	failure.Timeout:     "the module did not answer in time",
	failure.Unsupported: "the module does not support the operation",
}
