package notaryv1

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// passphrase encrypts the private keys of Notary's client.
const passphrase = "passphrase"

// Tag is a tag to sign.
type Tag struct {
	Name   string
	Digest digest.Digest
	Size   int64
	Roles  []string // that sign it; none for targets
}

// Delegation is a role to make. Its first key is ECDSA in a certificate, its second a bare RSA key, and further ones
// are ECDSA again.
type Delegation struct {
	Role      string   // targets/NAME
	Paths     []string // prefixes; none for all
	Keys      int
	Threshold int // 0 and 1 are Notary's own
}

// Options say what a collection holds.
type Options struct {
	Delegations []Delegation
	Tags        []Tag
}

// Team is a collection of a team that uses all of Docker Content Trust: three delegations, two of them with paths and
// several keys, one with a threshold, and tags in turn of the repository, of alice (and of targets/releases, as 'docker
// trust sign' signs them), of bob, and of the repository. manifest returns the digest and the size of the i-th tag's
// manifest.
func Team(count int, manifest func(i int) (digest.Digest, int64)) Options {
	o := Options{Delegations: []Delegation{
		{Role: "targets/releases", Keys: 1},
		{Role: "targets/alice", Paths: []string{"release-"}, Keys: 3, Threshold: 2},
		{Role: "targets/bob", Paths: []string{"dev-", "test-"}, Keys: 2},
	}}
	for i := range count {
		tag := Tag{Name: fmt.Sprintf("v1.%d", i)}
		tag.Digest, tag.Size = manifest(i)
		switch i % 4 {
		case 1:
			tag.Name, tag.Roles = fmt.Sprintf("release-%d", i), []string{"targets/releases", "targets/alice"}
		case 2:
			tag.Name, tag.Roles = fmt.Sprintf("dev-%d", i), []string{"targets/bob"}
		}
		o.Tags = append(o.Tags, tag)
	}
	return o
}

// Collection is the trust data of one GUN, and the folder of the client that publishes it.
type Collection struct {
	GUN string

	server *Server
	dir    string
	client string
}

// Make makes a collection with Notary's own client, and publishes it. The client's folder then holds what is published.
func (s *Server) Make(t testing.TB, gun string, o Options) *Collection {
	t.Helper()
	c := &Collection{GUN: gun, server: s, dir: t.TempDir(), client: softhsmtest.Build(t, "notary")}
	for _, role := range []string{"ROOT", "TARGETS", "SNAPSHOT", "DELEGATION"} {
		softhsmtest.Setenv(t, "NOTARY_"+role+"_PASSPHRASE", passphrase)
	}
	c.Run(t, "init", gun)
	c.Run(t, "publish", gun)
	for _, d := range o.Delegations {
		c.delegate(t, d)
	}
	for _, tag := range o.Tags {
		c.Sign(t, tag)
	}
	c.Publish(t)
	return c
}

// Run runs Notary's client, answers its questions with yes, and returns what it writes.
func (c *Collection) Run(t testing.TB, args ...string) string {
	t.Helper()
	args = append([]string{"-s", c.server.URL, "--tlscacert", c.server.CA, "-d", c.dir}, args...)
	stdout, stderr, err := softhsmtest.Try(t, "yes\n", c.client, args...)
	if err != nil {
		t.Fatalf("notary %q: %v\n%s%s", args, err, stdout, stderr)
	}
	return stdout
}

// Publish publishes the changes so far, and reads them back, so that the folder holds what is published.
func (c *Collection) Publish(t testing.TB) {
	t.Helper()
	c.Run(t, "publish", c.GUN)
	c.Run(t, "list", c.GUN)
}

// Sign adds a tag to the changes.
func (c *Collection) Sign(t testing.TB, tag Tag) {
	t.Helper()
	args := []string{"addhash", c.GUN, tag.Name, strconv.FormatInt(tag.Size, 10), "--sha256", tag.Digest.Encoded()}
	for _, role := range tag.Roles {
		args = append(args, "--roles", role)
	}
	c.Run(t, args...)
}

// Folder returns the trust folder, as ~/.docker/trust.
func (c *Collection) Folder(testing.TB) string { return c.dir }

// Metadata returns the folder of the metadata files.
func (c *Collection) Metadata() string { return filepath.Join(c.dir, "tuf", c.GUN, "metadata") }

// delegate makes a role with new keys, and publishes it.
func (c *Collection) delegate(t testing.TB, d Delegation) {
	t.Helper()
	if len(d.Paths) == 0 {
		d.Paths = []string{""}
	}
	c.addKeys(t, d)
	if d.Threshold > 1 {
		c.setThreshold(t, d)
	}
	c.Run(t, "publish", c.GUN)
}

// AddKeys adds new keys, and paths if there are any, to a delegation, and publishes the changes so far.
func (c *Collection) AddKeys(t testing.TB, d Delegation) {
	t.Helper()
	c.addKeys(t, d)
	c.Run(t, "publish", c.GUN)
}

// addKeys adds new keys, whose private parts the client gets, and paths to a delegation.
func (c *Collection) addKeys(t testing.TB, d Delegation) {
	t.Helper()
	args := []string{"delegation", "add", c.GUN, d.Role}
	dir := t.TempDir()
	for i := range d.Keys {
		private, public := delegationKey(t, fmt.Sprintf("%s %d", d.Role, i), i == 1)
		file := filepath.Join(dir, strconv.Itoa(i))
		softhsmtest.Write(t, file+".key", private)
		softhsmtest.Write(t, file+".pem", public)
		c.Run(t, "key", "import", file+".key", "--role", strings.TrimPrefix(d.Role, "targets/"))
		args = append(args, file+".pem")
	}
	for _, path := range d.Paths {
		if path == "" {
			args = append(args, "--all-paths")
			continue
		}
		args = append(args, "--paths", path)
	}
	c.Run(t, args...)
}

// setThreshold changes the threshold of a new delegation in the client's list of changes. Notary's client, server and
// metadata have thresholds, but no command of the client sets one other than 1.
func (c *Collection) setThreshold(t testing.TB, d Delegation) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, "tuf", c.GUN, "changelist", "*.change"))
	if err != nil {
		t.Fatal(err)
	}
	set := 0
	for _, file := range files {
		var change, content map[string]any
		softhsmtest.ReadJSON(t, file, &change)
		var data []byte
		if err := json.Unmarshal([]byte(fmt.Sprintf("%q", change["data"])), &data); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &content); err != nil {
			t.Fatal(err)
		}
		if content["threshold"] == nil {
			continue
		}
		content["threshold"] = d.Threshold
		if change["data"], err = json.Marshal(content); err != nil {
			t.Fatal(err)
		}
		softhsmtest.WriteJSON(t, file, change)
		set++
	}
	if set != 1 {
		t.Fatalf("the threshold of %s is in %d of %d changes", d.Role, set, len(files))
	}
}

// delegationKey makes a key: the private one, and what the owner gets: a certificate, or a bare public key for RSA.
func delegationKey(t testing.TB, name string, isRSA bool) (private, public string) {
	t.Helper()
	encode := func(kind string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	if isRSA {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		return encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key), nil), encode("PUBLIC KEY", der, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	private = encode("EC PRIVATE KEY", der, err)
	template := softhsmtest.Template(name)
	template.NotAfter = time.Now().AddDate(1, 0, 0)
	cert, err := x509.CreateCertificate(rand.Reader, template, template, crypto.PublicKey(&key.PublicKey), key)
	return private, encode("CERTIFICATE", cert, err)
}
