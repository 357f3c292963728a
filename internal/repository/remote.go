package repository

import (
	"strings"

	"oras.land/oras-go/v2/registry/remote"

	access "github.com/notation-hsm/notation-hsm/internal/registry"
)

// Repository returns a repository by its name in normal form, to read and to write: with the connections, hosts and
// credentials of its registry, and within limits for all of its requests together. If the registry is not listed, all
// requests fail.
func (r *Registries) Repository(name string, limits access.Limits) *remote.Repository {
	host, path, _ := strings.Cut(name, "/")
	listed := r.byName[host]
	if listed == nil {
		listed = &registry{name: host, address: host, scheme: "https"} // with no host that may be connected to
	}
	return access.Limit(listed.client(), limits, listed.address, path, listed.scheme == "http")
}
