package notaryv1_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/cjson"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/notaryv1"
)

// gun is the repository of all tests.
const gun = "registry.example.com/team/app"

// object is a JSON object.
type object = map[string]any

// forged is a key of a forged repository.
type forged struct {
	id      string
	public  object // as metadata has it
	method  string
	private crypto.Signer
	pem     string
}

// rsaKeys are slow to make.
var rsaKeys = sync.OnceValue(func() map[int]*rsa.PrivateKey {
	keys := map[int]*rsa.PrivateKey{}
	for _, bits := range []int{1024, 2048} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			panic(err)
		}
		keys[bits] = key
	}
	return keys
})

func TestMain(m *testing.M) {
	// So that a weak key can be made at all.
	if err := os.Setenv("GODEBUG", "rsa1024min=0"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// newKey makes a key of a type of Notary's. What follows a colon varies it: a curve, the size of an RSA key, or the
// signature method.
func newKey(t testing.TB, kind, commonName string) forged {
	t.Helper()
	kind, variant, _ := strings.Cut(kind, ":")
	var k forged
	switch bare, _ := strings.CutSuffix(kind, "-x509"); bare {
	case "ecdsa":
		curve := map[string]elliptic.Curve{"": elliptic.P256(), "384": elliptic.P384(), "521": elliptic.P521()}[variant]
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		k.private, k.method = key, "ecdsa"
	case "rsa":
		k.private, k.method = rsaKeys()[2048], "rsapss"
		switch variant {
		case "1024":
			k.private = rsaKeys()[1024]
		case "pkcs1":
			k.method = "rsapkcs1v15"
		}
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		k.private, k.method = key, "eddsa"
	}
	return k.as(t, kind, &x509.Certificate{Subject: pkix.Name{CommonName: commonName}})
}

// as returns the key as metadata has it under a type, with a certificate if it is of one with a certificate.
func (k forged) as(t testing.TB, kind string, template *x509.Certificate) forged {
	t.Helper()
	public, err := x509.MarshalPKIXPublicKey(k.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case strings.HasSuffix(kind, "-x509"):
		template.SerialNumber = big.NewInt(time.Now().UnixNano())
		template.NotBefore = time.Now().Add(-time.Hour)
		if template.NotAfter.IsZero() {
			template.NotAfter = time.Now().AddDate(10, 0, 0)
		}
		template.BasicConstraintsValid = true
		der, err := x509.CreateCertificate(rand.Reader, template, template, k.private.Public(), k.private)
		if err != nil {
			t.Fatal(err)
		}
		public = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		k.pem = string(public)
	case kind == "ed25519":
		public = k.private.Public().(ed25519.PublicKey)
	}
	k.public = object{"keytype": kind, "keyval": object{"private": nil, "public": public}}
	data, err := cjson.EncodeCanonical(k.public)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	k.id = hex.EncodeToString(sum[:])
	return k
}

// sign signs as Notary does.
func (k forged) sign(t testing.TB, message []byte) object {
	t.Helper()
	sum := sha256.Sum256(message)
	var sig []byte
	var err error
	switch private := k.private.(type) {
	case *ecdsa.PrivateKey:
		var r, s *big.Int
		r, s, err = ecdsa.Sign(rand.Reader, private, sum[:])
		size := (private.Params().BitSize + 7) / 8
		sig = append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	case *rsa.PrivateKey:
		if k.method == "rsapkcs1v15" {
			sig, err = rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA256, sum[:])
		} else {
			sig, err = rsa.SignPSS(rand.Reader, private, crypto.SHA256, sum[:],
				&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
	case ed25519.PrivateKey:
		sig = ed25519.Sign(private, message)
	}
	if err != nil {
		t.Fatal(err)
	}
	return object{"keyid": k.id, "method": k.method, "sig": sig}
}

// forgedRole is a role of a forged repository.
type forgedRole struct {
	keys      []forged
	signers   []forged // nil for all keys
	threshold int
	version   int
	expires   time.Time
	targets   map[string]object
	paths     []string
	unsigned  bool // it has no file
}

// forgery is a repository whose files are made and signed as Notary does, and changed as a test wants.
type forgery struct {
	t           testing.TB
	roles       map[string]*forgedRole
	delegations []string                              // in the order of their files
	change      func(role string, signed object)      // before it is signed
	changeFile  func(role string, envelope object)    // after it is signed
	changeData  func(role string, data []byte) []byte // after it is listed
	files       map[string][]byte                     // name, without .json
}

const commonTag = "v1"

// newForgery returns a repository that verifies.
func newForgery(t testing.TB) *forgery {
	t.Helper()
	f := &forgery{t: t, roles: map[string]*forgedRole{}, files: map[string][]byte{},
		change: func(string, object) {}, changeFile: func(string, object) {},
		changeData: func(_ string, data []byte) []byte { return data }}
	for _, name := range []string{"root", "targets", "snapshot", "timestamp"} {
		kind := "ecdsa"
		if name == "root" {
			kind = "ecdsa-x509"
		}
		f.roles[name] = &forgedRole{keys: []forged{newKey(t, kind, gun)}, threshold: 1, version: 1,
			expires: time.Now().Add(time.Hour)}
	}
	f.roles["targets"].targets = map[string]object{commonTag: meta([]byte("a manifest"))}
	return f
}

// delegate adds a delegation with one key, which signs the tags.
func (f *forgery) delegate(name string, paths []string, tags ...string) *forgedRole {
	r := &forgedRole{keys: []forged{newKey(f.t, "ecdsa", "")}, threshold: 1, version: 1, paths: paths,
		expires: time.Now().Add(time.Hour), targets: map[string]object{}}
	for _, tag := range tags {
		r.targets[tag] = meta([]byte(name + tag))
	}
	f.roles[name], f.delegations = r, append(f.delegations, name)
	return r
}

// meta describes a file.
func meta(data []byte) object {
	sum256, sum512 := sha256.Sum256(data), sha512.Sum512(data)
	return object{"length": len(data), "hashes": object{"sha256": sum256[:], "sha512": sum512[:]}}
}

// keysAndIDs returns keys as metadata has them, and their IDs.
func keysAndIDs(keys []forged, into object) (ids []string) {
	for _, k := range keys {
		into[k.id] = k.public
		ids = append(ids, k.id)
	}
	return ids
}

// edit changes the signed part of a role's file.
func (f *forgery) edit(role string, change func(signed object)) {
	f.change = func(name string, signed object) {
		if name == role {
			change(signed)
		}
	}
}

// make makes all files.
func (f *forgery) make() {
	f.t.Helper()
	keys, roles := object{}, object{}
	for _, name := range []string{"root", "targets", "snapshot", "timestamp"} {
		roles[name] = object{"keyids": keysAndIDs(f.roles[name].keys, keys), "threshold": f.roles[name].threshold}
	}
	f.sign("root", object{"_type": "Root", "keys": keys, "roles": roles, "consistent_snapshot": false})
	for _, name := range append([]string{"targets"}, f.delegations...) {
		f.signTargets(name)
	}
	listed := object{}
	for name, data := range f.files {
		if !strings.Contains(name, ".") {
			listed[name] = meta(data)
		}
	}
	f.sign("snapshot", object{"_type": "Snapshot", "meta": listed})
	f.sign("timestamp", object{"_type": "Timestamp", "meta": object{"snapshot": meta(f.files["snapshot"])}})
	for name, data := range f.files {
		f.files[name] = f.changeData(name, data)
	}
}

// signTargets makes the file of targets, or of a delegation.
func (f *forgery) signTargets(name string) {
	f.t.Helper()
	if f.roles[name].unsigned {
		return
	}
	keys, below := object{}, []object{}
	for _, child := range f.delegations {
		if filepath.Dir(child) == name {
			r := f.roles[child]
			below = append(below, object{"name": child, "paths": r.paths, "keyids": keysAndIDs(r.keys, keys),
				"threshold": r.threshold})
		}
	}
	f.sign(name, object{"_type": "Targets", "targets": f.roles[name].targets,
		"delegations": object{"keys": keys, "roles": below}})
}

// sign signs a file.
func (f *forgery) sign(name string, signed object) {
	f.t.Helper()
	r := f.roles[name]
	signed["version"], signed["expires"] = r.version, r.expires
	f.change(name, signed)
	message, err := cjson.EncodeCanonical(signed)
	if err != nil {
		f.t.Fatal(err)
	}
	signers, signatures := r.signers, []object{}
	if signers == nil {
		signers = r.keys
	}
	for _, k := range signers {
		signatures = append(signatures, k.sign(f.t, message))
	}
	envelope := object{"signed": signed, "signatures": signatures}
	f.changeFile(name, envelope)
	if f.files[name], err = json.Marshal(envelope); err != nil {
		f.t.Fatal(err)
	}
}

// write writes the files into a trust folder.
func (f *forgery) write() (dir string) {
	f.t.Helper()
	dir = f.t.TempDir()
	for name, data := range f.files {
		path := filepath.Join(dir, "tuf", gun, "metadata", name+".json")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			f.t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			f.t.Fatal(err)
		}
	}
	return dir
}

// pin pins the root keys.
func (f *forgery) pin() (pin notaryv1.Pin) {
	for _, k := range f.roles["root"].keys {
		pin.KeyIDs = append(pin.KeyIDs, k.id)
	}
	return pin
}

// read makes the files, and reads them from a folder.
func (f *forgery) read(pin notaryv1.Pin) (*notaryv1.Repository, error) {
	f.t.Helper()
	f.make()
	return notaryv1.FromFolder(f.t.Context(), f.write(), gun, pin)
}

// digestOf returns the digest of the tag of a role.
func digestOf(r *notaryv1.Repository, role, tag string) digest.Digest {
	for _, target := range r.Targets {
		if target.Role == role && target.Tag == tag {
			return target.Digest
		}
	}
	return ""
}

// must returns the repository of a read that cannot fail.
func must(r *notaryv1.Repository, err error) *notaryv1.Repository {
	if err != nil {
		panic(err)
	}
	return r
}

// canonical returns the bytes that are signed.
func canonical(t testing.TB, signed any) []byte {
	t.Helper()
	message, err := cjson.EncodeCanonical(signed)
	if err != nil {
		t.Fatal(err)
	}
	return message
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
