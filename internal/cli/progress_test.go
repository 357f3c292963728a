package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// TestProgress writes a line once an operation has taken two seconds, then one a second.
func TestProgress(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	clock := time.Unix(0, 0)
	ctx := withProgress(t.Context(), &out, func() time.Time { return clock })
	for _, activity := range []string{"listing keys", "listing public keys"} {
		for done := range 40 { // 100 ms each
			keystore.ReportProgress(ctx, activity, done, 40)
			clock = clock.Add(100 * time.Millisecond)
		}
	}
	const want = "listing keys: 20 of 40\nlisting keys: 30 of 40\n" +
		"listing public keys: 20 of 40\nlisting public keys: 30 of 40\n"
	if out.String() != want {
		t.Errorf("written: %q", out.String())
	}
}
