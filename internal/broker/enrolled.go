package broker

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Enrolled returns the credential of a public key, as sha256:HEX, and the name of its person. It fails with NotFound
// for a key that is not enrolled, and for one of a person whom the policy in force does not name.
func (b *Broker) Enrolled(ctx context.Context, kind approval.Kind, public []byte) (id, person string, err error) {
	pseudonym := b.pseudonym("public", string(public))
	err = b.look(ctx, func(d *decision) {
		for name, c := range d.Credentials {
			if c.Public == pseudonym && c.Kind == kind {
				id, person = name, b.inForce.Load().names[c.Person]
			}
		}
	})
	if err == nil && person == "" {
		err = failure.New(failure.NotFound, "the key is not enrolled").
			WithHint("enrol it with 'hsm-broker approver add'")
	}
	return id, person, err
}
