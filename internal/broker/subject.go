package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/telemetry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// subject is what a signature is for: all that a payload says but its signing time and encoding. Two payloads with the
// same subject are the same wish.
type subject struct {
	Key        string
	Leaf       string // sha256:HEX of the key's certificate in DER; "" if it has none
	Target     brokerapi.Target
	Name       string // as the signer claims it
	Expiry     int64  // seconds
	Repository string // that was checked

	uris   []string // of the key whose leaf it has
	digest string   // sha256:HEX of its canonical JSON
}

// complete checks the repository of a subject, and fills in what the registry and the key say.
func (b *Broker) complete(ctx context.Context, s *subject, claims **brokerapi.Claims) error {
	if s.Repository != "" {
		name, err := repository.Name(s.Repository)
		if err != nil {
			return err
		}
		s.Repository = name
		checking, span := telemetry.Start(ctx, "repository")
		found, err := b.options.Check(checking, name, s.Target.Digest, s.Target.MediaType, s.Target.Size)
		span.End(kindOf(err))
		if err != nil {
			return err
		}
		s.Target.MediaType, s.Target.Size = found.MediaType, found.ManifestSize
		*claims = &brokerapi.Claims{Created: found.Created, Source: found.Source, Revision: found.Revision,
			Version: found.Version, Platforms: found.Platforms, Size: found.Size}
	}
	if s.Target.Format == payload.Notation && (s.Target.MediaType == "" || s.Target.Size <= 0) {
		return failure.New(failure.Invalid, "the artifact has no media type or no size").
			WithHint("name its repository, and the broker looks there; or give both")
	}
	key := b.Key(s.Key)
	if key == nil {
		return noKey(s.Key)
	}
	s.uris = key.URIs
	_, chain, err := b.options.Keys.Describe(ctx, s.Key)
	if err != nil {
		return err
	}
	if len(chain) > 0 {
		s.Leaf = hashOf(chain[0].Raw)
	}
	return s.seal()
}

// seal computes the digest of a subject.
func (s *subject) seal() error {
	data, err := translog.Canonical(map[string]any{
		"key": s.Key, "leaf": s.Leaf, "format": s.Target.Format, "media_type": s.Target.MediaType,
		"digest": s.Target.Digest, "size": s.Target.Size, "annotations": s.Target.Annotations, "name": s.Name,
		"expiry": s.Expiry, "repository": s.Repository,
	})
	if err != nil {
		return err
	}
	hash := sha256.Sum256(data)
	s.digest = hashPrefix + hex.EncodeToString(hash[:])
	return nil
}

// noKey returns the failure of a key that the policy does not have.
func noKey(key string) error {
	return failure.New(failure.NotFound, "the broker has no key %q", key).
		WithHint("name a key of the policy: GET /v1/keys lists them")
}

// input returns what rules of use see.
func (w *wish) input(now time.Time) policy.Input {
	return policy.Input{
		Caller: policy.Caller{Issuer: w.caller.Issuer, Subject: w.caller.Subject, Claims: w.caller.Claims},
		Key:    w.Key, Time: now, BreakGlass: w.breakGlass,
		Artifact: policy.Artifact{Format: w.Target.Format, MediaType: w.Target.MediaType, Digest: w.Target.Digest,
			Size: w.Target.Size, Annotations: w.Target.Annotations, Repository: w.Repository, Name: w.Name, Expiry: w.Expiry},
	}
}

// body returns a new request of a wish.
func (w *wish) body(id string, now time.Time) *brokerapi.Request {
	target := w.Target
	return &brokerapi.Request{
		ID: id, Key: w.Key, Artifact: &target, Expiry: w.Expiry, Repository: w.Repository, Claims: w.claims,
		Requester: shownRequester(w.caller), Created: now, Changed: now,
	}
}

// runClaims are the claims of CI systems that tell people from which workflow run or job a request comes.
var runClaims = []string{"actor", "event_name", "job_id", "pipeline_id", "project_path", "ref", "repository",
	"run_attempt", "run_id", "sha", "user_login", "workflow"}

// maxRunClaim is the length of the longest of these claims that is kept, in bytes.
const maxRunClaim = 300

// shownRequester returns who makes a request, as people are told.
func shownRequester(c identity.Caller) brokerapi.Requester {
	r := brokerapi.Requester{Issuer: c.Issuer, Subject: c.Subject}
	for _, name := range runClaims {
		text, _ := c.Claims[name].(string)
		if text == "" || len(text) > maxRunClaim || strings.ContainsAny(text, "\u2028\u2029\ufffd") { // no document has these
			continue
		}
		if r.Claims == nil {
			r.Claims = map[string]string{}
		}
		r.Claims[name] = text
	}
	return r
}

// ruleDigest returns what the log has of a rule as sha256:HEX: approval.Commitment. It is the same for rules that
// demand the same, and tells nothing of the people without the secret of the store.
func (b *Broker) ruleDigest(r *policy.Rule) string {
	digest := r.Digest()
	return approval.Commitment(b.ruleSalt(r), fmt.Sprintf("%s%x", hashPrefix, digest[:]))
}
