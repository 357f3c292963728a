package trust

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-go/verifier/trustpolicy"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// root returns a root.json of these keys, laid out over several lines as TUF tools write it.
func root(threshold int, keys ...string) Root {
	known, signatures := map[string]any{}, []any{}
	for _, key := range keys {
		signatures = append(signatures, map[string]any{"keyid": key, "sig": "00"})
		known[key] = map[string]any{"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256"}
	}
	data, err := json.MarshalIndent(map[string]any{"signatures": signatures, "signed": map[string]any{
		"_type": "root", "version": 1, "expires": "2036-01-01T00:00:00Z", "keys": known,
		"roles": map[string]any{"root": map[string]any{"keyids": keys, "threshold": threshold}},
	}}, "", " ")
	if err != nil {
		panic(err)
	}
	return data
}

// tagged is a manifest with the signer "alice" and a root for the tags of app.
func tagged(t testing.TB) string {
	t.Helper()
	path := manifest(t)
	if _, err := AddTags(t.Context(), path, Tags{Scope: app, Root: root(2, "a", "b", "c"), Stale: 72 * time.Hour},
		false); err != nil {
		t.Fatal(err)
	}
	return path
}

func addSigner(t testing.TB, path string, g Grant, cert *pair, subject string) {
	t.Helper()
	var err error
	if g.Cert, err = FromFile(file(t, cert), subject); err != nil {
		t.Fatal(err)
	}
	if _, err := Add(t.Context(), path, g); err != nil {
		t.Fatal(err)
	}
}

// TestTags adds, finds, replaces and removes roots of tags. None is replaced unless this is asked for.
func TestTags(t *testing.T) {
	t.Parallel()
	path := manifest(t)
	if _, err := Pin(path, app); !failure.Is(err, failure.NotFound) {
		t.Errorf("no root: %v", err)
	}
	path = tagged(t)
	for _, spelled := range []string{app, "REGISTRY.example.com/team/app", "registry.example.com:443/team/app"} {
		pin, err := Pin(path, spelled)
		if err != nil || string(pin.Root) != string(root(2, "a", "b",
			"c")) || pin.Stale != 72*time.Hour || pin.Threshold != 2 ||
			pin.Keys != 3 || pin.Version != 1 || pin.Until.Year() != 2036 || !strings.HasPrefix(pin.Fingerprint, "sha256:") {
			t.Errorf("%s: %+v, %v", spelled, pin, err)
		}
	}
	add := func(want failure.Kind, text string, tags Tags) {
		t.Helper()
		if _, err := AddTags(t.Context(), path, tags, false); !failure.Is(err, want) || !strings.Contains(err.Error(),
			text) ||
			failure.From(err).Hint == "" {
			t.Errorf("the failure is %v, not %q", err, text)
		}
	}
	other := root(1, "d")
	add(failure.Conflict, "another root already", Tags{Scope: "registry.example.com:443/team/app", Root: other})
	add(failure.Conflict, "another stale already, 72h", Tags{Scope: app, Root: root(2, "a", "b", "c"), Stale: time.Hour})
	add(failure.Invalid, `"*"`, Tags{Scope: "*", Root: other})
	add(failure.Invalid, "is a pattern", Tags{Scope: "registry.example.com/*", Root: other})
	add(failure.Invalid, "is not a repository", Tags{Scope: app + ":v1", Root: other})
	add(failure.Invalid, "whole seconds", Tags{Scope: app, Root: other, Stale: time.Millisecond})
	add(failure.Invalid, "whole seconds", Tags{Scope: app, Root: other, Stale: -time.Hour})
	add(failure.Invalid, "whole seconds", Tags{Scope: app, Root: other, Stale: 9000 * time.Hour})
	if same, err := AddTags(t.Context(), path, Tags{Scope: app, Root: root(2, "a", "b", "c")}, false); err != nil ||
		same.Stale != 72*time.Hour {
		t.Errorf("the same again: %+v, %v", same, err)
	}
	if _, err := AddTags(t.Context(), path, Tags{Scope: app, Root: other}, true); err != nil {
		t.Fatal(err)
	}
	if pin, err := Pin(path, app); err != nil || string(pin.Root) != string(other) || pin.Stale != 0 {
		t.Errorf("after --replace: %+v, %v", pin, err)
	}
	for _, want := range []error{nil, failure.New(failure.NotFound, "")} {
		if err := RemoveTags(t.Context(), path, app); (err == nil) != (want == nil) {
			t.Errorf("remove: %v", err)
		}
	}
}

// TestRoots refuses roots that no threshold can be read from, or that are too large.
func TestRoots(t *testing.T) {
	t.Parallel()
	good := string(root(1, "a"))
	for name, c := range map[string]struct{ text, fails string }{
		"no JSON":          {"root", "not JSON"},
		"a name twice":     {strings.Replace(good, `"signatures"`, `"signatures": [], "signatures"`, 1), "twice"},
		"something behind": {good + "{}", "follows"},
		"another role":     {strings.Replace(good, `"_type": "root"`, `"_type": "targets"`, 1), `type is "targets"`},
		"no version":       {strings.Replace(good, `"version": 1`, `"version": 0`, 1), "version is 0"},
		"no threshold":     {string(root(0, "a")), "threshold is 0 of 1"},
		"a high threshold": {string(root(2, "a")), "threshold is 2 of 1"},
		"a key twice":      {string(root(2, "a", "a")), "threshold is 2 of 1"},
		"a missing key":    {strings.Replace(good, `"a": {`, `"b": {`, 1), `does not have its key "a"`},
		"a large one":      {good + strings.Repeat(" ", maxRoot), "more than"},
		"a deep one":       {strings.Repeat("[", 100), "deeper"},
		"no UTF-8":         {strings.Replace(good, `"root"`, "\"\xff\"", 1), "UTF-8"},
	} {
		if _, err := parseRoot([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseRoot([]byte(good)); err != nil {
		t.Error(err)
	}
	// one key of two has signed, twice
	twice := Tags{Scope: app, Root: Root(strings.Replace(string(root(2, "a", "b")), `"keyid": "b"`, `"keyid": "a"`, 1))}
	if _, err := AddTags(t.Context(), manifest(t), twice, false); err == nil || !strings.Contains(err.Error(),
		"lacks 1 signatures") {
		t.Errorf("a root that lacks a signature: %v", err)
	}
}

// TestTagsByHand changes the entry of a manifest by hand. Roots of every layout are written as they were read.
func TestTagsByHand(t *testing.T) {
	t.Parallel()
	path := tagged(t)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	if !strings.Contains(good, "  stale: 72h\n  root: |-\n    {\n") {
		t.Errorf("the manifest is\n%s", good)
	}
	for name, c := range map[string]struct{ from, to, fails string }{
		"another root":        {`"c": {`, `"d": {`, "does not have its key"},
		"another key":         {`ecdsa-sha2-nistp256`, `ecdsa-sha2-nistp384`, "does not have the fingerprint and the threshold"},
		"another threshold":   {"threshold: 2\n", "threshold: 1\n", "does not have the fingerprint and the threshold"},
		"another fingerprint": {"sha256:", "sha256:0", "does not have the fingerprint and the threshold"},
		"no unit":             {"72h", "72", "cannot construct"},
		"all repositories":    {"scope: " + app, `scope: "*"`, `the scope of tags is "*"`},
		"an unknown field":    {"stale:", "fresh:", "fresh"},
		"two roots": {"tags:\n", good[strings.Index(good, "tags:\n"):strings.Index(good, "signers:")],
			"have two roots"},
	} {
		changed := strings.Replace(good, c.from, c.to, 1)
		if _, err := parse([]byte(changed)); changed == good || err == nil || !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, layout := range []string{"%s", "%s\n", "\n%s\n\n", " %s\r\n"} {
		text := fmt.Sprintf(layout, root(1, "a"))
		if strings.Contains(layout, "\r") {
			text = strings.ReplaceAll(text, "\n", "\r\n")
		}
		if _, err := AddTags(t.Context(), path, Tags{Scope: app, Root: Root(text)}, true); err != nil {
			t.Fatal(err)
		}
		if pin, err := Pin(path, app); err != nil || string(pin.Root) != text {
			t.Errorf("%q is read as %q, %v", text, pin.Root, err)
		}
	}
}

// TestPaths refuses paths that would not count, and patterns that readers take for different ones.
func TestPaths(t *testing.T) {
	t.Parallel()
	path := tagged(t)
	bob := issue(t, name("bob"), false, nil)
	cert, err := FromFile(file(t, bob), "")
	if err != nil {
		t.Fatal(err)
	}
	const tools = "registry.example.com/team/tools"
	for name, c := range map[string]struct {
		grant Grant
		fails string
	}{
		"no root":         {Grant{Scopes: []string{app, tools}, Paths: []string{"v*"}}, `its scope "` + tools + `" have no root`},
		"all others":      {Grant{Scopes: []string{"*"}, Paths: []string{"v*"}}, `its scope "*" have no root`},
		"audit":           {Grant{Scopes: []string{tools}, Level: "audit", Paths: []string{"v*"}}, "everyone may sign"},
		"a slash":         {Grant{Scopes: []string{app}, Paths: []string{"v/*"}}, "is not a pattern"},
		"an empty one":    {Grant{Scopes: []string{app}, Paths: []string{""}}, "is not a pattern"},
		"an open class":   {Grant{Scopes: []string{app}, Paths: []string{"v[1"}}, "is not a pattern"},
		"a negated class": {Grant{Scopes: []string{app}, Paths: []string{"v[!1]"}}, "is not a pattern"},
		"an escape":       {Grant{Scopes: []string{app}, Paths: []string{`v\*`}}, "is not a pattern"},
		"one twice":       {Grant{Scopes: []string{app}, Paths: []string{"v*", "v*"}}, "twice"},
		"many": {Grant{Scopes: []string{app}, Paths: strings.Split(strings.Repeat("v,", 99), ",")},
			"more than 64"},
	} {
		c.grant.Name, c.grant.Cert = "bob", cert
		if _, err := Add(t.Context(), path, c.grant); !failure.Is(err, failure.Invalid) ||
			!strings.Contains(err.Error(), c.fails) || failure.From(err).Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	bobs := Grant{Name: "bob", Scopes: []string{app}, Paths: []string{"v*", "release-[0-9]?"}, Cert: cert}
	for _, paths := range [][]string{bobs.Paths, {"release-[0-9]?", "v*"}, nil} {
		bobs.Paths = paths
		if s, err := Add(t.Context(), path, bobs); err != nil || len(s.Paths) != 2 {
			t.Errorf("%v, %v", s, err)
		}
	}
	if _, err := Add(t.Context(), path, Grant{Name: "bob", Scopes: []string{app}, Paths: []string{"v*"}}); !failure.Is(err,
		failure.Conflict) {
		t.Errorf("other paths: %v", err)
	}
	if _, err := Add(t.Context(), path, Grant{Name: "alice", Scopes: []string{app},
		Paths: []string{"v*"}}); !failure.Is(err,
		failure.Conflict) {
		t.Errorf("paths for a signer of all tags: %v", err)
	}
	if err := RemoveTags(t.Context(), path, app); !failure.Is(err, failure.Invalid) {
		t.Errorf("a root that paths need: %v", err)
	}
	for _, export := range []func(string) ([]byte, error){noAttestor, Ratify} {
		if _, err := export(path); !failure.Is(err, failure.Unsupported) || !strings.Contains(err.Error(), app) {
			t.Errorf("a cluster: %v", err)
		}
	}
}

// TestAllows exports signers with and without paths, and asks which chains may sign which tags.
func TestAllows(t *testing.T) {
	t.Parallel()
	path, to := tagged(t), t.TempDir()
	bob, ca := issue(t, name("bob"), false, nil), issue(t, name("CA"), true, nil)
	carol, dave := issue(t, name("carol"), false, ca), issue(t, name("dave"), false, ca)
	middle := issue(t, name("middle"), true, ca)
	erin := issue(t, name("carol"), false, middle)
	stranger := issue(t, name("carol"), false, issue(t, name("CA"), true, nil))
	addSigner(t, path, Grant{Name: "bob", Scopes: []string{app}, Paths: []string{"release-*", "v[0-9]"}}, bob, "")
	done, err := Export(t.Context(), path, to)
	if err != nil || done.Tags != 1 || !slices.Equal(done.Restricted, []string{"bob"}) {
		t.Fatalf("%+v, %v", done, err)
	}
	check := func(wants map[string]bool, chain ...*pair) {
		t.Helper()
		pinned, err := ReadTags(to)
		if err != nil || len(pinned) != 1 || pinned[app] == nil || pinned[app].Stale() != 72*time.Hour ||
			string(pinned[app].Root) != string(root(2, "a", "b", "c")) {
			t.Fatalf("%+v, %v", pinned, err)
		}
		var certs []*x509.Certificate
		for _, p := range chain {
			certs = append(certs, p.cert)
		}
		for tag, want := range wants {
			if err := pinned[app].Allows(tag, certs); (err == nil) != want {
				t.Errorf("%s by %s: %v", tag, chain[0].cert.Subject, err)
			}
		}
	}
	m, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	check(map[string]bool{"v1": true, "latest": true}, &pair{m.find("alice").cert, nil})
	check(map[string]bool{"v1": true, "v12": false, "release-": true, "release-1.2": true, "latest": false,
		"xv1": false}, bob)
	check(map[string]bool{"v1": false}, stranger)

	// A CA with paths for one subject, and with others for everyone under it.
	path = manifest(t)
	if _, err := AddTags(t.Context(), path, Tags{Scope: app, Root: root(2, "a", "b", "c"), Stale: 72 * time.Hour},
		false); err != nil {
		t.Fatal(err)
	}
	if _, err := Remove(t.Context(), path, "alice", nil); err != nil {
		t.Fatal(err)
	}
	addSigner(t, path, Grant{Name: "carol", Scopes: []string{app}, Paths: []string{"release-*"}}, ca,
		"C=CH,ST=Zurich,O=Example,CN=carol")
	addSigner(t, path, Grant{Name: "everyone", Scopes: []string{app}, Paths: []string{"dev-*"}}, ca, "")
	if _, err := Export(t.Context(), path, to); err != nil {
		t.Fatal(err)
	}
	check(map[string]bool{"release-1": true, "dev-1": true, "v1": false}, carol, ca)
	check(map[string]bool{"release-1": true, "dev-1": true, "v1": false}, erin, middle, ca)
	check(map[string]bool{"release-1": false, "dev-1": true, "v1": false}, dave, ca)
	check(map[string]bool{"release-1": false, "dev-1": false}, stranger)
	check(map[string]bool{"release-1": false, "dev-1": false}, carol) // without the CA's certificate
	check(map[string]bool{"dev-1": false}, stranger, issue(t, name("CA"), true, nil))
}

// TestSignersOfTags lists those whom the trust policy accepts in a repository, and none where it accepts everyone or
// others decide.
func TestSignersOfTags(t *testing.T) {
	t.Parallel()
	path := tagged(t)
	addSigner(t, path, Grant{Name: "rest", Scopes: []string{"*"}}, issue(t, name("rest"), false, nil), "")
	names := func(others ...trustpolicy.TrustPolicy) (list []string) {
		m, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		pinned, err := m.pinned(others)
		if err != nil || len(pinned) != 1 {
			t.Fatal(pinned, err)
		}
		for _, s := range pinned[0].Signers {
			list = append(list, s.Name)
		}
		return list
	}
	theirs := func(scope string) trustpolicy.TrustPolicy {
		return trustpolicy.TrustPolicy{Name: "theirs", RegistryScopes: []string{scope}}
	}
	if got := names(theirs("registry.example.com/other")); !slices.Equal(got, []string{"alice"}) {
		t.Errorf("with a signer: %v", got)
	}
	if got := names(theirs(app)); got != nil {
		t.Errorf("with a statement of others: %v", got)
	}
	if _, err := Remove(t.Context(), path, "alice", nil); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"rest"}) {
		t.Errorf("without a signer: %v", got)
	}
	if _, err := Remove(t.Context(), path, "rest", nil); err != nil {
		t.Fatal(err)
	}
	if got := names(theirs("*")); got != nil {
		t.Errorf("with a statement of others for all: %v", got)
	}
	addSigner(t, path, Grant{Name: "rest", Scopes: []string{"*"}, Level: "audit"}, issue(t, name("rest"), false, nil), "")
	if got := names(); got != nil {
		t.Errorf("where everyone may sign: %v", got)
	}
}

// TestExportOrder stops an export at each of its steps: the roots in the file are those of the policy in force, and
// those of the next one.
func TestExportOrder(t *testing.T) {
	t.Parallel()
	path, to := tagged(t), t.TempDir()
	const tools = "registry.example.com/team/tools"
	scopes := func() []string {
		pinned, err := ReadTags(to)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Sorted(maps.Keys(pinned))
	}
	if _, err := Export(t.Context(), path, to); err != nil || !slices.Equal(scopes(), []string{app}) {
		t.Fatal(scopes(), err)
	}
	if err := RemoveTags(t.Context(), path, app); err != nil {
		t.Fatal(err)
	}
	if _, err := AddTags(t.Context(), path, Tags{Scope: tools, Root: root(1, "d")}, false); err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(to, "trustpolicy.json")
	if err := os.Rename(policy, policy+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(policy, "in the way"), 0o700); err != nil { // the policy cannot be replaced
		t.Fatal(err)
	}
	m, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	target, err := openFolder(to)
	if err != nil {
		t.Fatal(err)
	}
	tags, err := m.pinned(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := target.write(t.Context(), m, []byte("{}"), tags, nil); err == nil {
		t.Fatal("the policy was replaced")
	}
	if got := scopes(); !slices.Equal(got, []string{app, tools}) {
		t.Errorf("before the policy is replaced, the roots are for %v", got)
	}
	if err := os.RemoveAll(policy); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(policy+".moved", policy); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), path, to); err != nil || !slices.Equal(scopes(), []string{tools}) {
		t.Error(scopes(), err)
	}
	if err := RemoveTags(t.Context(), path, tools); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), path, to); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(to, tagsFile)); !os.IsNotExist(err) {
		t.Errorf("without a root, the file is %v", err)
	}
}

// TestReadTags refuses a file that it does not understand as a whole.
func TestReadTags(t *testing.T) {
	t.Parallel()
	path, to := tagged(t), t.TempDir()
	if pinned, err := ReadTags(to); err != nil || len(pinned) > 0 {
		t.Errorf("no file: %v, %v", pinned, err)
	}
	if _, err := Remove(t.Context(), path, "alice", nil); err != nil {
		t.Fatal(err)
	}
	addSigner(t, path, Grant{Name: "bob", Scopes: []string{app}, Paths: []string{"v*"}},
		issue(t, name("CA"), true, nil), "C=CH,ST=Zurich,O=Example,CN=bob")
	if _, err := Export(t.Context(), path, to); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(to, tagsFile)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	repository := good[strings.Index(good, "[")+1 : strings.LastIndex(good, "]")]
	for name, c := range map[string]struct{ from, to, fails string }{
		"empty":                {good, "", "not JSON"},
		"another version":      {`"version": 1`, `"version": 2`, "version 2 is not supported"},
		"no version":           {`"version": 1,`, ``, "version 0"},
		"an unknown field":     {`"version": 1`, `"version": 1, "expires": 1`, "unknown field"},
		"one of a signer":      {`"kind"`, `"threshold": 2, "kind"`, "unknown field"},
		"a repository twice":   {repository, repository + "," + repository, "twice"},
		"a null":               {repository, "null", "null"},
		"another spelling":     {app, "REGISTRY.example.com/team/app", "not the canonical name"},
		"all repositories":     {app, "*", "not the canonical name"},
		"no repository":        {app, "app", "not a repository"},
		"a negative stale":     {"259200", "-1", "stale is -1"},
		"a long stale":         {"259200", "9000000000000000", "stale is"},
		"no root":              {`"root": "`, `"root": "x`, "its root: "},
		"another kind":         {`"kind": "ca"`, `"kind": "key"`, "of kind"},
		"another fingerprint":  {`"fingerprint": "sha256:`, `"fingerprint": "sha1:`, "fingerprint"},
		"another subject":      {"C=CH,", "", "does not accept the subject"},
		"another path":         {`"v*"`, `"v/*"`, "is not a pattern"},
		"something behind":     {good, good + "{}", "follows"},
		"more than is allowed": {good, strings.Repeat(" ", maxTagsFile+1), "larger than"},
	} {
		changed := strings.Replace(good, c.from, c.to, 1)
		if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadTags(to); changed == good || err == nil || !strings.Contains(err.Error(), c.fails) ||
			failure.From(err).Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Export(t.Context(), path, to); err == nil {
			t.Errorf("%s: it was replaced", name)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadTags(to); err == nil {
		t.Error("a folder was read")
	}
}
