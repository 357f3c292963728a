// Package gate decides whether an image may run: it does if a signature on it verifies under Notation's trust policy
// and trust stores.
//
// It answers as notation verify does for the same configuration, with the same libraries. Around that it finds the
// signatures where the image comes from, tells who signed and why a signature does not count, keeps a log of what it
// decided, and is what containerd asks before it pulls. Whatever goes wrong, the answer is no.
package gate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
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
	"github.com/notation-hsm/notation-hsm/internal/scope"
)

// Waits of one decision. Those for revocation are the notation command's: with others the two would not always answer
// the same.
const (
	ocspTimeout = 2 * time.Second
	crlTimeout  = 5 * time.Second
	atOnce      = 10 // images that are verified at the same time
)

// Options say what is trusted and how registries are reached.
type Options struct {
	TrustDir  string // a configuration directory of Notation's; "" is this user's
	CacheDir  string // where revocation lists are kept; "" is Notation's place for them
	AuthFile  string // registry credentials; "" is where Docker, Podman and Notation keep them
	HostsDir  string // containerd's registry hosts (certs.d); for what containerd asks
	PlainHTTP bool   // speak plain HTTP to the registries that are named

	VerificationPlugins []string // Notation's plugins that signatures may name for their verification; no other is run
}

// Gate holds the trust policy, for any number of images at the same time.
type Gate struct {
	options   Options
	policy    *trustpolicy.Document
	verifier  notationVerifier
	plugins   plugins
	insecure  []string // registries that Notation's config.json says to speak plain HTTP to
	transport *http.Transport
}

// notationVerifier is what Notation's verifier offers.
type notationVerifier interface {
	notation.Verifier
	SkipVerify(context.Context, notation.VerifierVerifyOptions) (bool, *trustpolicy.VerificationLevel, error)
}

// Open reads the trust policy. The trust and cache directories hold for the whole process from then on, as Notation's
// library has one place for each.
func Open(options Options) (*Gate, error) {
	for _, given := range []struct{ path, folder *string }{{&options.TrustDir, &dir.UserConfigDir},
		{&options.CacheDir, &dir.UserCacheDir}} {
		if *given.path == "" {
			continue
		}
		path, err := filepath.Abs(*given.path)
		if err != nil {
			return nil, failure.New(failure.Internal, "cannot tell where %s is: %w", *given.path,
				err).
				WithHint("name it by its whole path")
		}
		*given.folder = path
	}
	place, err := folders.NotationConfig()
	if err != nil {
		return nil, err
	}
	const hint = "write the policy with 'notation-hsm trust export', or name its folder with --trust-dir"
	policy, err := trustpolicy.LoadDocument()
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the trust policy in %s: %w", place, err).WithHint(hint)
	}
	if err := normalise(policy); err != nil {
		return nil, failure.New(failure.Invalid, "can't use the trust policy in %s: %w", place, err).
			WithHint("correct it in the file, or in the trust manifest")
	}
	listed, err := checkPlugins(options.VerificationPlugins)
	if err != nil {
		return nil, err
	}
	signing, signingErr := revocationOf(purpose.CodeSigning)
	timestamping, timestampingErr := revocationOf(purpose.Timestamping)
	if err := errors.Join(signingErr, timestampingErr); err != nil {
		return nil, err
	}
	v, err := verifier.NewWithOptions(policy, truststore.NewX509TrustStore(dir.ConfigFS()), listed,
		verifier.VerifierOptions{RevocationCodeSigningValidator: trusted{signing},
			RevocationTimestampingValidator: timestamping})
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't use the trust policy in %s: %w", place, err).WithHint(hint)
	}
	full, ok := v.(notationVerifier)
	if !ok {
		return nil, errors.New("the Notation library's verifier can't tell when a policy skips verification")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() // with proxies from the environment
	transport.MaxIdleConnsPerHost, transport.MaxResponseHeaderBytes = atOnce, maxHeader
	return &Gate{options: options, policy: policy, verifier: full, plugins: listed, insecure: insecureRegistries(),
		transport: transport}, nil
}

// Close gives up the connections that are still open.
func (g *Gate) Close() { g.transport.CloseIdleConnections() }

// normalise gives each repository in a trust policy its one name. The policy is asked by that.
func normalise(policy *trustpolicy.Document) error {
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

// Verify judges images, several at the same time, and returns a result for each in the order they are named. Each takes
// timeout at most. scope is the repository whose policy judges an image in an OCI layout, which has none of its own.
func (g *Gate) Verify(ctx context.Context, references []string, scope string, timeout time.Duration) []Result {
	results := make([]Result, len(references))
	turns := make(chan struct{}, atOnce)
	var layouts sync.Mutex // one at a time: an index may take a lot of memory, and nobody waits for the network
	var group sync.WaitGroup
	for i, reference := range references {
		turns <- struct{}{}
		group.Go(func() {
			defer func() { <-turns }()
			if strings.HasPrefix(reference, layoutPrefix) {
				layouts.Lock()
				defer layouts.Unlock()
			}
			results[i] = within(ctx, timeout, reference,
				func(ctx context.Context) Result { return g.verify(ctx, reference, scope) })
			results[i].Reference = oneLine(reference)
		})
	}
	group.Wait()
	return results
}

func (g *Gate) verify(ctx context.Context, reference, scope string) Result {
	image, err := parseImage(reference, scope)
	if err != nil {
		return refused(reference, err)
	}
	from, err := g.source(image)
	if err != nil {
		return refused(reference, err)
	}
	if image.digest != "" && image.layout == "" {
		from = listAhead(ctx, from, image.digest)
	}
	// A tag is looked up once. From here on, all is about the digest it has now.
	descriptor, err := from.repository.Resolve(ctx, image.reference)
	if err != nil {
		return refused(reference, fmt.Errorf("can't find the image: %w", err))
	}
	if image.digest != "" && image.digest != descriptor.Digest {
		return refused(reference, fmt.Errorf("%s answers with %s instead", from.name, descriptor.Digest))
	}
	result := g.examine(ctx, image.name, descriptor, from)
	if image.layout != "" && result.Passed() { // what is there is all there is to pull
		if err := intact(ctx, descriptor, []source{from}); err != nil {
			return result.refuse(err.Error())
		}
	}
	return result
}

// within does a job that has to end: by its own, or with no for an answer. A panic is no as well.
func within(ctx context.Context, timeout time.Duration, reference string, job func(context.Context) Result) Result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan Result, 1)
	if ctx.Err() != nil { // nothing is begun that nobody waits for
		return refused(reference, late(ctx, timeout))
	}
	go func() {
		var result Result
		if err := caught(func() { result = job(ctx) }); err != nil {
			result = refused(reference, err)
		}
		done <- result
	}()
	select {
	case result := <-done:
		if result.Passed() || ctx.Err() == nil {
			return result
		}
	case <-ctx.Done():
	}
	return refused(reference, late(ctx, timeout))
}

func late(ctx context.Context, timeout time.Duration) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("it could not be verified within %s", timeout)
	}
	return errors.New("interrupted")
}

// caught makes an error of a panic, which on a goroutine of its own would end the program without an answer.
func caught(do func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			slog.Error("panic", "what", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error: %v", r)
		}
	}()
	do()
	return nil
}

// refused is the answer when it did not come to looking at signatures.
func refused(reference string, err error) Result {
	reason := err.Error()
	if strings.Contains(reason, "server gave HTTP response to HTTPS client") {
		reason += " (plain HTTP has to be asked for)"
	}
	return Result{Reference: reference, Verdict: Refuse, Reason: oneLine(reason)}
}
