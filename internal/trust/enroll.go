package trust

import (
	"context"
	"slices"
	"strings"
)

// Enroll is Add for a signer that may have another name in the manifest. It returns the signer, and whether it was
// added or got a scope. A signer with the same certificate, subject and paths gets the scopes of the grant, whatever
// its name. If another signer has the name, the new one is named for its first scope as well, as in alice-team-app.
func Enroll(ctx context.Context, path string, g Grant) (signer *Signer, added bool, err error) {
	m, err := Load(path)
	if err != nil {
		return nil, false, err
	}
	want := g.signer()
	for i := range m.Signers {
		s := &m.Signers[i]
		if s.Fingerprint != want.Fingerprint || s.Subject != want.Subject || s.audited() ||
			!slices.Equal(slices.Sorted(slices.Values(s.Paths)), slices.Sorted(slices.Values(g.Paths))) {
			continue
		}
		if !slices.ContainsFunc(want.Scopes, func(scope string) bool { return !slices.Contains(s.Scopes, scope) }) {
			return s, false, nil
		}
		g.Name = s.Name
		signer, err = Add(ctx, path, g)
		return signer, true, err
	}
	if m.find(g.Name) != nil && len(g.Scopes) > 0 {
		_, repository, _ := strings.Cut(g.Scopes[0], "/")
		g.Name += "-" + strings.ReplaceAll(repository, "/", "-")
	}
	signer, err = Add(ctx, path, g)
	return signer, true, err
}
