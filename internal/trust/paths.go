package trust

import (
	"path"
	"regexp"
	"slices"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// pathForm has the characters of tags and those of patterns that every reader of TUF metadata takes for the same:
// neither ! nor ^, with which classes are negated in some and not in others, nor a slash or a backslash.
var pathForm = sync.OnceValue(func() *regexp.Regexp { // not at the start, which every signature pays for
	return regexp.MustCompile(`^[A-Za-z0-9_.*?\[\]-]{1,128}$`)
})

// maxPaths is the limit of patterns of one signer.
const maxPaths = 64

// validatePaths validates patterns of tags.
func validatePaths(paths []string) error {
	if len(paths) > maxPaths {
		return failure.New(failure.Invalid, "there are %d paths, more than %d", len(paths), maxPaths).
			WithHint("use patterns that match more tags")
	}
	for i, pattern := range paths {
		if _, err := path.Match(pattern, ""); err != nil || !pathForm().MatchString(pattern) {
			return failure.New(failure.Invalid, "the path %q is not a pattern of tags", pattern).
				WithHint("use letters, digits, '.', '_', '-', and the wildcards *, ? and [a-z], as in 'release-*'")
		}
		if slices.Contains(paths[:i], pattern) {
			return failure.New(failure.Invalid, "the path %q is given twice", pattern).WithHint("remove one of the two")
		}
	}
	return nil
}

// matchPaths reports whether one of the patterns matches a tag. No pattern matches every tag.
func matchPaths(paths []string, tag string) bool {
	return len(paths) == 0 || slices.ContainsFunc(paths, func(pattern string) bool {
		matched, err := path.Match(pattern, tag)
		return err == nil && matched
	})
}
