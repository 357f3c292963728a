package gate

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/notaryproject/notation-core-go/signature"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/trust/demand"
)

// Where the trust directory demands approvals, a valid signature counts only with a bundle that shows that people
// agreed to this very signature. The bundle is in the source of the signature.

// Approvals says who agreed to the signature of an image, and where the log has it.
type Approvals struct {
	Bundle     string     `json:"bundle"`               // digest of the bundle's manifest
	Request    string     `json:"request"`              // ID
	Key        string     `json:"key"`                  // name in the broker's policy
	Log        string     `json:"log"`                  // origin
	Index      int64      `json:"index"`                // of the entry of the signature
	Signed     time.Time  `json:"signed"`               // when the log has it
	Repository string     `json:"repository,omitempty"` // in which the broker found the image
	Rule       string     `json:"rule,omitempty"`       // that the broker applied
	BreakGlass bool       `json:"breakGlass,omitempty"` // the rule is for emergencies
	Reason     string     `json:"reason,omitempty"`     // the requester's
	Approvers  []Approver `json:"approvers"`
	Witnesses  []string   `json:"witnesses,omitempty"` // that cosigned the log's checkpoint
}

// Approver is a person who agreed.
type Approver struct {
	Name   string    `json:"name,omitempty"` // as the trust manifest has it
	ID     string    `json:"id"`             // pseudonym in the log
	Kind   string    `json:"kind,omitempty"` // how they signed; "" if the trust manifest does not know the credential
	Time   time.Time `json:"time"`           // of the approver's clock
	Reason string    `json:"reason,omitempty"`
	Counts bool      `json:"counts"` // for a group that the trust manifest demands
}

// String returns the name of a person or, without one, the id.
func (a Approver) String() string {
	if a.Name == "" {
		return a.ID
	}
	return a.Name
}

// Names returns the names, or else the ids, of the people whose approvals count.
func (a *Approvals) Names() (names []string) {
	for _, p := range a.Approvers {
		if p.Counts {
			names = append(names, p.String())
		}
	}
	return names
}

// demands says who must have agreed to signatures. It may be used by several goroutines.
type demands struct {
	required trust.Required
	mutex    sync.Mutex
	known    map[string][]*proof.Demand // by repository
}

// has reports whether signatures in a repository need approvals, or whether that is unknown.
func (d *demands) has(repository string) bool {
	list, err := d.of(repository)
	return err != nil || len(list) > 0
}

// of returns the demands that a signature in a repository has to meet, with one bundle. There is usually one, and more
// while an export is under way.
func (d *demands) of(repository string) ([]*proof.Demand, error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if list, ok := d.known[repository]; ok {
		return list, nil
	}
	list, err := demand.Of(d.required, repository)
	if err != nil {
		return nil, err
	}
	if d.known == nil {
		d.known = map[string][]*proof.Demand{}
	}
	d.known[repository] = list
	return list, nil
}

// demandsApprovals begins the reasons why an image is refused for want of approvals.
func demandsApprovals(repository string) string {
	return "the trust manifest demands approvals for " + repository
}

// authentic reports whether a statement of the trust policy enforces that a trusted signer has signed.
func authentic(statement *trustpolicy.TrustPolicy) bool {
	level, err := statement.SignatureVerification.GetVerificationLevel()
	return err == nil && level.Enforcement[trustpolicy.TypeAuthenticity] == trustpolicy.ActionEnforce &&
		level.Enforcement[trustpolicy.TypeIntegrity] == trustpolicy.ActionEnforce
}

// unapproved is why a valid signature does not count.
type unapproved struct {
	repository string
	reason     string
}

func (u *unapproved) Error() string {
	if u.reason == "" {
		return demandsApprovals(u.repository) + ", and the image has no bundle of approvals"
	}
	return demandsApprovals(u.repository) + ": " + u.reason
}

// checkApprovals fails unless the source has a bundle of approvals that verifies for the signature in an envelope.
func (e *examination) checkApprovals(ctx context.Context, mediaType string, envelope []byte,
	valid *signature.EnvelopeContent) error {
	wanted, err := provable(mediaType, envelope, valid)
	if err != nil {
		return &unapproved{e.repository, err.Error()}
	}
	var reasons []string
	for _, b := range sortBundles(e.bundles, wanted.Payload) {
		if e.ahead.manifest != b.Digest && !e.fetched.count(b.payload == wanted.Payload) {
			reasons = append(reasons, fmt.Sprintf("the image has %d bundles of approvals, and only %d are read",
				len(e.bundles), e.fetched.all))
			break
		}
		shown, err := e.verifyBundle(ctx, b, wanted)
		if err == nil {
			e.approvals = describeApprovals(b, shown)
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		if reason := err.Error(); !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	return &unapproved{e.repository, strings.Join(reasons, "; ")}
}

// provable returns what people must have agreed to, of a valid signature.
func provable(mediaType string, envelope []byte, valid *signature.EnvelopeContent) (s proof.Signature, err error) {
	if s.Payload, s.Signature, err = proof.OfEnvelope(mediaType, envelope); err != nil {
		return s, err
	}
	var payload struct {
		TargetArtifact ocispec.Descriptor `json:"targetArtifact"`
	}
	if err := json.Unmarshal(valid.Payload.Content, &payload); err != nil {
		return s, fmt.Errorf("cannot read the signature's payload: %w", err)
	}
	target, times := payload.TargetArtifact, valid.SignerInfo.SignedAttributes
	s.Digest, s.MediaType, s.Size, s.Annotations = target.Digest.String(), target.MediaType, target.Size,
		target.Annotations
	s.Leaf = fmt.Sprintf("sha256:%x", sha256.Sum256(valid.SignerInfo.CertificateChain[0].Raw))
	if !times.Expiry.IsZero() {
		s.Expiry = int64(times.Expiry.Sub(times.SigningTime) / time.Second)
	}
	return s, nil
}

// verifyBundle fetches a bundle and verifies it. One is verified at a time: it takes much more memory than a signature,
// and there is no network to wait for.
func (e *examination) verifyBundle(ctx context.Context, b bundleManifest, s proof.Signature) (*proof.Shown, error) {
	bundle, err := e.fetchBundle(ctx, b.Descriptor)
	if err != nil {
		return nil, err
	}
	select {
	case e.gate.deciding <- struct{}{}:
		defer func() { <-e.gate.deciding }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var shown *proof.Shown
	for _, demand := range e.demands {
		if shown, err = proof.Verify(bundle, s, demand, time.Now()); err != nil {
			return nil, err
		}
	}
	return shown, nil
}

// describeApprovals returns what a bundle shows. Its texts are from outside.
func describeApprovals(b bundleManifest, shown *proof.Shown) *Approvals {
	a := &Approvals{Bundle: b.Digest.String(), Request: sanitize(shown.Request), Key: sanitize(shown.Key),
		Log: sanitize(shown.Log), Index: shown.Index, Signed: shown.Signed.UTC(), Repository: sanitize(shown.Repository),
		Rule: sanitize(shown.Rule), BreakGlass: shown.BreakGlass, Reason: sanitize(shown.Reason), Approvers: []Approver{}}
	for _, p := range shown.Approvers {
		a.Approvers = append(a.Approvers, Approver{Name: sanitize(p.Name), ID: sanitize(p.ID),
			Kind: sanitize(string(p.Kind)), Time: p.Time.UTC(), Reason: sanitize(p.Reason), Counts: p.Counts})
	}
	for _, w := range shown.Witnesses {
		a.Witnesses = append(a.Witnesses, sanitize(w))
	}
	return a
}
