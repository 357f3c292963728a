package nethsm

import (
	"context"
	"fmt"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
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
