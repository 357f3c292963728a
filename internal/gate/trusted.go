package gate

import (
	"cmp"
	"os"
	"path/filepath"

	"github.com/notaryproject/notation-go/dir"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/trust"
)

// trusted is what a trust directory says besides the trust stores.
type trusted struct {
	policy    *trustpolicy.Document
	tags      map[string]*trust.Pinned // the repositories whose tags have a root
	approvals trust.Required           // that signatures need
}

// readTrust reads the trust policy, the roots of tags and the approvals that signatures need. If an export replaces the
// policy meanwhile, it reads all again: a policy without the roots and approvals that it was exported with would accept
// more than the policy before or after it.
func readTrust(folder string) (*trusted, error) {
	const attempts = 10
	path := filepath.Join(folder, dir.PathTrustPolicy)
	for range attempts {
		before, beforeErr := os.Stat(path)
		policy, err := trustpolicy.LoadDocument()
		if err = cmp.Or(err, beforeErr); err != nil {
			return nil, unreadablePolicy(folder, err)
		}
		t := &trusted{policy: policy}
		if t.tags, err = trust.ReadTags(folder); err != nil {
			return nil, err
		}
		if t.approvals, err = trust.ReadApprovals(folder); err != nil {
			return nil, err
		}
		after, err := os.Stat(path)
		if err == nil && os.SameFile(before, after) && before.ModTime().Equal(after.ModTime()) {
			return t, nil
		}
	}
	return nil, failure.New(failure.Conflict, "cannot read the trust policy in %s: it changes meanwhile", folder).
		WithHint("try again when it is exported")
}
