package notaryv1_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestRefused changes one thing of a repository that verifies, each time another.
func TestRefused(t *testing.T) {
	t.Parallel()
	second := func(f *forgery, name string) forged {
		r := f.roles[name]
		r.keys, r.threshold = append(r.keys, newKey(t, "ecdsa-x509", gun)), 2
		return r.keys[1]
	}
	for name, c := range map[string]struct {
		kind   failure.Kind
		words  string
		change func(*forgery)
	}{
		"threshold of targets": {failure.Denied, "1 of its keys have signed it, fewer than", func(f *forgery) {
			second(f, "targets")
			f.roles["targets"].signers = f.roles["targets"].keys[:1]
		}},
		"threshold of root": {failure.Denied, "fewer than the threshold 2", func(f *forgery) {
			second(f, "root")
			f.roles["root"].signers = f.roles["root"].keys[:1]
		}},
		"threshold of snapshot": {failure.Denied, "cannot verify role snapshot", func(f *forgery) {
			f.roles["snapshot"].signers = []forged{newKey(t, "ecdsa", "")}
		}},
		"threshold of timestamp": {failure.Denied, "cannot verify role timestamp", func(f *forgery) {
			f.roles["timestamp"].signers = []forged{}
		}},
		"a key signs twice": {failure.Denied, "fewer than the threshold 2", func(f *forgery) {
			second(f, "targets")
			f.roles["targets"].signers = []forged{f.roles["targets"].keys[0], f.roles["targets"].keys[0]}
		}},
		"a key in two certificates": {failure.Denied, "fewer than the threshold 2", func(f *forgery) {
			r := f.roles["targets"]
			first := newKey(t, "ecdsa-x509", gun)
			r.keys = []forged{first, first.as(t, "ecdsa-x509", &x509.Certificate{Subject: pkix.Name{CommonName: "x"}})}
			r.threshold = 2
		}},
		"a key with and without a certificate": {failure.Denied, "fewer than the threshold 2", func(f *forgery) {
			r := f.roles["targets"]
			r.keys, r.threshold = []forged{r.keys[0], r.keys[0].as(t, "ecdsa-x509", &x509.Certificate{})}, 2
		}},
		"a root key in two certificates": {failure.Denied, "fewer than the threshold 2", func(f *forgery) {
			r := f.roles["root"]
			r.keys = append(r.keys, r.keys[0].as(t, "ecdsa-x509", &x509.Certificate{Subject: pkix.Name{CommonName: gun}}))
			r.threshold = 2
		}},
		"a threshold of nothing": {failure.Denied, "a threshold of 0", func(f *forgery) {
			f.roles["targets"].threshold = 0
		}},
		"a root of another repository": {failure.Denied, "the pin does not match", func(f *forgery) {
			f.roles["root"].keys = []forged{newKey(t, "ecdsa-x509", "registry.example.com/team/other")}
		}},
		"a root key that is a CA": {failure.Denied, "the pin does not match", func(f *forgery) {
			r := f.roles["root"]
			r.keys = []forged{r.keys[0].as(t, "ecdsa-x509", &x509.Certificate{Subject: pkix.Name{CommonName: gun}, IsCA: true})}
		}},
		"a root key without certificate": {failure.Denied, "the pin does not match", func(f *forgery) {
			f.roles["root"].keys = []forged{newKey(t, "ecdsa", "")}
		}},
		"a weak key": {failure.Denied, "0 of its keys", func(f *forgery) {
			f.roles["targets"].keys = []forged{newKey(t, "rsa:1024", "")}
		}},
		"a key under the ID of another": {failure.Denied, "0 of its keys", func(f *forgery) {
			k := newKey(t, "ecdsa", "")
			k.id = f.roles["targets"].keys[0].id
			f.roles["targets"].keys = []forged{k}
		}},
		"a key of an unknown type": {failure.Denied, "0 of its keys", func(f *forgery) {
			k := newKey(t, "ecdsa", "").as(t, "ecdsa-sha2-nistp256", nil)
			f.roles["targets"].keys = []forged{k}
		}},
		"an RSA key that says ECDSA": {failure.Denied, "0 of its keys", func(f *forgery) {
			f.roles["targets"].keys = []forged{newKey(t, "rsa", "").as(t, "ecdsa", nil)}
		}},
		"an ECDSA key that says RSA": {failure.Denied, "0 of its keys", func(f *forgery) {
			f.roles["targets"].keys = []forged{newKey(t, "ecdsa", "").as(t, "rsa", nil)}
		}},
		"many signatures": {failure.Invalid, "more than 256 signatures", func(f *forgery) {
			f.changeFile = func(_ string, envelope object) {
				signatures := envelope["signatures"].([]object)
				for len(signatures) <= 256 {
					signatures = append(signatures, signatures[0])
				}
				envelope["signatures"] = signatures
			}
		}},
		"large files": {failure.Invalid, "it is larger than", func(f *forgery) {
			for i := range 5 {
				f.delegate(fmt.Sprintf("targets/d%d", i), []string{""})
			}
			f.changeFile = func(role string, envelope object) {
				if strings.HasPrefix(role, "targets/") {
					envelope["padding"] = strings.Repeat("a", 15<<20)
				}
			}
		}},
		"a wrong SHA-256": {failure.Denied, "it is not the file whose hash is listed", wrongHash("sha256", 32)},
		"a wrong SHA-512": {failure.Denied, "it is not the file whose hash is listed", wrongHash("sha512", 64)},
		"a missing key": {failure.Denied, "is missing", func(f *forgery) {
			f.edit("root", func(signed object) {
				delete(signed["keys"].(object), f.roles["targets"].keys[0].id)
			})
		}},
		"a missing role": {failure.Denied, "the root has no such role", func(f *forgery) {
			f.edit("root", func(signed object) {
				delete(signed["roles"].(object), "snapshot")
			})
		}},
		"targets of another snapshot": {failure.Denied, "it is not the file whose hash is listed", func(f *forgery) {
			f.make()
			old := f.files["targets"]
			f.roles["targets"].version = 2
			f.changeData = func(role string, data []byte) []byte {
				if role == "targets" {
					return old
				}
				return data
			}
		}},
		"a snapshot of another timestamp": {failure.Denied, "cannot verify role snapshot", func(f *forgery) {
			f.make()
			old := f.files["snapshot"]
			f.changeData = func(role string, data []byte) []byte {
				if role == "snapshot" {
					return old
				}
				return data
			}
		}},
		"a root of another snapshot": {failure.Denied, "it is not the file that the snapshot lists", func(f *forgery) {
			f.changeData = func(role string, data []byte) []byte {
				if role == "root" {
					return append(data, '\n')
				}
				return data
			}
		}},
		"a wrong length": {failure.Denied, "it is not the file whose hash is listed", func(f *forgery) {
			f.edit("snapshot", func(signed object) {
				signed["meta"].(object)["targets"].(object)["length"] = 7
			})
		}},
		"a hash of unknown kind alone": {failure.Invalid, "no usable hash", func(f *forgery) {
			f.edit("snapshot", func(signed object) {
				signed["meta"].(object)["targets"].(object)["hashes"] = object{"md5": []byte("0123456789abcdef")}
			})
		}},
		"targets that the snapshot does not list": {failure.Denied, "no hash of it is listed", func(f *forgery) {
			f.edit("snapshot", func(signed object) {
				delete(signed["meta"].(object), "targets")
			})
		}},
		"another type": {failure.Invalid, `it is of type "Snapshot", not "Timestamp"`, func(f *forgery) {
			f.edit("timestamp", func(signed object) {
				signed["_type"] = "Snapshot"
			})
		}},
		"version 0": {failure.Invalid, "its version is 0", func(f *forgery) { f.roles["targets"].version = 0 }},
		"a delegation of another's": {failure.Invalid, "cannot be a delegation of targets", func(f *forgery) {
			f.delegate("targets/alice", []string{""})
			f.edit("targets", func(signed object) {
				signed["delegations"].(object)["roles"].([]object)[0]["name"] = "targets/alice/bob"
			})
		}},
		"a delegation whose name is a path": {failure.Invalid, "cannot be a delegation", func(f *forgery) {
			f.delegate("targets/alice", []string{""})
			f.edit("targets", func(signed object) {
				signed["delegations"].(object)["roles"].([]object)[0]["name"] = "targets/.."
			})
		}},
		"a delegation twice": {failure.Invalid, "it delegates to targets/alice twice", func(f *forgery) {
			f.delegate("targets/alice", []string{""})
			f.edit("targets", func(signed object) {
				d := signed["delegations"].(object)
				d["roles"] = append(d["roles"].([]object), d["roles"].([]object)[0])
			})
		}},
		"a delegation that the folder lacks": {failure.NotFound, "targets/alice.json", func(f *forgery) {
			f.delegate("targets/alice", []string{""}, "a")
			before := f.changeData
			f.changeData = func(role string, data []byte) []byte {
				if role == "timestamp" {
					delete(f.files, "targets/alice")
				}
				return before(role, data)
			}
		}},
		"delegations without end": {failure.Unsupported, "deeper than 8", func(f *forgery) {
			name := "targets"
			for range 9 {
				name += "/a"
				f.delegate(name, []string{""})
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForgery(t)
			c.change(f)
			_, err := f.read(f.pin())
			refused(t, err, c.kind, c.words)
		})
	}
}

// wrongHash has the snapshot list a hash that targets.json does not have.
func wrongHash(kind string, size int) func(*forgery) {
	return func(f *forgery) {
		f.edit("snapshot", func(signed object) {
			signed["meta"].(object)["targets"].(object)["hashes"].(object)[kind] = make([]byte, size)
		})
	}
}

// TestExpired reads what has expired, and says so.
func TestExpired(t *testing.T) {
	t.Parallel()
	f := newForgery(t)
	f.delegate("targets/alice", []string{""}, "a").expires = time.Now().Add(-time.Hour)
	root := f.roles["root"]
	root.keys[0] = root.keys[0].as(t, "ecdsa-x509", &x509.Certificate{
		Subject: pkix.Name{CommonName: "registry.example.com/*"}, NotAfter: time.Now().Add(-time.Minute)})
	f.roles["timestamp"].expires = time.Now().Add(-time.Second)
	r := must(f.read(f.pin()))
	var expired []string
	for _, role := range r.Roles {
		if role.Expired {
			expired = append(expired, role.Name)
		}
	}
	if key := r.Roles[0].Keys[0]; !slices.Equal(expired, []string{"timestamp", "targets/alice"}) || !key.Expired {
		t.Errorf("%q have expired, and the key is %+v", expired, key)
	}
}
