package nethsmtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
)

// keyName identifies a key: several namespaces can have the same ID.
type keyName struct{ namespace, id string }

type key struct {
	kind        string        // the description's KeyType
	signer      crypto.Signer // nil for Generic
	secret      []byte        // of Generic
	mechanisms  []string
	tags        []string
	label       string
	certificate []byte // nil without one
	operations  int
}

// mechanismsOf lists what the keys of a type can do.
var mechanismsOf = map[string][]string{
	"RSA": {
		"RSA_Decryption_RAW", "RSA_Decryption_PKCS1", "RSA_Decryption_OAEP_MD5", "RSA_Decryption_OAEP_SHA1",
		"RSA_Decryption_OAEP_SHA224", "RSA_Decryption_OAEP_SHA256", "RSA_Decryption_OAEP_SHA384",
		"RSA_Decryption_OAEP_SHA512",
		"RSA_Signature_PKCS1", "RSA_Signature_PSS_MD5", "RSA_Signature_PSS_SHA1", "RSA_Signature_PSS_SHA224",
		"RSA_Signature_PSS_SHA256", "RSA_Signature_PSS_SHA384", "RSA_Signature_PSS_SHA512",
	},
	"Curve25519":    {"EdDSA_Signature"},
	"EC_P256":       {"ECDSA_Signature"},
	"EC_P384":       {"ECDSA_Signature"},
	"EC_P521":       {"ECDSA_Signature"},
	"EC_P256K1":     {"ECDSA_Signature", "BIP340_Signature"},
	"BrainpoolP256": {"ECDSA_Signature"},
	"BrainpoolP384": {"ECDSA_Signature"},
	"BrainpoolP512": {"ECDSA_Signature"},
	"Generic":       {"AES_Encryption_CBC", "AES_Decryption_CBC"},
}

var curves = map[string]elliptic.Curve{"EC_P256": elliptic.P256(), "EC_P384": elliptic.P384(),
	"EC_P521": elliptic.P521()}

// AddKey stores a key (RSA, ECDSA on P-256, P-384 or P-521, Ed25519) without a request, with all mechanisms of its
// type, in the root namespace; tags restrict who may use it.
func (s *Server) AddKey(id string, private crypto.Signer, tags ...string) {
	s.t.Helper()
	k, err := newKey(private)
	if err != nil {
		s.t.Fatal(err)
	}
	k.mechanisms, k.tags = mechanismsOf[k.kind], slices.Clone(tags)
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	s.state.keys[keyName{id: id}] = k
}

// SetKeyCertificate stores bytes as the certificate of a key of the root namespace without a request, replacing any.
func (s *Server) SetKeyCertificate(id string, certificate []byte) {
	s.t.Helper()
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	k := s.state.keys[keyName{id: id}]
	if k == nil {
		s.t.Fatalf("no key %s", id)
	}
	k.certificate = slices.Clone(certificate)
}

// Keys returns the IDs of the keys of a namespace (empty for the root namespace), sorted.
func (s *Server) Keys(namespace string) []string {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	return s.state.keyIDs(namespace)
}

func (s *state) keyIDs(namespace string) []string {
	ids := []string{}
	for name := range s.keys {
		if name.namespace == namespace {
			ids = append(ids, name.id)
		}
	}
	slices.Sort(ids)
	return ids
}

func newKey(private any) (*key, error) {
	switch private := private.(type) {
	case *rsa.PrivateKey:
		return &key{kind: "RSA", signer: private}, private.Validate()
	case ed25519.PrivateKey:
		return &key{kind: "Curve25519", signer: private}, nil
	case *ecdsa.PrivateKey:
		for kind, curve := range curves {
			if curve == private.Curve {
				return &key{kind: kind, signer: private}, nil
			}
		}
	}
	return nil, fmt.Errorf("this test server has no keys like %T", private)
}

func (c *call) keyName() keyName { return keyName{c.user.namespace(), c.params["KeyID"]} }

// key returns the key that the path names, in the caller's namespace.
func (c *call) key() (*key, *reply) {
	k := c.state.keys[c.keyName()]
	if k == nil {
		return nil, fail(http.StatusNotFound, "no key %s", c.params["KeyID"])
	}
	return k, nil
}

// usable reports whether a user may use the key: one without tags, or with a tag that the user has.
func (k *key) usable(u *user) bool {
	return len(k.tags) == 0 || slices.ContainsFunc(k.tags, func(tag string) bool { return slices.Contains(u.tags, tag) })
}

// listKeys serves GET /keys and GET /keys/PREFIX*.
func listKeys(c *call) *reply {
	query := c.request.URL.Query()
	namespace := c.user.namespace()
	ids := slices.DeleteFunc(c.state.keyIDs(namespace), func(id string) bool {
		k := c.state.keys[keyName{namespace, id}]
		return !strings.HasPrefix(id, c.params["KeyPrefix"]) ||
			(query.Has("filter") && c.user.role == Operator && !k.usable(c.user)) ||
			(query.Has("label") && c.params["KeyPrefix"] == "" && k.label != query.Get("label"))
	})
	return answer(items(ids))
}

type restrictions struct {
	Tags []string `json:"tags,omitempty"`
}

func getKey(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	type public struct {
		Modulus        string `json:"modulus,omitempty"`
		PublicExponent string `json:"publicExponent,omitempty"`
		Data           string `json:"data,omitempty"`
	}
	shown := struct {
		Mechanisms   []string     `json:"mechanisms"`
		Type         string       `json:"type"`
		Restrictions restrictions `json:"restrictions"`
		Public       *public      `json:"public,omitempty"`
		Operations   int          `json:"operations"`
		Label        string       `json:"label"`
	}{Mechanisms: k.mechanisms, Type: k.kind, Restrictions: restrictions{k.tags}, Operations: k.operations, Label: k.label}
	if k.signer == nil {
		return answer(shown)
	}
	switch key := k.signer.Public().(type) {
	case *rsa.PublicKey:
		shown.Public = &public{Modulus: encode64(key.N.Bytes()), PublicExponent: encode64(big.NewInt(int64(key.E)).Bytes())}
	case *ecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil {
			return fail(http.StatusInternalServerError, "%v", err)
		}
		shown.Public = &public{Data: encode64(point)}
	case ed25519.PublicKey:
		shown.Public = &public{Data: encode64(key)}
	}
	return answer(shown)
}

func getPublicKey(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	if k.signer == nil {
		return fail(http.StatusBadRequest, "Generic keys have no public key")
	}
	return publicPEM(k.signer.Public())
}

func publicPEM(key crypto.PublicKey) *reply {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return fail(http.StatusInternalServerError, "%v", err)
	}
	return answerPEM("PUBLIC KEY", der)
}

func answerPEM(kind string, der []byte) *reply {
	return &reply{status: http.StatusOK, contentType: typePEM,
		body: pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})}
}

func deleteKey(c *call) *reply {
	if _, refusal := c.key(); refusal != nil {
		return refusal
	}
	delete(c.state.keys, c.keyName())
	return done()
}

func moveKey(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	var wanted struct {
		NewID string `json:"newId"`
	}
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	if !validID.MatchString(wanted.NewID) {
		return fail(http.StatusBadRequest, "%q cannot be a KeyID", wanted.NewID)
	}
	name := keyName{c.user.namespace(), wanted.NewID}
	if c.state.keys[name] != nil {
		return fail(http.StatusConflict, "Key '%s' already exists", wanted.NewID)
	}
	c.state.keys[name] = k
	delete(c.state.keys, c.keyName())
	return answer(map[string]string{"id": wanted.NewID})
}

func setLabel(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	var wanted struct {
		Label string `json:"label"`
	}
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	if refusal := checkLabel(wanted.Label); refusal != nil {
		return refusal
	}
	if k.label == wanted.Label {
		return &reply{status: http.StatusNotModified}
	}
	k.label = wanted.Label
	return done()
}

func deleteLabel(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	k.label = ""
	return done()
}

func addKeyTag(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	return addTag(&k.tags, c.params["Tag"])
}

func deleteKeyTag(c *call) *reply {
	k, refusal := c.key()
	if refusal != nil {
		return refusal
	}
	return deleteTag(&k.tags, c.params["Tag"])
}
