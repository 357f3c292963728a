package policy_test

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// TestTagsPage tries the rules of docs/tags-publisher.md on what the publisher and signers sign.
func TestTagsPage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/tags-publisher.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(version.*?|    - name.*?)```").FindAllSubmatch(text, -1)
	if len(blocks) != 2 {
		t.Fatalf("the page has %d policies and rules", len(blocks))
	}
	published := parse(t, string(blocks[0][1]))
	if w := published.Warnings(); len(w) > 0 {
		t.Error(w)
	}
	signed := parse(t, "version: 1\nkeys:\n  tuf-alice:\n    key: nethsm:alice\n    formats: [tuf]\n    use:\n"+string(blocks[1][1]))
	ci := policy.Caller{Issuer: "https://token.actions.githubusercontent.com",
		Claims: map[string]any{"repository": "example/app"}}
	many := map[string]string{}
	for i := range 600 { // about as many as a file has before it is split
		many[`targets["release-1.`+strconv.Itoa(i)+`"].hashes.sha256`] = strings.Repeat("0", 64)
		many[`targets["release-1.`+strconv.Itoa(i)+`"].length`] = "500"
	}
	publisher := func(repository string) policy.Caller {
		return policy.Caller{Issuer: "publisher", Subject: repository}
	}
	const app = "registry.example.com/team/app"
	for what, c := range map[string]struct {
		policy      *policy.Policy
		key         string
		caller      policy.Caller
		name        string
		annotations map[string]string
		want        bool
	}{
		"snapshot":      {published, "tuf-snapshot", publisher(app), "snapshot", nil, true},
		"timestamp":     {published, "tuf-timestamp", publisher(app), "timestamp", nil, true},
		"other role":    {published, "tuf-timestamp", publisher(app), "root", nil, false},
		"other app":     {published, "tuf-snapshot", publisher(app + "2"), "snapshot", nil, false},
		"other caller":  {published, "tuf-snapshot", policy.Caller{Issuer: "mtls", Subject: app}, "snapshot", nil, false},
		"no tag":        {signed, "tuf-alice", ci, "targets", map[string]string{"targets": "{}"}, true},
		"releases":      {signed, "tuf-alice", ci, "targets", many, true},
		"plain release": {signed, "tuf-alice", ci, "targets", map[string]string{"targets.release-1.length": "1"}, true},
		"other tag":     {signed, "tuf-alice", ci, "targets", map[string]string{"targets.v1.length": "1"}, false},
		"quoted tag":    {signed, "tuf-alice", ci, "targets", map[string]string{`targets["v1.0"].length`: "1"}, false},
		"root":          {signed, "tuf-alice", ci, "root", nil, false},
	} {
		d := c.policy.Decide(policy.Use, policy.Input{Key: c.key, Time: time.Now(), Caller: c.caller,
			Artifact: policy.Artifact{Format: "tuf", Name: c.name, Annotations: c.annotations}})
		if (len(d.Rules) == 1) != c.want {
			t.Errorf("%s: %+v", what, d)
		}
	}
}
