// Package audit compares the Notation signatures in a repository with the log of a broker: a signature by a key of the
// broker that is not in its log is an incident.
//
// It reads the repository first, into one record for each signature, and then the log from its beginning. Its
// memory grows with the signatures of the repository and not with the log. Whoever can push to the repository controls
// what is read there: all of it is within limits, and where a limit does not let the audit see everything, it fails.
package audit

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net/http"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/scope"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Limits are those of a registry for the audit of one repository.
var Limits = registry.Limits{Requests: 10_000_000, Bytes: 64 << 30}

// Options say what is audited.
type Options struct {
	Registries *registry.Registries // with Limits
	Repository string               // HOST/PATH
	// Certificates say whose signatures are audited: those with the key of one of them in their chain. None: all.
	Certificates []*x509.Certificate
	// Check checks that an envelope is within limits, before it is parsed.
	Check func(mediaType string, envelope []byte) error
	// Logs verify the logs, and call opts.Each with their entries. The first is the log as it is now; others are copies
	// of it that have entries of an earlier epoch, which the first has lost. A signature has to be in one of them.
	Logs []func(ctx context.Context, opts translog.Options) (*translog.Report, error)
	// Settle is how long the audit waits before it reads the log again for signatures that were not in it: as long as a
	// broker takes to publish what it has signed. 0: it does not read it again.
	Settle time.Duration
}

// Report is the result of an audit.
type Report struct {
	Repository string     `json:"repository"`
	Images     int        `json:"images"`     // manifests whose signatures were listed
	Signatures int        `json:"signatures"` // that were looked up in the log
	Others     int        `json:"others"`     // signatures by other keys
	Invalid    int        `json:"invalid"`    // envelopes whose signature is not valid
	Logs       []Log      `json:"logs"`
	Incidents  []Incident `json:"incidents"` // signatures that are in no log
	// Absent are signatures of the first log for this repository that are not in it, the first maxAbsent of them.
	Absent      []Absent `json:"absent"`
	AbsentCount int      `json:"absentCount"` // all of them
}

// Log is a log that was read.
type Log struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"` // entries
}

// Incident is a signature that is not in the log.
type Incident struct {
	Image     string    `json:"image"` // digest
	Tag       string    `json:"tag,omitempty"`
	Signature string    `json:"signature"` // digest of its manifest
	Subject   string    `json:"subject"`   // of the signing certificate
	Leaf      string    `json:"leaf"`      // sha256:HEX of the signing certificate in DER
	Signed    time.Time `json:"signed"`    // as the signature says
	Reason    string    `json:"reason"`
}

// Absent is a signature that the log has, and the repository has not.
type Absent struct {
	Index int64     `json:"index"` // of the entry
	Time  time.Time `json:"time"`  // of the entry
	Key   string    `json:"key"`
	Image string    `json:"image"` // digest
}

// Run audits a repository. It fails if it could not see all tags, images and signatures, or if the log does not verify.
// Incidents are in the report, and no failure.
func Run(ctx context.Context, o Options) (*Report, error) {
	name, err := scope.Canonical(o.Repository) // as brokers log it
	if err != nil {
		return nil, err
	}
	w := newWalk(o)
	if err := w.run(ctx); err != nil {
		return nil, err
	}
	found := w.sorted()
	report, err := w.compare(ctx, found, name)
	if err != nil || len(report.Incidents) == 0 || o.Settle == 0 {
		return report, err
	}
	// The log may have the newest signatures now.
	select {
	case <-ctx.Done():
		return nil, failure.New(failure.Unavailable, "cannot audit %s: %w", o.Repository, context.Cause(ctx))
	case <-time.After(o.Settle):
	}
	return w.compare(ctx, found, name)
}

// compare compares the signatures with the log, which has the repository under a name.
func (w *walk) compare(ctx context.Context, found []signature, name string) (*Report, error) {
	report := w.report()
	for i, verify := range w.Logs {
		c := &comparison{found: found, repository: name, asked: map[string]bool{}, open: map[string]string{}}
		log, err := verify(ctx, translog.Options{Each: c.each})
		if err != nil {
			return nil, err
		}
		report.Logs = append(report.Logs, Log{log.Origin, log.Size})
		if i == 0 {
			report.Absent, report.AbsentCount = append(report.Absent, c.missing...), c.count
		}
	}
	report.add(found)
	return report, nil
}

// keys are the public keys whose signatures are audited, by the SHA-256 of their encoding.
type keys map[[sha256.Size]byte]bool

func keysOf(certificates []*x509.Certificate) keys {
	k := keys{}
	for _, c := range certificates {
		k[keyOf(c)] = true
	}
	return k
}

// keyOf returns the SHA-256 of the encoding of a certificate's key. It is not that in the certificate, where one key
// can have several.
func keyOf(c *x509.Certificate) [sha256.Size]byte {
	if der, err := x509.MarshalPKIXPublicKey(c.PublicKey); err == nil {
		return sha256.Sum256(der)
	}
	return sha256.Sum256(c.RawSubjectPublicKeyInfo)
}

// have reports whether a chain has one of the keys, or whether there are none. The key counts and not its certificate:
// whoever has the PIN of a key can make another certificate of it.
func (k keys) have(chain []*x509.Certificate) bool {
	for _, c := range chain {
		if k[keyOf(c)] {
			return true
		}
	}
	return len(k) == 0
}

func fail(cause error, format string, args ...any) error {
	kind := registry.Kind(cause)
	err := failure.New(kind, format, args...)
	switch kind {
	case failure.Denied:
		return err.WithHint("use credentials that may read the repository: 'notation login'")
	case failure.NotFound:
		return err.WithHint("check the name of the repository; if a tag was deleted meanwhile, audit again")
	case failure.Unavailable, failure.Timeout, failure.Throttled:
		if errors.Is(cause, http.ErrSchemeMismatch) {
			return err.WithHint("use --plain-http, if you trust the network between this machine and the registry")
		}
		return err.WithHint("check the registry and the network, and try again")
	}
	return err.WithHint("find out who can push to the repository, and delete what is larger than a registry allows")
}
