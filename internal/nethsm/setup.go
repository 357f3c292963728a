package nethsm

import (
	"context"
	"fmt"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// SetupRequest describes what a signing pipeline needs: a key that the operator of the settings can use because both
// have a tag.
type SetupRequest struct {
	Request key.Request // its label is the key ID
	Tag     string

	// Root is an administrator outside of any namespace, who creates the namespace and its administrator; "" when they
	// exist.
	Root, RootPINSource string
}

// Setup is a plan to create what a request needs and what the NetHSM does not have yet.
type Setup struct {
	Steps []Step

	store   *Store
	root    *credential
	request SetupRequest
}

// Step is one object that exists, or that Run creates.
type Step struct {
	What string
	Done bool
	do   func(context.Context) error
}

// Prepare compares a request with the NetHSM. It creates nothing. The caller closes the Setup.
func (b *Backend) Prepare(ctx context.Context, s *config.Settings, r SetupRequest) (*Setup, error) {
	r.Request.Tags = []string{r.Tag}
	if _, err := newGeneration(r.Request); err != nil {
		return nil, err
	}
	store, err := b.open(s)
	if err != nil {
		return nil, err
	}
	p := &Setup{store: store, request: r}
	if err := p.plan(ctx); err != nil {
		store.Close()
		return nil, err
	}
	return p, nil
}

// Close closes the connections.
func (p *Setup) Close() error { return p.store.Close() }

// Run does the steps that are not done. It calls notify before each of them.
func (p *Setup) Run(ctx context.Context, notify func(step string)) error {
	for i := range p.Steps {
		if step := &p.Steps[i]; !step.Done {
			notify(step.What)
			if err := step.do(ctx); err != nil {
				return err
			}
			step.Done = true
		}
	}
	return nil
}

func (p *Setup) add(done bool, do func(context.Context) error, format string, args ...any) {
	p.Steps = append(p.Steps, Step{fmt.Sprintf(format, args...), done, do})
}

// plan checks the request and makes the steps.
func (p *Setup) plan(ctx context.Context) error {
	if err := p.checkNames(); err != nil {
		return err
	}
	namespaceMissing, err := p.planNamespace(ctx)
	if err != nil {
		return err
	}
	if err := p.planOperator(ctx, namespaceMissing); err != nil {
		return err
	}
	return p.planKey(ctx, namespaceMissing)
}

// checkNames checks the users and the tag without a request.
func (p *Setup) checkNames() error {
	if p.store.adminErr != nil {
		return p.store.adminErr
	}
	if err := checkOperator(p.store.settings.NetHSM); err != nil {
		return err
	}
	user, admin := p.store.settings.NetHSM.User, p.store.settings.NetHSM.Administrator
	namespace := namespaceOf(user)
	if user == admin || namespace != namespaceOf(admin) {
		return failure.New(failure.Invalid, "administrator %s cannot manage user %s", admin, user).
			WithHint("name an administrator of the same namespace, as in administrator: " + prefix(namespace) + "admin")
	}
	if !isKeyID(p.request.Tag) {
		return failure.New(failure.Invalid, "invalid tag %q", p.request.Tag).WithHint(`use letters, digits and "_.-"`)
	}
	if p.request.Root != "" && namespace == "" {
		return failure.New(failure.Invalid, "administrator %s has no namespace to create: user %s is in none",
			p.request.Root, user).
			WithHint("leave out --root-administrator; or name a user and an administrator in a namespace, as in " +
				"signing~operator and signing~admin")
	}
	return nil
}

// namespaceOf returns the namespace of a user, or "".
func namespaceOf(user string) string {
	namespace, _, found := strings.Cut(user, "~")
	if !found {
		return ""
	}
	return namespace
}

// prefix returns what the names of users in a namespace begin with.
func prefix(namespace string) string {
	if namespace == "" {
		return ""
	}
	return namespace + "~"
}
