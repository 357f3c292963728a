package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// newRoot returns a root of tags, with one key for all roles.
func newRoot(t *testing.T) string {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := tuf.NewSignerOf(private.Public(), func(_ context.Context, data []byte, _ crypto.SignerOpts) ([]byte, error) {
		sum := sha256.Sum256(data)
		return ecdsa.SignASN1(rand.Reader, private, sum[:])
	})
	if err != nil {
		t.Fatal(err)
	}
	one := tuf.RoleKeys{Keys: []*tuf.Key{s.Key}, Threshold: 1}
	root, err := tuf.NewRoot(one, one, one, one)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.Sign(t.Context(), []*tuf.Signer{s}); err != nil {
		t.Fatal(err)
	}
	data, err := root.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// taggedPolicy lets the publisher of a repository sign snapshot and timestamp.
const taggedPolicy = `version: 1
keys:
  snapshot:
    key: pkcs11:token=signing;object=snapshot
    formats: [tuf]
    use:
    - name: publisher
      when: caller.issuer == "publisher" && caller.subject == "registry.example.com/app" && artifact.name == "snapshot"
      limit: 1000 per day
  timestamp:
    key: pkcs11:token=signing;object=timestamp
    formats: [tuf]
    use:
    - name: publisher
      when: caller.issuer == "publisher" && caller.subject == "registry.example.com/app" && artifact.name == "timestamp"
`

// TestCheckConfigTags holds the section tags against the policy, and verifies the root.
func TestCheckConfigTags(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file, old, replacement string
		want                   string // of the output; it is valid if that is "" or begins with "warning: "
	}{
		"valid": {"config.yaml", "version: 1", "version: 1", ""},
		"root": {"root.json", `"sig": "30`, `"sig": "31`,
			"config.yaml: tags[0].root: cannot use the root of tags DIR/root.json: "},
		"absent root": {"config.yaml", "DIR/root.json", "DIR/absent.json", "cannot read a file of the config: open "},
		"absent key": {"policy.yaml", "  timestamp:", "  other:",
			`config.yaml: tags[0].timestamp: the policy has no key "timestamp" (name a key of the policy)`},
		"format": {"policy.yaml", "object=snapshot\n    formats: [tuf]", "object=snapshot\n    formats: [dsse]",
			`config.yaml: tags[0].snapshot: the key "snapshot" of the policy does not sign the format tuf (add tuf`},
		"other role": {"policy.yaml", `artifact.name == "timestamp"`, `artifact.name == "targets"`,
			`warning: DIR/config.yaml: tags[0].timestamp: no rule of the key "timestamp" lets the publisher of ` +
				`registry.example.com/app sign: publisher: `},
		"waits": {"policy.yaml", "limit: 1000 per day", "time-lock: 1h",
			`warning: DIR/config.yaml: tags[0].snapshot: no rule of the key "snapshot" lets the publisher of ` +
				`registry.example.com/app sign: publisher: it has approvals or a time-lock`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := initialised(t)
			in := func(text string) string { return strings.ReplaceAll(text, "DIR", dir) }
			for file, text := range map[string]string{"policy.yaml": taggedPolicy, "root.json": newRoot(t)} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			edit(t, filepath.Join(dir, "config.yaml"), "administrators:", in("tags:\n- {repository: registry.example.com/app,"+
				" root: DIR/root.json, snapshot: snapshot, timestamp: timestamp}\nadministrators:"))
			edit(t, filepath.Join(dir, c.file), in(c.old), in(c.replacement))
			out, err := runs("check-config", "--config", filepath.Join(dir, "config.yaml"))
			good := c.want == "" || strings.HasPrefix(c.want, "warning: ")
			if !strings.Contains(out, in(c.want)) || good != (err == nil) || !good && !failure.Is(err, failure.Invalid) {
				t.Errorf("%v\n%s", err, out)
			}
			if c.want == "" && strings.Contains(out, "tags") {
				t.Error(out)
			}
		})
	}
}
