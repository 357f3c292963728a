package nethsm

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

func namespaceOf(user string) string {
	namespace, _, found := strings.Cut(user, "~")
	if !found {
		return ""
	}
	return namespace
}

func prefix(namespace string) string {
	if namespace == "" {
		return ""
	}
	return namespace + "~"
}

// lookAtNamespace reports whether the namespace is still to be made, so that there is nothing in it to look at.
func (p *Setup) lookAtNamespace(ctx context.Context, namespace, admin string) (fresh bool, err error) {
	if namespace == "" || p.order.Root == "" {
		return false, nil
	}
	p.root = &credential{user: p.order.Root, source: p.order.RootPINSource}
	r := request{what: "looking for the namespace", method: http.MethodGet, path: "/namespaces", as: p.root}
	a, err := p.store.wanted(ctx, r, http.StatusOK)
	if err != nil {
		return false, err
	}
	var list []struct{ ID string }
	if err := decode(r.what, a.body, &list); err != nil {
		return false, err
	}
	exists := slices.ContainsFunc(list, func(n struct{ ID string }) bool { return n.ID == namespace })
	_, there, err := p.role(ctx, admin, p.root)
	if err != nil {
		return false, err
	}
	if exists && !there {
		return false, failure.New(failure.Denied,
			"the namespace %s is there, but its administrator %s is not, and nobody outside of it can make one", namespace,
			admin).
			WithHint("let another administrator of the namespace make it; or name that one as administrator")
	}
	if !there {
		if err := p.newPassphrase(ctx, p.store.admin); err != nil {
			return false, err
		}
	}
	// In this order: once there is the namespace, only its own administrator can make users in it.
	p.add(there, func() error { return p.makeUser(ctx, p.store.admin, "Administrator", p.root) },
		"user %s (Administrator), for keys and users of the namespace", admin)
	p.add(exists, func() error {
		r := request{what: "making namespace " + namespace, method: http.MethodPut,
			path: "/namespaces/" + url.PathEscape(namespace), as: p.root}
		_, err := p.store.wanted(ctx, r, http.StatusNoContent, http.StatusCreated, http.StatusConflict)
		return err
	}, "namespace %s, which keeps its keys and users apart from all others", namespace)
	return !exists, nil
}

// role returns the role of a user.
func (p *Setup) role(ctx context.Context, user string, as *credential) (role string, there bool, err error) {
	r := request{what: "looking for user " + user, method: http.MethodGet, path: userPath(user), as: as}
	a, err := p.store.wanted(ctx, r, http.StatusOK, http.StatusNotFound)
	if err != nil || a.status == http.StatusNotFound {
		return "", false, err
	}
	var data struct {
		Role string `json:"role"`
	}
	err = decode(r.what, a.body, &data)
	return data.Role, true, err
}

func userPath(user string) string { return "/users/" + url.PathEscape(user) }

// newPassphrase fetches the passphrase of a user that is to be made, before anything is.
func (p *Setup) newPassphrase(ctx context.Context, c *credential) error {
	const shortest, longest = 10, 200 // bytes; the schema Passphrase of the API
	if c.source == pin.Prompt {
		return failure.New(failure.Invalid, "the passphrase of a new user (%s) can't be prompted for", c.user).
			WithHint("use file:, env: or exec:, so that what is typed once and mistyped locks nobody out")
	}
	if err := p.store.ready(ctx, c); err != nil {
		return err
	}
	if n := len(c.secret.Bytes()); n < shortest || n > longest {
		return failure.New(failure.Invalid,
			"the passphrase of user %s has %d bytes; a NetHSM takes %d to %d", c.user, n, shortest, longest).
			WithHint("make another, as with: head -c 24 /dev/urandom | base64")
	}
	return nil
}

func (p *Setup) makeUser(ctx context.Context, c *credential, role string, as *credential) error {
	body, err := json.Marshal(map[string]string{"realName": c.user, "role": role, "passphrase": string(c.secret.Bytes())})
	if err != nil {
		return err
	}
	defer clear(body)
	_, err = p.store.wanted(ctx, request{
		what: "making user " + c.user, method: http.MethodPut, path: userPath(c.user), body: body, as: as,
		done:   func() (bool, error) { now, there, err := p.role(ctx, c.user, as); return there && now == role, err },
		unsure: "it may have been made: run this again to see",
	}, http.StatusCreated, http.StatusNoContent)
	return err
}

func (p *Setup) lookAtOperator(ctx context.Context, user string, fresh bool) error {
	var there bool
	var tags []string
	if !fresh {
		role, exists, err := p.role(ctx, user, p.store.admin)
		if err != nil {
			if namespaceOf(user) != "" && p.order.Root == "" && errors.Is(err, errStranger) {
				return failure.New(failure.Denied, "%w", err).
					WithHint("if the namespace is not there yet, add --root-administrator NAME and --root-pin-source; if it is, check " +
						"the passphrase")
			}
			return err
		}
		if exists && role != "Operator" {
			return failure.New(failure.Invalid, "user %s is there, and has the role %s", user, clip(role)).
				WithHint("name another user: one that signs should do nothing else")
		}
		if there = exists; there {
			r := request{what: "looking for the tags of user " + user, method: http.MethodGet, path: userPath(user) + "/tags",
				as: p.store.admin}
			a, err := p.store.wanted(ctx, r, http.StatusOK)
			if err != nil {
				return err
			}
			if err := decode(r.what, a.body, &tags); err != nil {
				return err
			}
		}
	}
	if !there {
		if err := p.newPassphrase(ctx, p.store.reader); err != nil {
			return err
		}
	}
	p.add(there, func() error { return p.makeUser(ctx, p.store.reader, "Operator", p.store.admin) },
		"user %s (Operator), who can use keys and change none", user)
	p.add(slices.Contains(tags, p.order.Tag), func() error { return p.tag(ctx, "user "+user, userPath(user)+"/tags/") },
		"tag %s for user %s%s", p.order.Tag, user,
		others("beside its tags ", tags, p.order.Tag))
	return p.lookAtOtherKeys(ctx, user, fresh, tags)
}
