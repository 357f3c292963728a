package notaryv1_test

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/notaryv1"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	notary "github.com/notation-hsm/notation-hsm/softhsm-test/notaryv1"
)

// gun is the repository.
const gun = "registry.example.com/team/app"

// TestNotary reads a repository of 200 tags, 3 delegations and a threshold that Notary's own client made, from its
// server and from the client's folder, and follows what its owner does to it.
func TestNotary(t *testing.T) {
	softhsmtest.Parallel(t)
	s := notary.Start(t)
	options := notary.Team(200, func(i int) (digest.Digest, int64) {
		return digest.FromString(fmt.Sprint(i)), int64(500 + i)
	})
	tags := options.Tags
	c := s.Make(t, gun, options)
	firstRoot := []byte(softhsmtest.Read(t, filepath.Join(c.Metadata(), "root.json")))
	rootID := rootKeyID(t, c)

	t.Run("the same from server and folder", func(t *testing.T) {
		for _, pin := range []notaryv1.Pin{{Root: firstRoot}, {KeyIDs: []string{rootID}}, certificatePin(t, s, c)} {
			r := fromServer(t, s, pin)
			checkTags(t, r, tags)
			checkListed(t, r, c.Run(t, "list", gun))
			checkRoles(t, r)
			if f := fromFolder(t, c, pin); fmt.Sprint(f.Targets) != fmt.Sprint(r.Targets) {
				t.Errorf("the folder has %v, the server %v", f.Targets, r.Targets)
			}
		}
	})
	t.Run("another pin", func(t *testing.T) {
		other := s.Make(t, "registry.example.com/team/other", notary.Options{})
		otherRoot := []byte(softhsmtest.Read(t, filepath.Join(other.Metadata(), "root.json")))
		_, err := notaryv1.FromServer(t.Context(), server(s), gun, notaryv1.Pin{Root: otherRoot})
		refused(t, err, failure.Denied, "cannot trust pinned root")
		_, err = notaryv1.FromServer(t.Context(), server(s), gun, notaryv1.Pin{KeyIDs: []string{rootKeyID(t, other)}})
		refused(t, err, failure.Denied, "the pin does not match")
	})
	t.Run("keys of the server", func(t *testing.T) {
		c.Run(t, "key", "rotate", gun, "snapshot", "-r") // its signer has the key from now on
		c.Run(t, "key", "rotate", gun, "targets")
		checkTags(t, fromServer(t, s, notaryv1.Pin{Root: firstRoot}), tags)
	})
	t.Run("a key is taken away", func(t *testing.T) {
		bob := role(t, fromServer(t, s, notaryv1.Pin{Root: firstRoot}), "targets/bob")
		for _, key := range bob.Keys {
			c.Run(t, "delegation", "remove", gun, "targets/bob", key.PublicID)
		}
		c.AddKeys(t, notary.Delegation{Role: "targets/bob", Keys: 1})
		r := fromServer(t, s, notaryv1.Pin{Root: firstRoot})
		refused(t, failure.New(failure.Denied, "%w", role(t, r, "targets/bob").Refused), failure.Denied, "0 of its keys")
		if got := tagsOf(r, "targets/bob"); got != nil {
			t.Errorf("targets/bob still signs %v", got)
		}
		c.Run(t, "witness", gun, "targets/bob")
		c.Publish(t)
		checkTags(t, fromServer(t, s, notaryv1.Pin{Root: firstRoot}), tags)
	})
	t.Run("the root key is rotated twice", func(t *testing.T) {
		c.Run(t, "key", "rotate", gun, "root")
		c.Run(t, "list", gun)
		checkTags(t, fromServer(t, s, notaryv1.Pin{Root: firstRoot}), tags)
		checkTags(t, fromFolder(t, c, notaryv1.Pin{Root: firstRoot}), tags) // both keys have signed it
		secondRoot := []byte(softhsmtest.Read(t, filepath.Join(c.Metadata(), "root.json")))
		c.Run(t, "key", "rotate", gun, "root")
		c.Run(t, "list", gun)
		checkTags(t, fromServer(t, s, notaryv1.Pin{Root: firstRoot}), tags)
		checkTags(t, fromServer(t, s, notaryv1.Pin{KeyIDs: []string{rootID}}), tags)
		checkTags(t, fromFolder(t, c, notaryv1.Pin{Root: secondRoot}), tags)
		_, err := notaryv1.FromFolder(t.Context(), c.Folder(t), gun, notaryv1.Pin{KeyIDs: []string{rootID}})
		refused(t, err, failure.Denied, "the pin does not match")
	})
	t.Run("the server is gone", func(t *testing.T) {
		pin := notaryv1.Pin{Root: []byte(softhsmtest.Read(t, filepath.Join(c.Metadata(), "root.json")))}
		s.Stop()
		_, err := notaryv1.FromServer(t.Context(), server(s), gun, pin)
		refused(t, err, failure.Unavailable, "cannot reach Notary server")
		checkTags(t, fromFolder(t, c, pin), tags)
	})
}

func server(s *notary.Server) notaryv1.Server { return notaryv1.Server{URL: s.URL, Client: s.Client} }

func fromServer(t *testing.T, s *notary.Server, pin notaryv1.Pin) *notaryv1.Repository {
	t.Helper()
	r, err := notaryv1.FromServer(t.Context(), server(s), gun, pin)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func fromFolder(t *testing.T, c *notary.Collection, pin notaryv1.Pin) *notaryv1.Repository {
	t.Helper()
	r, err := notaryv1.FromFolder(t.Context(), c.Folder(t), gun, pin)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// checkTags verifies that the repository has the tags, each of the roles that signed it, and no other.
func checkTags(t *testing.T, r *notaryv1.Repository, tags []notary.Tag) {
	t.Helper()
	var want, got []string
	for _, tag := range tags {
		roles := tag.Roles
		if roles == nil {
			roles = []string{"targets"}
		}
		for _, role := range roles {
			pulled := role == "targets" || role == "targets/releases"
			want = append(want, fmt.Sprint(tag.Name, tag.Digest, tag.Size, role, pulled))
		}
	}
	for _, target := range r.Targets {
		got = append(got, fmt.Sprint(target.Tag, target.Digest, target.Length, target.Role, target.Pulled))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the repository has %v, not %v", got, want)
	}
}

// checkListed verifies that everything that Notary's client lists is in the repository: NAME DIGEST SIZE ROLE.
func checkListed(t *testing.T, r *notaryv1.Repository, listed string) {
	t.Helper()
	count := 0
	for line := range strings.Lines(listed) {
		fields := strings.Fields(line)
		if len(fields) != 4 || len(fields[1]) != 64 {
			continue
		}
		count++
		if !slices.ContainsFunc(r.Targets, func(target notaryv1.Target) bool {
			return slices.Equal(fields, []string{target.Tag, target.Digest.Encoded(), fmt.Sprint(target.Length), target.Role})
		}) {
			t.Errorf("%q is missing", fields)
		}
	}
	if count != 200 {
		t.Errorf("Notary's client lists %d tags:\n%s", count, listed)
	}
}

func checkRoles(t *testing.T, r *notaryv1.Repository) {
	t.Helper()
	var got []string
	for _, role := range r.Roles {
		got = append(got, fmt.Sprintf("%s %d/%d %q %d", role.Name, role.Threshold, len(role.Keys), role.Paths,
			len(role.SignedBy)))
		if role.Expired || role.Refused != nil || role.Ignored != nil || role.Version == 0 {
			t.Errorf("%+v", role)
		}
	}
	want := []string{`root 1/1 [] 1`, `targets 1/1 [] 1`, `snapshot 1/1 [] 1`, `timestamp 1/1 [] 1`,
		`targets/alice 2/3 ["release-"] 3`, `targets/bob 1/2 ["dev-" "test-"] 2`, `targets/releases 1/1 [""] 1`}
	slices.Sort(got[4:])
	if !slices.Equal(got, want) {
		t.Errorf("the roles are\n%s\nnot\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func tagsOf(r *notaryv1.Repository, role string) (tags []string) {
	for _, target := range r.Targets {
		if target.Role == role {
			tags = append(tags, target.Tag)
		}
	}
	return tags
}

// rootKeyID returns the ID of the root key that Notary's client lists, which is the name of its file.
func rootKeyID(t *testing.T, c *notary.Collection) string {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(c.Folder(t), "private"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data := []byte(softhsmtest.Read(t, filepath.Join(c.Folder(t), "private", f.Name())))
		if block, _ := pem.Decode(data); block != nil && block.Headers["role"] == "root" {
			return strings.TrimSuffix(f.Name(), ".key")
		}
	}
	t.Fatal("the client has no root key")
	return ""
}

// certificatePin pins the root certificate, which it takes from the repository.
func certificatePin(t *testing.T, s *notary.Server, c *notary.Collection) notaryv1.Pin {
	t.Helper()
	root := role(t, fromServer(t, s, notaryv1.Pin{KeyIDs: []string{rootKeyID(t, c)}}), "root")
	pin, err := notaryv1.ReadPin([]byte(root.Keys[0].PEM))
	if err != nil || len(pin.Certificates) != 1 || !bytes.Contains([]byte(root.Keys[0].Subject), []byte(gun)) {
		t.Fatal(err, pin, root.Keys[0])
	}
	return pin
}

// role returns a role of a repository.
func role(t *testing.T, r *notaryv1.Repository, name string) notaryv1.Role {
	t.Helper()
	i := slices.IndexFunc(r.Roles, func(role notaryv1.Role) bool { return role.Name == name })
	if i < 0 {
		t.Fatalf("there is no role %s", name)
	}
	return r.Roles[i]
}

// refused verifies that err is of a kind and says something.
func refused(t *testing.T, err error, kind failure.Kind, words string) {
	t.Helper()
	if err == nil || failure.From(err).Kind != kind || !strings.Contains(err.Error(), words) {
		t.Errorf("%v is not %s with %q", err, kind, words)
	}
}
