package gate

import (
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Repository returns the repository of an image in a registry, for a program that pulls the image by its digest. It is
// the full name: Podman may look for a short one, which belongs to Docker Hub here, in other registries. It fails for
// a text that names no image, and for an image in another place than a registry.
func Repository(image string) (string, error) {
	if transport, _, _ := strings.Cut(image, ":"); transport == "oci" || slices.Contains(otherTransports, transport) {
		return "", failure.New(failure.Invalid, "cannot pull %s: it is in no registry", sanitize(image)).
			WithHint("copy the image with its signatures to a registry")
	}
	named, err := reference.ParseDockerRef(strings.TrimPrefix(image, "docker://"))
	if err != nil {
		return "", failure.New(failure.Invalid, "%s is not an image's name: %w", sanitize(image), err).
			WithHint("name an image as in registry.example.com/app:1")
	}
	return named.Name(), nil
}
