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
