package approval

import "github.com/notation-hsm/notation-hsm/internal/failure"

// Verify returns the approval of an envelope whose signature verifies under a credential. It fails with Denied for a
// signature that does not, or that another credential made.
func (e *Envelope) Verify(c *Credential) (*Approval, error) {
	return nil, failure.New(failure.Unsupported, "cannot verify approvals of kind %q", c.Kind)
}
