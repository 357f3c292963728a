package gate

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/scope"
)

// Node is the gate of a machine that runs images. containerd asks it before each pull, as an image verifier
// (docs/image-verification.md of containerd): it starts a program with the image's name and digest as arguments and the
// descriptor on standard input, and pulls only if that ends with 0. What it prints is the reason.
type Node struct {
	Options
	StateDir  string        // holds the decision log and the revocation lists
	Timeout   time.Duration // for one image; containerd's own has to be longer
	User      string        // whom the verifier runs as; "" is whoever starts it
	AllowSkip bool          // let images pass unverified where the trust policy says so
}

// DefaultTimeout leaves the rest of containerd's ten seconds to starting and to writing the log.
const DefaultTimeout = 8 * time.Second

// nowhere is a folder that nobody can make. noAuthFile has no credentials looked up in the places of users and other
// tools, which nobody named and others may write to.
const (
	nowhere    = "/proc/none"
	noAuthFile = nowhere + "/auth.json"
)

const (
	logTimeout    = time.Second // for a turn with the decision log, after the timeout
	maxDescriptor = 1 << 20     // bytes
)

// LogFile is where a node's decisions are.
func (n Node) LogFile() string { return filepath.Join(n.StateDir, "decisions.jsonl") }

// Judge answers containerd. The answer is in the log before it is given: what can't be written down may not run.
func (n Node) Judge(ctx context.Context, args []string, stdin io.Reader) Result {
	return n.decide(ctx, args, func(ctx context.Context) Result { return n.judge(ctx, args, stdin) })
}

// Refuse refuses an image without a look at it, for a reason that holds for all, and writes that down as Judge does.
func (n Node) Refuse(ctx context.Context, args []string, reason error) Result {
	return n.decide(ctx, args, func(context.Context) Result { return refused(nameIn(args), reason) })
}

// decide has an image judged and writes the answer into the log.
func (n Node) decide(ctx context.Context, args []string, judge func(context.Context) Result) Result {
	_, sum, _, _ := parseArguments(args)
	if digest.Digest(sum).Validate() != nil {
		sum = ""
	}
	result := within(ctx, n.Timeout, nameIn(args), judge)
	result.Digest = sum // also of what was not looked at
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), logTimeout)
	defer cancel()
	if err := NewLog(n.LogFile()).Append(ctx, result); err != nil {
		result = refused(result.Reference, err)
		result.Digest = sum
	}
	return result
}

func (n Node) judge(ctx context.Context, args []string, stdin io.Reader) Result {
	r, err := parseRequest(args, stdin)
	if err != nil {
		return refused(nameIn(args), err)
	}
	if n.TrustDir == "" {
		return refused(r.given, errors.New("no trust directory is named"))
	}
	n.CacheDir = filepath.Join(n.StateDir, "cache")
	if n.AuthFile == "" {
		n.AuthFile = noAuthFile
	}
	g, err := Open(n.Options)
	if err != nil {
		return refused(r.given, err)
	}
	defer g.Close()
	sources, err := g.pullSources(ctx, r.asked)
	if err != nil {
		return refused(r.given, err)
	}
	defer func() {
		for _, s := range sources {
			s.close()
		}
	}()
	result := g.examine(ctx, r.repository, r.descriptor, sources...)
	result.Reference = r.given
	if result.Passed() {
		if result = n.explain(result); !result.Passed() {
			return result
		}
		if err := intact(ctx, r.descriptor, sources); err != nil {
			return result.refuse(err.Error())
		}
	}
	return result
}

// explain says in the log why an image passes whose signer was not verified, and refuses one that was not verified at
// all if the installation does not allow that, whatever the policy has become since.
func (n Node) explain(r Result) Result {
	switch {
	case r.Signature == nil && !n.AllowSkip:
		return r.refuse(
			fmt.Sprintf("statement %q of the trust policy skips verification, and install-verifier was not told to --allow-skip",
				r.Policy))
	case r.Signature == nil:
		r.Reason = oneLine(fmt.Sprintf("not verified: statement %q of the trust policy skips verification", r.Policy))
	case len(r.Warnings) > 0:
		r.Reason = oneLine(strings.Join(r.Warnings, "; "))
	}
	return r
}

// intact fetches the manifest that containerd is about to pull. containerd would not take a manifest that was changed
// either, but it keeps what it has got of it, and then can't pull the right one.
func intact(ctx context.Context, descriptor ocispec.Descriptor, sources []source) error {
	if descriptor.Size > docker.MaxManifestSize {
		return fmt.Errorf("its manifest is longer than %d bytes", docker.MaxManifestSize)
	}
	var errs []error
	for i, s := range sources {
		ctx, cancel := share(ctx, len(sources)-i)
		err := s.has(ctx, descriptor)
		cancel()
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("can't get its manifest from %s: %w", s.name, err))
		if errors.Is(err, content.ErrMismatchedDigest) {
			break // containerd would go no further
		}
	}
	return errors.Join(errs...)
}

// has reads a manifest, without keeping it.
func (s source) has(ctx context.Context, descriptor ocispec.Descriptor) error {
	reply, err := s.manifests.Fetch(ctx, descriptor)
	if err != nil {
		return err
	}
	defer reply.Close()
	manifest := content.NewVerifyReader(reply, descriptor)
	if _, err := io.Copy(io.Discard, manifest); err != nil {
		return err
	}
	return manifest.Verify()
}

// request is what containerd asks about: not the tag, which may have moved, but the descriptor that it has found under
// it and will pull.
type request struct {
	given      string // the name as containerd gives it
	asked      string // the repository with its registry, as the network is asked for it
	repository string // the one name of it by which the trust policy is asked
	descriptor ocispec.Descriptor
}

func parseRequest(args []string, stdin io.Reader) (*request, error) {
	const hint = "containerd starts it, through what install-verifier writes"
	name, sum, mediaType, err := parseArguments(args)
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't understand the arguments: %w", err).WithHint(hint)
	}
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, failure.New(failure.Invalid, "%q is not an image's name: %w", name, err).WithHint(hint)
	}
	if err := checkHost(name, named); err != nil {
		return nil, failure.New(failure.Invalid, "%q is not a full name: %w", name, err).
			WithHint("name it with its registry, as in docker.io/library/alpine")
	}
	want, err := digest.Parse(sum)
	if err != nil {
		return nil, failure.New(failure.Invalid, "%q is not a digest: %w", sum, err).WithHint(hint)
	}
	if digested, ok := named.(reference.Digested); ok && digested.Digest() != want {
		return nil, failure.New(failure.Invalid, "the name says another digest than %s", want)
	}
	if mediaType != ocispec.MediaTypeDescriptor {
		return nil, failure.New(failure.Unsupported, "the input is %q, not %q", mediaType, ocispec.MediaTypeDescriptor).
			WithHint("is this version of containerd newer than this program?")
	}
	data, err := io.ReadAll(io.LimitReader(stdin, maxDescriptor+1))
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the descriptor: %w", err).WithHint(hint)
	}
	if len(data) > maxDescriptor {
		return nil, failure.New(failure.Invalid, "the descriptor is longer than %d bytes", maxDescriptor).WithHint(hint)
	}
	if !json.Valid(data) {
		return nil, failure.New(failure.Invalid, "the descriptor is not valid JSON").WithHint(hint)
	}
	if err := bound.JSON(data, bound.Limits{Bytes: maxDescriptor, Depth: bound.Depth, Elements: 2000}); err != nil {
		return nil, failure.New(failure.Invalid, "the descriptor is refused: %w", err).WithHint(hint)
	}
	r := &request{given: name}
	if r.asked, err = scope.Name(named.Name()); err == nil {
		r.repository, err = scope.Canonical(named.Name())
	}
	if err != nil {
		return nil, failure.New(failure.Invalid, "%q is not an image's name: %w", name, err).WithHint(hint)
	}
	if err := json.Unmarshal(data, &r.descriptor); err != nil {
		return nil, failure.New(failure.Invalid, "the descriptor is not one: %w", err).WithHint(hint)
	}
	if r.descriptor.Digest != want || r.descriptor.MediaType == "" || r.descriptor.Size <= 0 {
		return nil, failure.New(failure.Invalid, "the descriptor is not one of %s", want).WithHint(hint)
	}
	return r, nil
}

// checkHost verifies that the registry in an image's name is the host that containerd pulls from. In a short name, such
// as team/app, Docker and kubelets see a part of Docker Hub, and so does the trust policy; containerd itself sees the
// host team.
func checkHost(name string, named reference.Named) error {
	host, _, _ := strings.Cut(name, "/")
	domain := reference.Domain(named)
	if host != domain && (domain != dockerHub || host != dockerHubIndex) {
		return fmt.Errorf("its registry is %s, and containerd pulls from %q", domain, host)
	}
	return nil
}

// parseArguments reads containerd's arguments; it may leave out none and add none.
func parseArguments(args []string) (name, sum, mediaType string, err error) {
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&name, "name", "", "")
	flags.StringVar(&sum, "digest", "", "")
	flags.StringVar(&mediaType, "stdin-media-type", "", "")
	if err = flags.Parse(args); err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if err == nil && name == "" {
		err = errors.New("there is no -name")
	}
	return name, sum, mediaType, err
}

// nameIn finds an image's name for the log even where the arguments are wrong otherwise.
func nameIn(args []string) string {
	name, _, _, _ := parseArguments(args)
	return oneLine(name)
}
