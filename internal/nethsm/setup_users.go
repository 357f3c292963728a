package nethsm

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// planNamespace plans the namespace and its administrator. It reports whether the namespace does not exist yet, so that
// nothing in it can be read.
func (p *Setup) planNamespace(ctx context.Context) (missing bool, err error) {
	admin := p.store.settings.NetHSM.Administrator
	namespace := namespaceOf(admin)
	if namespace == "" || p.request.Root == "" {
		return false, nil
	}
	p.root = p.store.credential(p.request.Root, p.request.RootPINSource)
	exists, err := p.hasNamespace(ctx, namespace)
	if err != nil {
		return false, err
	}
	_, hasAdmin, err := p.readRole(ctx, admin, p.root)
	if err != nil {
		return false, err
	}
	if exists && !hasAdmin {
		return false, failure.New(failure.Conflict, "cannot create administrator %s: the namespace %s exists already",
			admin, namespace).
			WithHint("have another administrator of the namespace create it, or name that one as administrator")
	}
	if !hasAdmin {
		if err := p.readNewPassphrase(ctx, p.store.admin); err != nil {
			return false, err
		}
	}
	// The administrator comes first: once the namespace exists, only its own administrator can create users in it.
	p.add(hasAdmin, func(ctx context.Context) error {
		return p.createUser(ctx, p.store.admin, "Administrator", p.root)
	}, "user %s (Administrator), for keys and users of the namespace", admin)
	p.add(exists, func(ctx context.Context) error { return p.createNamespace(ctx, namespace) },
		"namespace %s, which separates its keys and users from all others", namespace)
	return !exists, nil
}

func (p *Setup) hasNamespace(ctx context.Context, namespace string) (bool, error) {
	r := request{what: "listing namespaces", method: http.MethodGet, path: "/namespaces", as: p.root}
	a, err := p.store.expect(ctx, r, http.StatusOK)
	if err != nil {
		return false, err
	}
	var list []struct{ ID string }
	if err := decode(r.what, a.body, &list); err != nil {
		return false, err
	}
	return slices.ContainsFunc(list, func(n struct{ ID string }) bool { return n.ID == namespace }), nil
}

func (p *Setup) createNamespace(ctx context.Context, namespace string) error {
	r := request{what: "creating namespace " + namespace, method: http.MethodPut,
		path: "/namespaces/" + url.PathEscape(namespace), as: p.root}
	_, err := p.store.expect(ctx, r, http.StatusNoContent, http.StatusCreated, http.StatusConflict)
	return err
}

// readRole returns the role of a user, and whether the user exists.
func (p *Setup) readRole(ctx context.Context, user string, as *credential) (role string, exists bool, err error) {
	r := request{what: "reading user " + user, method: http.MethodGet, path: userPath(user), as: as}
	a, err := p.store.expect(ctx, r, http.StatusOK, http.StatusNotFound)
	if err != nil || a.status == http.StatusNotFound {
		return "", false, err
	}
	var data struct {
		Role string `json:"role"`
	}
	err = decode(r.what, a.body, &data)
	return data.Role, true, err
}

// readNewPassphrase reads the passphrase of a user that does not exist, before anything is created.
func (p *Setup) readNewPassphrase(ctx context.Context, c *credential) error {
	const shortest, longest = 10, 200 // bytes; the schema Passphrase of the API
	if c.source == pin.Prompt {
		return failure.New(failure.Invalid, "cannot prompt for the passphrase of a new user (%s)", c.user).
			WithHint("use file:, env: or exec:, so that a typing error locks nobody out")
	}
	c.login.forget()
	if err := p.store.readPassphrase(ctx, c); err != nil {
		return err
	}
	if n := len(c.secret.Bytes()); n < shortest || n > longest {
		return failure.New(failure.Invalid, "the passphrase of user %s has %d bytes, and a NetHSM accepts %d to %d", c.user,
			n, shortest, longest).
			WithHint("generate another, as with: head -c 24 /dev/urandom | base64")
	}
	return nil
}

// createUser creates a user whose passphrase readNewPassphrase has read.
func (p *Setup) createUser(ctx context.Context, c *credential, role string, as *credential) error {
	body, err := json.Marshal(map[string]string{"realName": c.user, "role": role, "passphrase": string(c.secret.Bytes())})
	if err != nil {
		return err
	}
	defer clear(body)
	_, err = p.store.expect(ctx, request{
		what: "creating user " + c.user, method: http.MethodPut, path: userPath(c.user), body: body, as: as,
		took: func(ctx context.Context) (bool, error) {
			now, exists, err := p.readRole(ctx, c.user, as)
			return exists && now == role, err
		},
		uncertain: "the user may exist: run this again to see",
	}, http.StatusCreated, http.StatusNoContent)
	return err
}

// planOperator plans the operator, its tag, and a remark on which other keys it can use.
func (p *Setup) planOperator(ctx context.Context, namespaceMissing bool) error {
	user := p.store.settings.NetHSM.User
	var exists bool
	var tags []string
	if !namespaceMissing {
		var err error
		if exists, tags, err = p.readOperator(ctx, user); err != nil {
			return err
		}
	}
	if !exists {
		if err := p.readNewPassphrase(ctx, p.store.reader); err != nil {
			return err
		}
	}
	p.add(exists, func(ctx context.Context) error {
		return p.createUser(ctx, p.store.reader, "Operator", p.store.admin)
	}, "user %s (Operator), who can use keys and change none", user)
	p.add(slices.Contains(tags, p.request.Tag), func(ctx context.Context) error {
		return p.addTag(ctx, "user "+user, userPath(user)+"/tags/")
	}, "tag %s for user %s%s", p.request.Tag, user, otherTags("besides its tags ", tags, p.request.Tag))
	if namespaceMissing {
		return nil
	}
	return p.noteUsableKeys(ctx, user, tags)
}

// readOperator reports whether the operator exists, and returns its tags.
func (p *Setup) readOperator(ctx context.Context, user string) (exists bool, tags []string, err error) {
	role, exists, err := p.readRole(ctx, user, p.store.admin)
	if err != nil && namespaceOf(user) != "" && p.request.Root == "" && errors.Is(err, errRejected) {
		return false, nil, failure.New(failure.Denied, "%w", err).
			WithHint("if the namespace does not exist yet, add --root-administrator NAME and --root-pin-source; if it does, " +
				"check the passphrase")
	}
	if err != nil || !exists {
		return false, nil, err
	}
	if role != "Operator" {
		return false, nil, failure.New(failure.Conflict, "user %s exists with the role %s", user, truncate(role)).
			WithHint("name another user: the user that signs must be an operator")
	}
	r := request{what: "reading the tags of user " + user, method: http.MethodGet, path: userPath(user) + "/tags",
		as: p.store.admin}
	a, err := p.store.expect(ctx, r, http.StatusOK)
	if err != nil {
		return false, nil, err
	}
	return true, tags, decode(r.what, a.body, &tags)
}
