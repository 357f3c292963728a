// Package image encrypts container images to recipients, and decrypts them with keys in a module. It copies images,
// lists their layers, changes their recipients, and decrypts layers for containerd.
//
// go.podman.io/image, the library of skopeo, copies images; ocicrypt encrypts and decrypts their layers. This package
// unwraps the keys of all layers before anything is copied, with one login; it writes a copy on this machine as a whole
// or not at all; and it bounds what it reads of images.
package image

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/types"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// transports are those of skopeo that need neither a daemon nor a container store.
var transports = []types.ImageTransport{docker.Transport, layout.Transport, ociarchive.Transport,
	dockerarchive.Transport, directory.Transport}

// A Reference names an image as skopeo does: docker://HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG,
// docker-archive:FILE:NAME or dir:DIR.
type Reference struct {
	types.ImageReference
	text string
}

// ParseReference parses the name of an image. It does not check whether the image exists.
func ParseReference(text string) (Reference, error) {
	const hint = "name it like docker://registry.example.com/app:1, oci:DIR:TAG, oci-archive:FILE, docker-archive:FILE " +
		"or dir:DIR"
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
			return Reference{}, failure.New(failure.NotFound, "cannot use %s: its folder does not exist: %w", text, err).
				WithHint("make the folder, or name another")
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

// local splits the name of an image on this machine into its path and what follows the path. ok is false for an image
// in a registry.
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
			"cannot write %s below %s: the name of a folder has a colon", r, path).
			WithHint("use another folder")
	}
	return moved, nil
}

// Registry holds how a registry is reached. The zero value is skopeo's default.
type Registry struct {
	AuthFile string // credentials, as written by 'skopeo login' or 'docker login'; "" is the user's own file
	CertDir  string // a folder with *.crt of a CA and *.cert and *.key of a client; "" is the system's
	Insecure bool   // allow plain HTTP, and certificates that do not verify
}

// context returns the copy library's settings for the registry.
func (r Registry) context() *types.SystemContext {
	c := &types.SystemContext{AuthFilePath: r.AuthFile, DockerCertPath: r.CertDir}
	if r.Insecure {
		c.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return c
}

// A Platform is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT.
type Platform struct{ OS, Architecture, Variant string }

// ParsePlatform parses a platform.
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

// String returns the platform as ParsePlatform parses it, or "" if it is unknown.
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

// matches reports whether p is the wanted platform. A wanted platform without a variant matches all variants.
func (p Platform) matches(wanted Platform) bool {
	return p.OS == wanted.OS && p.Architecture == wanted.Architecture &&
		(wanted.Variant == "" || p.Variant == wanted.Variant)
}
