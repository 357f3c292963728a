package nethsm

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// noteUsableKeys adds a remark on which other keys of the namespace the operator can use: those without a tag, and
// those with one of its tags. With more than 100 keys the remark names none, because each takes a request.
func (p *Setup) noteUsableKeys(ctx context.Context, user string, tags []string) error {
	const limit = 100
	ids, err := listKeys(ctx, "/keys", p.store.change)
	if err != nil {
		return err
	}
	if len(ids) > limit {
		p.add(true, nil, "%d other keys: user %s can use those without a tag, and those with one of its tags", len(ids), user)
		return nil
	}
	tags = append(tags[:len(tags):len(tags)], p.request.Tag)
	var usable []string
	for _, id := range ids {
		if id == p.request.Request.Label {
			continue
		}
		d, err := p.store.key(id).describe(ctx, p.store.change)
		if err != nil {
			return err
		}
		if has := d.Restrictions.Tags; len(has) == 0 ||
			slices.ContainsFunc(has, func(t string) bool { return slices.Contains(tags, t) }) {
			usable = append(usable, id)
		}
	}
	if len(usable) > 0 {
		p.add(true, nil, "other keys that user %s can use, without a tag or with one of its tags: %s", user,
			truncate(strings.Join(usable, ", ")))
	}
	return nil
}

// addTag adds the tag to a user or a key, whose tags have this path.
func (p *Setup) addTag(ctx context.Context, what, path string) error {
	r := request{what: "adding tag " + p.request.Tag + " to " + what, method: http.MethodPut,
		path: path + url.PathEscape(p.request.Tag), as: p.store.admin}
	_, err := p.store.expect(ctx, r, http.StatusNoContent, http.StatusNotModified)
	return err
}

// planKey plans the key.
func (p *Setup) planKey(ctx context.Context, namespaceMissing bool) error {
	k := p.store.key(p.request.Request.Label)
	if !namespaceMissing {
		exists, err := k.exists(ctx, p.store.change)
		if err != nil {
			return err
		}
		if exists {
			return p.planExistingKey(ctx, k)
		}
	}
	p.add(false, func(ctx context.Context) error {
		_, err := p.store.generate(ctx, p.request.Request)
		return err
	}, "key %s (%s, to %s), only for users with the tag %s", k.name(), p.request.Request.Spec.Name,
		p.request.Request.Usage, p.request.Tag)
	return nil
}

// planExistingKey plans the tag of a key that exists. It fails with Conflict if the key has another spec than
// requested, or lacks a mechanism.
func (p *Setup) planExistingKey(ctx context.Context, k *Key) error {
	d, err := k.describe(ctx, p.store.change)
	if err != nil {
		return err
	}
	var has key.Spec
	if public, err := d.public(); err == nil {
		has, _ = key.SpecOf(public) // without a spec it differs from the request
	}
	if has != p.request.Request.Spec {
		return failure.New(failure.Conflict, "key %s exists, and is not an %s key", k.name(),
			p.request.Request.Spec.Name).
			WithHint("choose another --key, or its --spec")
	}
	wanted, err := newGeneration(p.request.Request)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(wanted.Mechanisms, func(m string) bool { return !slices.Contains(d.Mechanisms, m) }) {
		return failure.New(failure.Conflict, "key %s exists, and cannot %s: its mechanisms are %s", k.name(),
			p.request.Request.Usage, truncate(strings.Join(d.Mechanisms, ", "))).
			WithHint("choose another --key, or its --usage")
	}
	p.add(true, nil, "key %s (%s)", k.name(), has.Name)
	p.add(slices.Contains(d.Restrictions.Tags, p.request.Tag), func(ctx context.Context) error {
		return p.addTag(ctx, "key "+k.name(), keyPath(k.id)+"/restrictions/tags/")
	}, "key %s only for users with the tag %s%s", k.name(), p.request.Tag,
		otherTags("and, as before, those with ", d.Restrictions.Tags, p.request.Tag))
	return nil
}

// otherTags returns the tags besides this one, in parentheses after an introduction, or "" if there are none.
func otherTags(introduction string, tags []string, tag string) string {
	rest := slices.DeleteFunc(slices.Clone(tags), func(t string) bool { return t == tag })
	if len(rest) == 0 {
		return ""
	}
	return " (" + introduction + truncate(strings.Join(rest, ", ")) + ")"
}
