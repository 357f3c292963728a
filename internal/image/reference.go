// Package image encrypts container images to recipients and opens such images with keys in a module: it copies them,
// lists their layers, and changes who can open them.
//
// The copying is that of go.podman.io/image, which skopeo is made of, and the encryption of layers that of ocicrypt.
// What is done here is around them: the keys of all layers are opened before anything is copied, with one login, and a
// copy on this machine is there whole or not at all.
package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/types"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// The transports of skopeo that need neither a daemon nor a container store.
var transports = []types.ImageTransport{docker.Transport, layout.Transport, ociarchive.Transport,
	dockerarchive.Transport, directory.Transport}

// A Reference names an image as skopeo does: docker://HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG,
// docker-archive:FILE:NAME or dir:DIR.
type Reference struct {
	types.ImageReference
	text string
}

// ParseReference reads the name of an image; it does not look whether there is one.
func ParseReference(text string) (Reference, error) {
	const hint = "name it like docker://registry.example.com/app:1, oci:DIR:TAG, oci-archive:FILE, docker-archive:FILE or dir:DIR"
	name, rest, _ := strings.Cut(text, ":")
	for _, transport := range transports {
		if transport.Name() != name {
			continue
		}
		if path, _, _ := strings.Cut(strings.TrimPrefix(rest, "//"), ":"); path == "" {
			break
		}
		ref, err := transport.ParseReference(rest)
		if errors.Is(err, fs.ErrNotExist) {
			return Reference{}, failure.New(failure.Invalid, "%s can't be used: its folder is not there: %w", text, err).
				WithHint("make it, or name another")
		}
		if err != nil {
			return Reference{}, failure.New(failure.Invalid, "%q does not name an image: %w", text, err).WithHint(hint)
		}
		return Reference{ref, text}, nil
	}
	return Reference{}, failure.New(failure.Invalid, "%q does not name an image", text).WithHint(hint)
}

// String returns the name as it was written.
func (r Reference) String() string { return r.text }

func (r Reference) transport() string { return r.Transport().Name() }

// local splits the name of an image on this machine into its path and what follows it in the name; ok is false for a
// registry.
func (r Reference) local() (path, name string, ok bool) {
	_, rest, _ := strings.Cut(r.text, ":")
	switch r.transport() {
	case docker.Transport.Name():
		return "", "", false
	case directory.Transport.Name():
		return rest, "", true // the path may have colons
	}
	path, name, _ = strings.Cut(rest, ":")
	return path, name, true
}

// at returns the same reference with another path.
func (r Reference) at(path string) (Reference, error) {
	_, name, _ := r.local()
	text := r.transport() + ":" + path
	if name != "" {
		text += ":" + name
	}
	moved, err := ParseReference(text)
	if err != nil {
		return Reference{}, err
	}
	if got, _, _ := moved.local(); got != path {
		return Reference{}, failure.New(failure.Invalid,
			"%s can't be written below a folder with a colon in its name, %s", r, path).
			WithHint("use another folder")
	}
	return moved, nil
}

// Registry says how a registry is reached. The zero value is how skopeo does it by itself.
type Registry struct {
	AuthFile string // credentials, as written by 'skopeo login' or 'docker login'; "" is the user's own file
	CertDir  string // a folder with *.crt of a CA and *.cert and *.key of a client; "" is the system's
	Insecure bool   // allow plain HTTP, and certificates that do not verify
}

func (r Registry) context() *types.SystemContext {
	c := &types.SystemContext{AuthFilePath: r.AuthFile, DockerCertPath: r.CertDir}
	if r.Insecure {
		c.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return c
}

// stall is how long a transfer may move nothing. A registry that puts a large layer together is silent for a while.
var stall = 5 * time.Minute

// A transfer is data on its way to or from a registry, which is given up when nothing moves any more.
type transfer struct {
	timer *time.Timer
	late  func()
}

// moved is called whenever something has moved.
func (t *transfer) moved() { t.timer.Reset(stall) }

// rest begins a time in which only what wait is called for is a transfer: what is done on this machine takes as long as
// it takes.
func (t *transfer) rest() { t.timer.Stop() }

// wait watches one step of a transfer; the function that it returns ends that.
func (t *transfer) wait() func() bool { return time.AfterFunc(stall, t.late).Stop }

// within runs do and gives up when its transfer stalls.
func within(ctx context.Context, what string, do func(context.Context, *transfer) error) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := failure.New(failure.Timeout, "%s: nothing has moved for %s", what, stall).
		WithHint("check the network and the registry, and run it again")
	late := func() { cancel(stalled) }
	t := &transfer{time.AfterFunc(stall, late), late}
	defer t.rest()
	err := do(inner, t)
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(inner), stalled):
		return stalled
	case ctx.Err() != nil:
		return failure.New(failure.Internal, "interrupted: %s", what).WithHint("run it again")
	}
	return err
}

// A Platform is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT.
type Platform struct{ OS, Architecture, Variant string }

// ParsePlatform reads a platform.
func ParsePlatform(text string) (Platform, error) {
	parts := strings.Split(text, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return Platform{}, failure.New(failure.Invalid, "%q is not a platform", text).
			WithHint("write it like linux/amd64 or linux/arm/v7")
	}
	p := Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// String returns the platform as ParsePlatform reads it; "" is an unknown one.
func (p Platform) String() string {
	if p.OS == "" && p.Architecture == "" {
		return ""
	}
	text := fmt.Sprintf("%s/%s", p.OS, p.Architecture)
	if p.Variant != "" {
		text += "/" + p.Variant
	}
	return text
}

// matches reports whether an image for platform p is one of those wanted; a wanted platform without a variant takes
// any.
func (p Platform) matches(wanted Platform) bool {
	return p.OS == wanted.OS && p.Architecture == wanted.Architecture && (wanted.Variant == "" || p.Variant == wanted.Variant)
}
