package nethsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// Order is what a pipeline needs: a key that the operator of the settings may use by a tag, and nothing else by it.
type Order struct {
	Request key.Request // Label is the key ID
	Tag     string

	// Root is an administrator outside of any namespace, who makes a namespace and its administrator; "" when they are
	// there.
	Root, RootPINSource string
}

// Setup is an order, held against what the NetHSM has already.
type Setup struct {
	Steps []Step

	store *Store
	root  *credential
	order Order
}

// Step is one thing that is there, or is to be made.
type Step struct {
	What string
	Done bool
	do   func() error
}

// Prepare looks at what is there, and makes nothing.
func Prepare(ctx context.Context, s *config.Settings, o Order) (*Setup, error) {
	o.Request.Tags = []string{o.Tag}
	if _, err := terms(o.Request); err != nil {
		return nil, err
	}
	store, err := Open(s)
	if err != nil {
		return nil, err
	}
	p := &Setup{store: store, order: o}
	if err := p.look(ctx); err != nil {
		store.Close()
		return nil, err
	}
	return p, nil
}

// Close drops the connections.
func (p *Setup) Close() error { return p.store.Close() }

// Run does what is not done, telling of each step before it.
func (p *Setup) Run(say func(what string)) error {
	for i := range p.Steps {
		if step := &p.Steps[i]; !step.Done {
			say(step.What)
			if err := step.do(); err != nil {
				return err
			}
			step.Done = true
		}
	}
	return nil
}

func (p *Setup) add(done bool, do func() error, format string, args ...any) {
	p.Steps = append(p.Steps, Step{fmt.Sprintf(format, args...), done, do})
}

func namespaceOf(user string) string {
	namespace, _, found := strings.Cut(user, "~")
	if !found {
		return ""
	}
	return namespace
}

func (p *Setup) look(ctx context.Context) error {
	if p.store.noRoot != nil {
		return p.store.noRoot
	}
	if p.store.settings.NetHSM.User == "" {
		return p.store.noUser
	}
	user, admin := p.store.settings.NetHSM.User, p.store.settings.NetHSM.Administrator
	namespace := namespaceOf(user)
	if user == admin || namespace != namespaceOf(admin) {
		return failure.New(failure.Invalid, "user %s and administrator %s can't work together", user, admin).
			WithHint("name an administrator of the same namespace, as in administrator: " +
				prefix(namespace) + "admin")
	}
	uri, err := config.ParseURI(config.NetHSMScheme + p.order.Tag)
	if err != nil || uri.Object == "" || strings.HasSuffix(uri.Object, "*") {
		return failure.New(failure.Invalid, "%q can't be a tag", p.order.Tag).WithHint(`use letters, digits and "_.-"`)
	}
	if p.order.Root != "" && namespace == "" {
		return failure.New(failure.Invalid,
			"user %s is in no namespace, so administrator %s has none to make", user, p.order.Root).
			WithHint("leave it out; or name a user and an administrator in a namespace, as in signing~operator and " +
				"signing~admin")
	}
	fresh, err := p.lookAtNamespace(ctx, namespace, admin)
	if err != nil {
		return err
	}
	if err := p.lookAtOperator(ctx, user, fresh); err != nil {
		return err
	}
	return p.lookAtKey(ctx, fresh)
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

// lookAtOtherKeys shows which other keys of the namespace the operator can use, by its other tags or because they have
// none. Who has more keys than the limit is told that this was not looked at: each costs a request.
func (p *Setup) lookAtOtherKeys(ctx context.Context, user string, fresh bool, tags []string) error {
	const limit = 100
	if fresh {
		return nil
	}
	r := request{what: "listing keys", method: http.MethodGet, path: "/keys"}
	a, err := p.store.change(ctx, r, http.StatusOK)
	if err != nil {
		return err
	}
	ids, err := parseKeyList(a.body)
	if err != nil {
		return malformed(r.what, err)
	}
	if len(ids) > limit {
		p.add(true, nil, "%d other keys: user %s can use those that have no tag, and those of its tags", len(ids), user)
		return nil
	}
	var usable []string
	for _, id := range ids {
		d, err := (&Key{store: p.store, id: id}).describe(ctx, p.store.change)
		if err != nil {
			return err
		}
		restricted := len(d.Restrictions.Tags) > 0
		if id != p.order.Request.Label && (!restricted ||
			slices.ContainsFunc(d.Restrictions.Tags,
				func(t string) bool { return t == p.order.Tag || slices.Contains(tags, t) })) {
			usable = append(usable, id)
		}
	}
	if len(usable) > 0 {
		p.add(true, nil, "other keys that user %s can use, as they have no tag or one of its tags: %s", user,
			clip(strings.Join(usable, ", ")))
	}
	return nil
}

func (p *Setup) tag(ctx context.Context, what, path string) error {
	r := request{what: "giving " + what + " the tag " + p.order.Tag, method: http.MethodPut,
		path: path + url.PathEscape(p.order.Tag), as: p.store.admin}
	_, err := p.store.wanted(ctx, r, http.StatusNoContent, http.StatusNotModified)
	return err
}

func (p *Setup) lookAtKey(ctx context.Context, fresh bool) error {
	k := &Key{store: p.store, id: p.order.Request.Label}
	if !fresh {
		there, err := k.exists(ctx, p.store.change)
		if err != nil {
			return err
		}
		if there {
			return p.lookAtOldKey(ctx, k)
		}
	}
	p.add(false, func() error { _, err := p.store.generate(ctx, p.order.Request); return err },
		"key %s (%s, to %s), for users with the tag %s alone", k.name(), p.order.Request.Spec.Name, p.order.Request.Usage,
		p.order.Tag)
	return nil
}

// lookAtOldKey takes a key that is there, if it is of the kind that was ordered.
func (p *Setup) lookAtOldKey(ctx context.Context, k *Key) error {
	d, err := k.describe(ctx, p.store.change)
	if err != nil {
		return err
	}
	var has key.Spec
	if public, err := d.public(); err == nil {
		has, _ = key.SpecOf(public) // another is no spec, and so another than was ordered
	}
	if has != p.order.Request.Spec {
		return failure.New(failure.Invalid, "the key %s is there, and is no %s key",
			k.name(), p.order.Request.Spec.Name).
			WithHint("choose another --key, or its --spec")
	}
	wanted, err := terms(p.order.Request)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(wanted.Mechanisms, func(m string) bool { return !slices.Contains(d.Mechanisms, m) }) {
		return failure.New(failure.Invalid, "the key %s is there, and can't %s: it was made for %s",
			k.name(), p.order.Request.Usage, clip(strings.Join(d.Mechanisms, ", "))).
			WithHint("choose another --key, or its --usage")
	}
	p.add(true, nil, "key %s (%s)", k.name(), has.Name)
	p.add(slices.Contains(d.Restrictions.Tags, p.order.Tag),
		func() error { return p.tag(ctx, "key "+k.name(), keyPath(k.id)+"/restrictions/tags/") },
		"key %s for users with the tag %s alone%s", k.name(), p.order.Tag,
		others("and, as before, those with ", d.Restrictions.Tags, p.order.Tag))
	return nil
}

// others lists the tags beside this one.
func others(words string, tags []string, tag string) string {
	rest := slices.DeleteFunc(slices.Clone(tags), func(t string) bool { return t == tag })
	if len(rest) == 0 {
		return ""
	}
	return " (" + words + clip(strings.Join(rest, ", ")) + ")"
}
