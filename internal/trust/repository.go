package trust

import (
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/scope"
)

// spelled returns a scope with its registry spelled in one way, as the network takes it, so that REGISTRY.example.com
// is no other registry than registry.example.com. What is no repository is returned as it is.
func spelled(given string) string {
	if name, err := scope.Name(given); err == nil {
		return name
	}
	return given
}

// repository returns the one name of the repository that a scope names, or "*" for all others.
func repository(given string) (string, error) {
	if given == anyone {
		return anyone, nil
	}
	name, err := scope.Canonical(given)
	if err != nil {
		return "", failure.New(failure.Invalid, "the scope %q is not a repository: %w", given, err).
			WithHint("name it as in registry.example.com/team/app")
	}
	return name, nil
}

// oneRepository returns whether two scopes name the same.
func oneRepository(a, b string) bool {
	one, err := repository(a)
	if err != nil {
		return a == b
	}
	other, err := repository(b)
	return err == nil && one == other
}
