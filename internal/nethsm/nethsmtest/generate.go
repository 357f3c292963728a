package nethsmtest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"net/http"
	"slices"
)

type generateRequest struct {
	Mechanisms   []string     `json:"mechanisms"`
	Type         string       `json:"type"`
	Length       int          `json:"length,omitempty"`
	ID           string       `json:"id,omitempty"`
	Restrictions restrictions `json:"restrictions,omitempty"`
	Label        string       `json:"label,omitempty"`
}

func generateKey(c *call) *reply {
	var wanted generateRequest
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	k, refusal := c.generate(wanted.Type, wanted.Length)
	if refusal != nil {
		return refusal
	}
	k.mechanisms, k.tags, k.label = wanted.Mechanisms, wanted.Restrictions.Tags, wanted.Label
	id := wanted.ID
	if id == "" {
		id = randomID()
	}
	if !validID.MatchString(id) {
		return fail(http.StatusBadRequest, "%q cannot be a KeyID", id)
	}
	if refusal := k.check(); refusal != nil {
		return refusal
	}
	name := keyName{c.user.namespace(), id}
	if c.state.keys[name] != nil {
		// not 409: the description has none here, and the real one answers so
		return fail(http.StatusBadRequest, "Key with id %s already exists", id)
	}
	c.state.keys[name] = k
	c.state.count("generate", nil)
	return created("/keys/", id)
}

// generate generates a key. It releases the lock meanwhile, because an RSA key takes long.
func (c *call) generate(kind string, length int) (*key, *reply) {
	if mechanismsOf[kind] == nil {
		return nil, fail(http.StatusBadRequest, "unknown key type %q", kind)
	}
	if kind == "RSA" && (length < 1024 || length > 8192) {
		return nil, fail(http.StatusBadRequest, "RSA key length must be between 1024 and 8192.")
	}
	if kind == "Generic" && (length < 128 || length > 8192) {
		return nil, fail(http.StatusBadRequest, "Length must be between 128 and 8192.")
	}
	var private any
	if kind == "RSA" {
		private = c.state.takeRSAKey(length)
	}
	c.state.mu.Unlock()
	defer c.state.mu.Lock()
	var err error
	switch kind {
	case "Generic":
		return &key{kind: kind, secret: randomBytes((length + 7) / 8)}, nil
	case "RSA":
		if private == (*rsa.PrivateKey)(nil) {
			private, err = rsa.GenerateKey(rand.Reader, length)
		}
	case "Curve25519":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		if curves[kind] == nil {
			return nil, fail(http.StatusNotImplemented, "this test server has no keys of type %s", kind)
		}
		private, err = ecdsa.GenerateKey(curves[kind], rand.Reader)
	}
	if err != nil {
		return nil, fail(http.StatusInternalServerError, "%v", err)
	}
	k, err := newKey(private)
	if err != nil {
		return nil, fail(http.StatusInternalServerError, "%v", err)
	}
	return k, nil
}

// takeRSAKey returns one of the keys of RSAKeys, or nil if none of this length is left.
func (s *state) takeRSAKey(length int) *rsa.PrivateKey {
	i := slices.IndexFunc(s.rsaKeys, func(k *rsa.PrivateKey) bool { return k.N.BitLen() == length })
	if i < 0 {
		return nil
	}
	key := s.rsaKeys[i]
	s.rsaKeys = slices.Delete(s.rsaKeys, i, i+1)
	return key
}

// check checks the mechanisms, the tags and the label of a new key.
func (k *key) check() *reply {
	if len(k.mechanisms) == 0 {
		return fail(http.StatusBadRequest, "empty set of mechanisms")
	}
	for _, mechanism := range k.mechanisms {
		if !slices.Contains(mechanismsOf[k.kind], mechanism) {
			return fail(http.StatusBadRequest, "mechanism %q does not match key type %s", mechanism, k.kind)
		}
	}
	for _, tag := range k.tags {
		if !validID.MatchString(tag) {
			return fail(http.StatusBadRequest, "%q cannot be a tag", tag)
		}
	}
	slices.Sort(k.mechanisms)
	slices.Sort(k.tags)
	return checkLabel(k.label)
}

func checkLabel(label string) *reply {
	if len(label) > 32 {
		return fail(http.StatusBadRequest, "the label has more than 32 bytes")
	}
	return nil
}
