// Package gate decides whether an image may run: only if one of its signatures verifies under Notation's trust policy
// and trust stores.
//
// It uses Notation's libraries and decides as notation verify does with the same configuration. In addition it fetches
// signatures from registries, mirrors and OCI layouts within limits, reports the signer or why each signature was
// refused, writes a log of decisions, and implements containerd's image verifier. Every failure refuses the image.
package gate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/notaryproject/notation-core-go/revocation/purpose"
	"github.com/notaryproject/notation-go"
	"github.com/notaryproject/notation-go/dir"
	"github.com/notaryproject/notation-go/verifier"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/notaryproject/notation-go/verifier/truststore"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/scope"
	"github.com/notation-hsm/notation-hsm/internal/trust"
)

// The timeouts for revocation are those of the notation command. With other ones, the two would not always decide the
// same.
const (
	ocspTimeout   = 2 * time.Second
	crlTimeout    = 5 * time.Second
	maxConcurrent = 10 // images that are verified at the same time
)

// Options say what is trusted and how registries are reached.
type Options struct {
	TrustDir  string // a configuration directory of Notation; "" is the user's
	CacheDir  string // for revocation lists; "" is Notation's
	AuthFile  string // credentials of registries; "" is those of Notation, Podman and Docker
	HostsDir  string // containerd's registry hosts (certs.d), for Node
	PlainHTTP bool   // use plain HTTP for all registries
	TagsDir   string // remembers the tag metadata that were seen, and is no cache; "" is in the user's configuration

	VerificationPlugins []string // names of Notation plugins that signatures may name; no other plugin is run
}

// Gate verifies images under one trust policy. It may be used by several goroutines.
type Gate struct {
	options    Options
	policy     *trustpolicy.Document
	tags       map[string]*trust.Pinned // the repositories whose tags have a root
	demands    *demands                 // of approvals
	deciding   chan struct{}            // has an element while a bundle of approvals is verified
	verifier   notationVerifier
	plugins    plugins
	registries *registry.Registries
}

// notationVerifier has the methods of Notation's verifier.
type notationVerifier interface {
	notation.Verifier
	SkipVerify(context.Context, notation.VerifierVerifyOptions) (bool, *trustpolicy.VerificationLevel, error)
}

// Open reads the trust policy, the roots of tags and the approvals that signatures need, and returns a gate, which has
// to be closed. It fails when they cannot be read or are invalid, and when a listed plugin is not installed. The trust
// and cache directories are set for the whole process, since Notation's library has one variable for each.
func Open(options Options) (*Gate, error) {
	for _, setting := range []struct{ path, folder *string }{{&options.TrustDir, &dir.UserConfigDir},
		{&options.CacheDir, &dir.UserCacheDir}, {&options.TagsDir, new(string)}} {
		if err := makeAbsolute(setting.path); err != nil {
			return nil, err
		}
		if *setting.path != "" {
			*setting.folder = *setting.path
		}
	}
	folder, err := folders.NotationConfig()
	if err != nil {
		return nil, err
	}
	trusted, err := readTrust(folder)
	if err != nil {
		return nil, err
	}
	if err := normalizeScopes(trusted.policy); err != nil {
		return nil, unusablePolicy(folder, err)
	}
	listed, err := checkPlugins(options.VerificationPlugins)
	if err != nil {
		return nil, err
	}
	v, err := newVerifier(trusted.policy, listed)
	if err != nil {
		return nil, unusablePolicy(folder, err)
	}
	registries := registry.New(registry.Options{AuthFile: options.AuthFile, PlainHTTP: options.PlainHTTP})
	return &Gate{options: options, policy: trusted.policy, tags: trusted.tags,
		demands:  &demands{required: trusted.approvals},
		deciding: make(chan struct{}, 1), verifier: v, plugins: listed, registries: registries}, nil
}

func unreadablePolicy(folder string, err error) error {
	kind := failure.Invalid
	if _, err := os.Stat(filepath.Join(folder, dir.PathTrustPolicy)); err != nil {
		kind = failure.FileKind(err)
	}
	return failure.New(kind, "cannot read the trust policy in %s: %w", folder, err).
		WithHint("write the policy with 'notation-hsm trust export', or name its folder with --trust-dir")
}

func unusablePolicy(folder string, err error) error {
	return failure.New(failure.Invalid, "cannot use the trust policy in %s: %w", folder, err).
		WithHint("correct the policy, or the trust manifest that it is exported from")
}

// newVerifier returns Notation's verifier, with limits on what is asked about revocation.
func newVerifier(policy *trustpolicy.Document, listed plugins) (notationVerifier, error) {
	signing, signingErr := newRevocationValidator(purpose.CodeSigning)
	timestamping, timestampingErr := newRevocationValidator(purpose.Timestamping)
	if err := errors.Join(signingErr, timestampingErr); err != nil {
		return nil, err
	}
	v, err := verifier.NewWithOptions(policy, truststore.NewX509TrustStore(dir.ConfigFS()), listed,
		verifier.VerifierOptions{RevocationCodeSigningValidator: trustedOnly{signing},
			RevocationTimestampingValidator: timestamping})
	if err != nil {
		return nil, err
	}
	full, ok := v.(notationVerifier)
	if !ok {
		return nil, errors.New("the library of Notation cannot tell when a policy skips verification")
	}
	return full, nil
}

// makeAbsolute makes a path absolute, except an empty one.
func makeAbsolute(path *string) error {
	if *path == "" {
		return nil
	}
	absolute, err := filepath.Abs(*path)
	if err != nil {
		return failure.New(failure.Invalid, "cannot find the folder of %s: %w", *path, err).
			WithHint("name it by its full path")
	}
	*path = absolute
	return nil
}

// Close closes idle connections.
func (g *Gate) Close() { g.registries.Close() }

// normalizeScopes validates a trust policy and replaces its scopes by their normal forms, in which they are looked up.
// It fails when two scopes are the same repository: which statement counts would be chance.
func normalizeScopes(policy *trustpolicy.Document) error {
	if err := policy.Validate(); err != nil {
		return err
	}
	known := map[string]string{}
	for _, statement := range policy.TrustPolicies {
		for i, given := range statement.RegistryScopes {
			if given == "*" {
				continue
			}
			name, err := scope.Canonical(given)
			if err != nil {
				return fmt.Errorf("the scope %q of the statement %q: %w", given, statement.Name, err)
			}
			if other, ok := known[name]; ok {
				return fmt.Errorf("the scopes %q and %q are one repository", other, given)
			}
			known[name], statement.RegistryScopes[i] = given, name
		}
	}
	return nil
}

// Verify verifies images, up to maxConcurrent at the same time, and returns their decisions in the order of references.
// An image that is not verified within timeout is refused. scope is the repository whose trust policy applies to images
// in OCI layouts, which belong to no repository.
func (g *Gate) Verify(ctx context.Context, references []string, scope string, timeout time.Duration) []Decision {
	decisions := make([]Decision, len(references))
	running := make(chan struct{}, maxConcurrent)
	var layouts sync.Mutex // one layout at a time: an index may take much memory, and there is no network to wait for
	var group sync.WaitGroup
	for i, reference := range references {
		running <- struct{}{}
		group.Go(func() {
			defer func() { <-running }()
			if strings.HasPrefix(reference, layoutPrefix) {
				layouts.Lock()
				defer layouts.Unlock()
			}
			decisions[i] = runWithTimeout(ctx, timeout, reference,
				func(ctx context.Context) Decision { return g.verify(ctx, reference, scope) })
			decisions[i].Reference = sanitize(reference)
		})
	}
	group.Wait()
	return decisions
}

// verify verifies one image.
func (g *Gate) verify(ctx context.Context, reference, scope string) Decision {
	image, err := parseImage(reference, scope)
	if err != nil {
		return newRefusal(reference, err)
	}
	from, err := g.source(image)
	if err != nil {
		return newRefusal(reference, err)
	}
	if image.digest != "" && image.layout == "" {
		from = listAhead(ctx, from, image.digest, g.demands.has(image.scope))
	}
	tag, err := g.tagOf(ctx, image, from)
	if err != nil {
		return newRefusal(reference, err)
	}
	if tag != nil && image.digest == "" {
		image.digest, image.reference = tag.Digest, tag.Digest.String()
		from = listAhead(ctx, from, image.digest, g.demands.has(image.scope))
	}
	// A tag is resolved once. Everything after that is about the digest, whatever the tag becomes.
	descriptor, err := from.repository.Resolve(ctx, image.reference)
	if err != nil {
		return newRefusal(reference, fmt.Errorf("cannot find the image: %w", err))
	}
	if image.digest != "" && image.digest != descriptor.Digest {
		return newRefusal(reference, fmt.Errorf("%s returned %s for it", from.name, descriptor.Digest))
	}
	if err := tag.checkSize(descriptor); err != nil {
		return newRefusal(reference, err)
	}
	decision := g.examine(ctx, image.scope, descriptor, tag, from)
	if image.layout != "" && decision.Passed() { // nobody pulls the image from a registry, which would check its digest
		if err := checkManifest(ctx, descriptor, []source{from}); err != nil {
			return decision.refuse(err.Error())
		}
	}
	return decision
}

// tagOf resolves the tag in an image's name by TUF metadata, if the tags of its repository have a root. It returns nil
// if they have none, and for an image that is named by its digest alone. It fails for a tag in an OCI layout, which has
// no such metadata: whoever wrote the layout could have given any image the tag.
func (g *Gate) tagOf(ctx context.Context, i image, from source) (*resolved, error) {
	pinned := g.tags[i.scope]
	switch {
	case pinned != nil && i.layout != "" && i.digest == "":
		return nil, fmt.Errorf("the tags of %s have a root, and an OCI layout has no tag metadata: name the image by its "+
			"digest, oci:DIR@DIGEST", i.scope)
	case pinned == nil || i.tag == "":
		return nil, nil
	}
	return g.resolveTag(ctx, pinned, i.tag, i.digest, from)
}

// runWithTimeout returns the decision of job, or a refusal when job takes longer than timeout or panics.
func runWithTimeout(ctx context.Context, timeout time.Duration, reference string,
	job func(context.Context) Decision) Decision {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan Decision, 1)
	if ctx.Err() != nil { // job would outlive the call
		return newRefusal(reference, timeoutError(ctx, timeout))
	}
	go func() {
		var decision Decision
		if err := catchPanic(func() { decision = job(ctx) }); err != nil {
			decision = newRefusal(reference, err)
		}
		done <- decision
	}()
	select {
	case decision := <-done:
		if decision.Passed() || ctx.Err() == nil {
			return decision
		}
	case <-ctx.Done():
	}
	return newRefusal(reference, timeoutError(ctx, timeout))
}

func timeoutError(ctx context.Context, timeout time.Duration) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("it could not be verified within %s", timeout)
	}
	return errors.New("interrupted")
}

// catchPanic calls do, and returns a panic of it as an error. In a goroutine of its own a panic would end the program
// without a decision.
func catchPanic(do func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			slog.Error("panic", "what", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error: %v", r)
		}
	}()
	do()
	return nil
}

// newRefusal returns the decision for an image when verification failed before any signature was read.
func newRefusal(reference string, err error) Decision {
	reason := err.Error()
	if strings.Contains(reason, "server gave HTTP response to HTTPS client") {
		reason += " (plain HTTP is not allowed for this registry)"
	}
	return Decision{Reference: reference, Verdict: Refuse, Reason: sanitize(reason)}
}
