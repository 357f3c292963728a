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
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/scope"
)

// Node is the gate of a machine that runs images. It implements containerd's image verifier (docs/image-verification.md
// of containerd): before each pull, containerd starts a program with the name and the digest of the image as arguments
// and the descriptor on standard input, and pulls only if the program exits with 0. Its output is the reason.
type Node struct {
	Options
	StateDir  string        // the folder of the decision log, the revocation lists and what is remembered about tags
	Timeout   time.Duration // for one image; containerd's timeout has to be longer
	User      string        // the user that the verifier runs as; "" is the current one
	AllowSkip bool          // images pass without verification if the trust policy says skip
}

// DefaultTimeout leaves the rest of containerd's ten seconds for the start of the program and the log.
const DefaultTimeout = 8 * time.Second

// noFolder is a folder that nobody can make. noAuthFile keeps the library from looking for credentials in the places of
// users and other tools, which are not configured and which others may be able to write to.
const (
	noFolder   = "/proc/none"
	noAuthFile = noFolder + "/auth.json"
)

const (
	logTimeout    = time.Second // to lock the decision log, after Timeout
	maxDescriptor = 1 << 20     // bytes
)

var descriptorLimits = bound.Limits{Bytes: maxDescriptor, Depth: bound.Depth, Elements: 2000}

// tagsDir returns the folder of what is remembered about tags.
func (n Node) tagsDir() string { return filepath.Join(n.StateDir, TagsFolder) }

// LogFile returns the path of the decision log.
func (n Node) LogFile() string { return filepath.Join(n.StateDir, "decisions.jsonl") }

// Verify decides about the image that containerd asks about. The decision is in the log before Verify returns: an image
// whose decision cannot be logged is refused.
func (n Node) Verify(ctx context.Context, args []string, stdin io.Reader) Decision {
	return n.logDecision(ctx, args, func(ctx context.Context) Decision { return n.verify(ctx, args, stdin) })
}

// Refuse refuses the image for a reason that holds for all images, and logs the decision as Verify does.
func (n Node) Refuse(ctx context.Context, args []string, reason error) Decision {
	return n.logDecision(ctx, args, func(context.Context) Decision { return newRefusal(imageName(args), reason) })
}

// logDecision calls verify and writes its decision to the log.
func (n Node) logDecision(ctx context.Context, args []string, verify func(context.Context) Decision) Decision {
	_, sum, _, _ := parseArguments(args)
	if digest.Digest(sum).Validate() != nil {
		sum = ""
	}
	decision := runWithTimeout(ctx, n.Timeout, imageName(args), verify)
	decision.Digest = sum // also if the image was not verified
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), logTimeout)
	defer cancel()
	if err := NewLog(n.LogFile()).Append(ctx, decision); err != nil {
		decision = newRefusal(decision.Reference, err)
		decision.Digest = sum
	}
	return decision
}

// verify decides about the image without the log.
func (n Node) verify(ctx context.Context, args []string, stdin io.Reader) Decision {
	r, err := parseRequest(args, stdin)
	if err != nil {
		return newRefusal(imageName(args), err)
	}
	if n.TrustDir == "" {
		return newRefusal(r.given, errors.New("no trust directory is set"))
	}
	n.CacheDir, n.TagsDir = filepath.Join(n.StateDir, "cache"), n.tagsDir()
	if n.AuthFile == "" {
		n.AuthFile = noAuthFile
	}
	g, err := Open(n.Options)
	if err != nil {
		return newRefusal(r.given, err)
	}
	defer g.Close()
	sources, err := g.pullSources(ctx, r.address)
	if err != nil {
		return newRefusal(r.given, err)
	}
	defer func() {
		for _, s := range sources {
			s.close()
		}
	}()
	var tag *resolved
	if pinned := g.tags[r.scope]; pinned != nil && r.tag != "" {
		if tag, err = g.resolveTag(ctx, pinned, r.tag, r.descriptor.Digest, sources...); err == nil {
			err = tag.checkSize(r.descriptor)
		}
		if err != nil {
			return newRefusal(r.given, err)
		}
	}
	decision := g.examine(ctx, r.scope, r.descriptor, tag, sources...)
	decision.Reference = r.given
	if decision.Passed() {
		if decision = n.explain(decision); !decision.Passed() {
			return decision
		}
		if err := checkManifest(ctx, r.descriptor, sources); err != nil {
			return decision.refuse(err.Error())
		}
	}
	return decision
}

// explain adds a reason to the decision about an image that passes without a verified signer. It refuses an image that
// passes without any verification, unless AllowSkip is set: the trust policy may have changed since the installation.
func (n Node) explain(d Decision) Decision {
	switch {
	case d.Signature == nil && !n.AllowSkip:
		return d.refuse(fmt.Sprintf(
			"statement %q of the trust policy skips verification, and install-verifier was not told to --allow-skip", d.Policy))
	case d.Signature == nil:
		d.Reason = sanitize(fmt.Sprintf("not verified: statement %q of the trust policy skips verification", d.Policy))
	case len(d.Warnings) > 0:
		d.Reason = sanitize(strings.Join(d.Warnings, "; "))
	}
	return d
}

// checkManifest fetches the manifest that containerd is about to pull from the first source that has it, and fails
// unless its size and digest are those of the descriptor. containerd would refuse a wrong manifest too, but it would
// keep what it has received, and could not pull the right one later.
func checkManifest(ctx context.Context, descriptor ocispec.Descriptor, sources []source) error {
	if descriptor.Size > docker.MaxManifestSize {
		return fmt.Errorf("its manifest is longer than %d bytes", docker.MaxManifestSize)
	}
	var errs []error
	for i, s := range sources {
		ctx, cancel := shareDeadline(ctx, len(sources)-i)
		err := s.verifyManifest(ctx, descriptor)
		cancel()
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("cannot fetch its manifest from %s: %w", s.name, err))
		if errors.Is(err, content.ErrMismatchedDigest) {
			break // containerd tries no other source either
		}
	}
	return errors.Join(errs...)
}

// verifyManifest reads a manifest, drops it, and fails unless its size and digest are those of the descriptor.
func (s source) verifyManifest(ctx context.Context, descriptor ocispec.Descriptor) error {
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

// request is what containerd asks about: the descriptor that it has resolved the name to and will pull. The tag may
// have moved since.
type request struct {
	given      string // the name as containerd gives it
	address    string // the repository with its registry, for connections
	scope      string // the repository in its normal form, for the trust policy
	tag        string // "" if the name has a digest alone
	descriptor ocispec.Descriptor
}

// invalidRequest returns the failure of a request that containerd would not make.
func invalidRequest(format string, args ...any) error {
	return failure.New(failure.Invalid, format, args...).
		WithHint("let containerd start the verifier, with the script that install-verifier writes")
}

// parseRequest reads containerd's request. It fails unless the name, the digest and the descriptor are complete and fit
// together.
func parseRequest(args []string, stdin io.Reader) (*request, error) {
	name, sum, mediaType, err := parseArguments(args)
	if err != nil {
		return nil, invalidRequest("cannot parse the arguments: %w", err)
	}
	r, want, err := parseName(name, sum)
	if err != nil {
		return nil, err
	}
	if mediaType != ocispec.MediaTypeDescriptor {
		return nil, failure.New(failure.Unsupported, "the input is %q, not %q", mediaType, ocispec.MediaTypeDescriptor).
			WithHint("update hsm-image to a version that knows this containerd")
	}
	if r.descriptor, err = readDescriptor(stdin); err != nil {
		return nil, err
	}
	if r.descriptor.Digest != want || r.descriptor.MediaType == "" || r.descriptor.Size <= 0 {
		return nil, invalidRequest("the descriptor is not one of %s", want)
	}
	return r, nil
}

// parseName reads the name and the digest of an image.
func parseName(name, sum string) (r *request, want digest.Digest, err error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, "", invalidRequest("%q is not an image's name: %w", name, err)
	}
	if err := checkHost(name, named); err != nil {
		return nil, "", failure.New(failure.Invalid, "%q is not a full name: %w", name, err).
			WithHint("name it with its registry, as in docker.io/library/alpine")
	}
	if want, err = digest.Parse(sum); err != nil {
		return nil, "", invalidRequest("%q is not a digest: %w", sum, err)
	}
	if digested, ok := named.(reference.Digested); ok && digested.Digest() != want {
		return nil, "", invalidRequest("the name says another digest than %s", want)
	}
	r = &request{given: name, tag: tagIn(name, named)}
	if r.address, err = scope.Name(named.Name()); err == nil {
		r.scope, err = scope.Canonical(named.Name())
	}
	if err != nil {
		return nil, "", invalidRequest("%q is not an image's name: %w", name, err)
	}
	return r, want, nil
}

// readDescriptor reads a descriptor in JSON. It fails if the descriptor exceeds the limits.
func readDescriptor(stdin io.Reader) (descriptor ocispec.Descriptor, err error) {
	data, err := io.ReadAll(io.LimitReader(stdin, maxDescriptor+1))
	if err == nil {
		err = bound.JSON(data, descriptorLimits)
	}
	if err == nil {
		err = json.Unmarshal(data, &descriptor)
	}
	if err != nil {
		return descriptor, invalidRequest("cannot read the descriptor: %w", err)
	}
	return descriptor, nil
}

// dockerHubIndex is an old name of Docker Hub in images.
const dockerHubIndex = "index.docker.io"

// checkHost verifies that the registry in an image's name is the host that containerd pulls from. They differ for short
// names: Docker, kubelets and the trust policy take team/app for docker.io/team/app, and containerd for app on the host
// team.
func checkHost(name string, named reference.Named) error {
	host, _, _ := strings.Cut(name, "/")
	domain := reference.Domain(named)
	if host != domain && (domain != registry.DockerHub || host != dockerHubIndex) {
		return fmt.Errorf("its registry is %s, and containerd pulls from %q", domain, host)
	}
	return nil
}

// parseArguments reads containerd's arguments. It fails for unknown ones, and without a name.
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

// imageName returns the name of the image in the arguments, for the log, also if the other arguments are wrong.
func imageName(args []string) string {
	name, _, _, _ := parseArguments(args)
	return sanitize(name)
}
