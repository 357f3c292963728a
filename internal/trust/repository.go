package trust

import (
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/scope"
)

// spelled returns a scope with the canonical spelling of its registry, so that REGISTRY.example.com is the same as
// registry.example.com. It returns other text unchanged.
func spelled(given string) string {
	if name, err := scope.Name(given); err == nil {
		return name
	}
	return given
}

// repository returns the canonical name of the repository of a scope, or "*".
func repository(given string) (string, error) {
	if given == anyone {
		return anyone, nil
	}
	name, err := scope.Canonical(given)
	if err != nil {
		return "", failure.New(failure.Invalid, "the scope %q is not a repository: %w", given, err).
			WithHint("write it as in registry.example.com/team/app")
	}
	return name, nil
}

// oneRepository reports whether two scopes are the same repository.
func oneRepository(a, b string) bool {
	one, err := repository(a)
	if err != nil {
		return a == b
	}
	other, err := repository(b)
	return err == nil && one == other
}
