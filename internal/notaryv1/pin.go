package notaryv1

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Pin is what a person trusts: a root file, or root keys.
//
// Of pinned keys, as many have to sign a root as its own threshold says. A root file also pins the threshold, so it is
// the better pin where there is more than one root key.
type Pin struct {
	Root []byte // root.json, of any version
	// Without Root: the IDs of root keys (Key.ID or Key.PublicID, in lower-case hex), and certificates of root keys.
	KeyIDs       []string
	Certificates []*x509.Certificate
}

// ReadPin returns the pin that the content of a file is: a root.json, or PEM certificates.
func ReadPin(data []byte) (Pin, error) {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		_, err := parseFile(data, file{role: roleRoot}, maxRoot)
		return Pin{Root: data}, err
	}
	var pin Pin
	if len(data) > maxRoot {
		return Pin{}, failure.New(failure.Invalid, "cannot read pinned root: it is larger than %d bytes", maxRoot)
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		err := bound.DER(block.Bytes, derLimits)
		if err == nil && block.Type == "CERTIFICATE" {
			var cert *x509.Certificate
			if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
				pin.Certificates = append(pin.Certificates, cert)
			}
		}
		if err != nil {
			return Pin{}, failure.New(failure.Invalid, "cannot read certificate of pinned root: %w", err)
		}
	}
	if pin.Certificates == nil {
		return Pin{}, failure.New(failure.Invalid, "cannot read pinned root: it is neither a root.json nor certificates").
			WithHint("pin a root.json, a root certificate in PEM, or the ID of a root key")
	}
	return pin, nil
}

// check fails unless the pin names something, in the form that keys are compared in.
func (p Pin) check() error {
	if keys := len(p.KeyIDs) + len(p.Certificates); (p.Root == nil) == (keys == 0) {
		return failure.New(failure.Invalid, "cannot verify repository: a pin is a root.json, or root keys").
			WithHint("pin a root.json, a root certificate in PEM, or the ID of a root key")
	}
	for _, id := range p.KeyIDs {
		if !keyIDPattern.MatchString(id) {
			return failure.New(failure.Invalid, "cannot read pinned key ID %.100q: it is not 64 lower-case hex digits", id).
				WithHint("name the key as 'notary key list' or 'docker trust inspect' does")
		}
	}
	return nil
}

// has reports whether a root key is pinned.
func (p Pin) has(k Key) bool {
	return k.cert != nil && (slices.Contains(p.KeyIDs, k.ID) || slices.Contains(p.KeyIDs, k.PublicID) ||
		slices.ContainsFunc(p.Certificates, k.cert.Equal))
}

// rootRole returns the root role of a root file: its threshold, and its keys for the repository.
func (r *reader) rootRole(m *metadata) ([]Key, int, error) {
	role, ok := m.Roles[roleRoot]
	if !ok {
		return nil, 0, errors.New("it has no root role")
	}
	keys, err := role.keyRing(m.Keys)
	if err != nil {
		return nil, 0, err
	}
	return slices.DeleteFunc(keys, func(k Key) bool { return !k.isFor(r.gun) }), role.Threshold, nil
}

// trustRoot returns the current root, trusted from the pin.
func (r *reader) trustRoot(ctx context.Context) (*metadata, error) {
	current, err := r.read(ctx, file{role: roleRoot}, maxRoot)
	if err != nil {
		return nil, err
	}
	pinned, err := r.pinnedRoot(ctx, current)
	if err != nil {
		return nil, err
	}
	if pinned.Version == current.Version {
		if !bytes.Equal(pinned.message, current.message) {
			return nil, r.refuse(roleRoot, fmt.Errorf("its version %d differs from the pinned root", current.Version))
		}
		return current, nil
	}
	if pinned.Version > current.Version {
		return nil, r.refuse(roleRoot, fmt.Errorf("its version %d is older than the pinned root's, %d", current.Version,
			pinned.Version))
	}
	// Notary's client signs a new root with the keys of the one before, and takes a root that skips versions as long as
	// the keys that it trusts have signed it. A trust folder has no versions between.
	if r.follows(pinned, current) == nil {
		return current, nil
	}
	if current.Version-pinned.Version > maxRoots {
		return nil, r.refuse(roleRoot, fmt.Errorf("it is %d versions from the pinned root", current.Version-pinned.Version))
	}
	for last := pinned; last != current; {
		next := current
		if last.Version+1 < current.Version {
			if next, err = r.oldRoot(ctx, last.Version+1); err != nil {
				return nil, err
			}
		}
		if err := r.follows(last, next); err != nil {
			return nil, r.refuse(roleRoot, fmt.Errorf("version %d does not follow version %d: %w", next.Version, last.Version,
				err))
		}
		last = next
	}
	return current, nil
}

// pinnedRoot returns the newest root that the pin itself trusts.
func (r *reader) pinnedRoot(ctx context.Context, current *metadata) (*metadata, error) {
	if r.pin.Root != nil {
		m, err := parseFile(r.pin.Root, file{role: roleRoot}, maxRoot)
		if err != nil {
			return nil, err
		}
		if err := r.follows(m, m); err != nil {
			return nil, failure.New(failure.Denied, "cannot trust pinned root of %q: %w", r.gun, err).
				WithHint("pin a root.json of this repository")
		}
		return m, nil
	}
	mismatch := r.pinned(current)
	if mismatch == nil {
		return current, nil
	}
	for version := current.Version - 1; version >= max(1, current.Version-maxRoots); version-- {
		m, err := r.oldRoot(ctx, version)
		if err != nil && failure.From(err).Kind == failure.NotFound {
			break
		}
		if err != nil {
			return nil, err
		}
		if r.pinned(m) == nil {
			return m, nil
		}
	}
	return nil, failure.New(failure.Denied, "cannot trust root of %q: the pin does not match: %w", r.gun, mismatch).
		WithHint("compare the root key with its owner; if it was rotated, pin the root.json from before")
}

// oldRoot reads a root by its version.
func (r *reader) oldRoot(ctx context.Context, version int64) (*metadata, error) {
	m, err := r.read(ctx, file{role: roleRoot, version: version}, maxRoot)
	if err == nil && m.Version != version {
		err = r.refuse(roleRoot, fmt.Errorf("the file of version %d is version %d", version, m.Version))
	}
	return m, err
}

// pinned fails unless pinned keys of the root have signed it, as many as its threshold says.
func (r *reader) pinned(m *metadata) error {
	keys, threshold, err := r.rootRole(m)
	if err != nil {
		return err
	}
	_, err = m.verify(slices.DeleteFunc(keys, func(k Key) bool { return !r.pin.has(k) }), threshold)
	return err
}

// follows fails unless a root is signed as the one before it says, and as it says itself.
func (r *reader) follows(last, next *metadata) error {
	for _, m := range []*metadata{last, next} {
		keys, threshold, err := r.rootRole(m)
		if err != nil {
			return err
		}
		if _, err := next.verify(keys, threshold); err != nil {
			return err
		}
	}
	return nil
}
