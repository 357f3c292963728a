package nethsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Store is a NetHSM as a place of keys. Nothing is sent before something is asked for: a key that is known by its
// certificate costs one request for a signature. Its keys may sign from many goroutines at once; everything else is for
// one.
type Store struct {
	*client
	reader *credential // the operator, or the administrator where no operator is named
	admin  *credential
	noUser error // why there is no reader
	noRoot error // why there is no admin

	chains map[string][]*x509.Certificate // by key ID, as far as they were read
	listed []string                       // by Keys
}

// Open prepares for the NetHSM that the settings name. It sends nothing.
func Open(s *config.Settings) (*Store, error) {
	c, err := newClient(s)
	if err != nil {
		return nil, err
	}
	t := &Store{client: c, chains: map[string][]*x509.Certificate{}}
	t.admin, t.noRoot = administrator(s)
	if t.reader, t.noUser = operator(s); t.noUser != nil && t.noRoot == nil {
		t.reader, t.noUser = t.admin, nil
	}
	if t.noUser == nil && t.noRoot == nil && t.reader.user == t.admin.user {
		t.admin = t.reader // one passphrase, one try
	}
	return t, nil
}

// Close drops the connections.
func (s *Store) Close() error {
	s.close()
	return nil
}

// Describe says what is known without a request.
func (s *Store) Describe() key.Token { return describe(s.settings) }

func describe(s *config.Settings) key.Token {
	return key.Token{
		URI: config.NetHSMScheme, Label: strings.Join(s.NetHSM.Instances, " "), Manufacturer: "Nitrokey", Model: "NetHSM",
		Initialized: true, LoginRequired: true, PIN: key.PINNotTold,
	}
}

// Tokens describes the NetHSM of the settings, once an instance has said that it is operational.
func tokens(ctx context.Context, s *config.Settings) ([]key.Token, error) {
	c, err := newClient(s)
	if err != nil {
		return nil, err
	}
	defer c.close()
	// Unlike the state, readiness is a status, so that another instance is asked when this one is not ready.
	r := request{what: "looking for the NetHSM", method: http.MethodGet, path: "/health/ready"}
	a, err := c.do(ctx, r)
	if err == nil {
		err = r.want(a, http.StatusOK)
	}
	if err != nil {
		return nil, err
	}
	var all sync.WaitGroup
	for _, url := range s.NetHSM.Instances { // so that one that is not what it should be does not wait to be found out
		all.Go(func() {
			if _, t := c.try(ctx, min(dialLimit, s.Timeout), url, r); t != nil {
				t.warn()
			}
		})
	}
	all.Wait()
	return []key.Token{describe(s)}, nil
}

// Login has the user prove itself, which nothing else needs to be done first.
func (s *Store) Login(ctx context.Context) error {
	if s.noUser != nil {
		return s.noUser
	}
	_, err := s.ask(ctx, request{what: "logging in", method: http.MethodGet, path: userPath(s.reader.user)}, http.StatusOK)
	return err
}

// An asker sends a request as a user who may do it, and returns the answer if its status is one of those.
type asker func(ctx context.Context, r request, statuses ...int) (*answer, error)

// ask does what the reader may do.
func (s *Store) ask(ctx context.Context, r request, statuses ...int) (*answer, error) {
	if s.noUser != nil {
		return nil, s.noUser
	}
	r.as = s.reader
	return s.wanted(ctx, r, statuses...)
}

// change does what only an administrator may do.
func (s *Store) change(ctx context.Context, r request, statuses ...int) (*answer, error) {
	if s.noRoot != nil {
		f := failure.From(s.noRoot)
		return nil, failure.New(f.Kind, "%s failed: %w", r.what, f).WithHint(f.Hint)
	}
	r.as = s.admin
	return s.wanted(ctx, r, statuses...)
}

func (s *Store) wanted(ctx context.Context, r request, statuses ...int) (*answer, error) {
	a, err := s.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if a == settled {
		return a, nil
	}
	return a, r.want(a, statuses...)
}

func keyPath(id string) string { return "/keys/" + url.PathEscape(id) }

// id is the key that the settings name.
func (s *Store) id() (string, error) {
	id := s.settings.Key.Object
	if id == "" || strings.HasSuffix(id, "*") {
		return "", failure.New(failure.Invalid, "%s names no key",
			s.settings.Key).
			WithHint(`name it like nethsm:release; 'notation-hsm key list --token nethsm:' shows what is there`)
	}
	return id, nil
}

// Key returns the key that the settings name. public is its public half when the caller has it from a certificate; with
// nil the NetHSM is asked.
func (s *Store) Key(ctx context.Context, public crypto.PublicKey) (keystore.Key, error) {
	id, err := s.id()
	if err != nil {
		return nil, err
	}
	k := &Key{store: s, id: id, public: public}
	if public == nil {
		if k.public, err = k.ReadPublic(ctx); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Public returns the key's public half.
func (s *Store) Public(ctx context.Context) (crypto.PublicKey, error) {
	k, err := s.Key(ctx, nil)
	if err != nil {
		return nil, err
	}
	return k.Public(), nil
}

// Receives returns what the NetHSM tells of the key as a recipient's. It derives no secrets, so only RSA keys are any.
func (s *Store) Receives(ctx context.Context, public crypto.PublicKey) (r key.Receives, err error) {
	if _, isRSA := public.(*rsa.PublicKey); !isRSA {
		r.Refusal = "a NetHSM does no ECDH"
		return r, nil
	}
	id, err := s.id()
	if err != nil {
		return r, err
	}
	d, err := (&Key{store: s, id: id}).describe(ctx, s.ask)
	if err != nil {
		return r, err
	}
	r.OAEP = []crypto.Hash{}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA1} {
		if slices.Contains(d.Mechanisms, "RSA_Decryption_OAEP_"+hashNames[hash]) {
			r.OAEP = append(r.OAEP, hash)
		}
	}
	r.Sure = true
	return r, nil
}

// Keys returns the key that the settings name, if it is there; or those whose ID begins as they say; or all. What a key
// is, Info tells.
func (s *Store) Keys(ctx context.Context) ([]keystore.Key, error) {
	id, prefix := s.settings.Key.Object, strings.TrimSuffix(s.settings.Key.Object, "*")
	if id != "" && id == prefix {
		k := &Key{store: s, id: id}
		there, err := k.exists(ctx, s.ask)
		if err != nil || !there {
			return nil, err
		}
		return []keystore.Key{k}, nil
	}
	path := "/keys"
	if prefix != "" {
		path = keyPath(prefix) + "*"
	}
	r := request{what: "listing keys", method: http.MethodGet, path: path}
	a, err := s.ask(ctx, r, http.StatusOK)
	if err != nil {
		return nil, err
	}
	if s.listed, err = parseKeyList(a.body); err != nil {
		return nil, malformed(r.what, err)
	}
	keys := make([]keystore.Key, len(s.listed))
	for i, id := range s.listed {
		keys[i] = &Key{store: s, id: id}
	}
	return keys, nil
}

// Taken reports whether there is a key of this name. A NetHSM gives a key no other id.
func (s *Store) Taken(ctx context.Context, name config.URI) (bool, error) {
	if name.Object == "" {
		return false, nil
	}
	return (&Key{store: s, id: name.Object}).exists(ctx, s.ask)
}

// chain returns the certificates that are stored with a key, in their order.
func (s *Store) chain(ctx context.Context, id string, ask asker) ([]*x509.Certificate, error) {
	if chain, read := s.chains[id]; read {
		return chain, nil
	}
	r := request{what: "reading the certificate of key nethsm:" + id, method: http.MethodGet, path: keyPath(id) + "/cert",
		accept: typeBytes}
	a, err := ask(ctx, r, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	if a.status == http.StatusOK {
		if chain, err = parseChain(a.body); err != nil {
			return nil, failure.New(failure.Invalid, "what is stored with key nethsm:%s is no certificate: %w", id, err).
				WithHint("store the chain again: notation-hsm cert import nethsm:" + id + " FILE")
		}
	}
	s.chains[id] = chain
	return chain, nil
}

// parseChain reads what is stored with a key: PEM, as it is written here, or DER.
func parseChain(data []byte) ([]*x509.Certificate, error) {
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		return x509.ParseCertificates(data)
	}
	var chain []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

// own returns the certificates that are stored with the key of the settings.
func (s *Store) own(ctx context.Context) ([]*x509.Certificate, error) {
	id, err := s.id()
	if err != nil {
		return nil, err
	}
	return s.chain(ctx, id, s.ask)
}

// Leaf returns the first certificate with the key that is no CA's, or nil. Whoever stored it may have mistaken the key.
func (s *Store) Leaf(ctx context.Context) (*x509.Certificate, error) {
	chain, err := s.own(ctx)
	if i := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return !c.IsCA }); err == nil && i >= 0 {
		return chain[i], nil
	}
	return nil, err
}

// Issuers returns the certificates with the key whose subject is the issuer of cert.
func (s *Store) Issuers(ctx context.Context, cert *x509.Certificate) ([]*x509.Certificate, error) {
	chain, err := s.own(ctx)
	return slices.DeleteFunc(slices.Clone(chain),
		func(c *x509.Certificate) bool { return !bytes.Equal(c.RawSubject, cert.RawIssuer) }), err
}

// Certificates returns those with the key of the settings, or with each key that Keys has listed. Without a passphrase
// there are none to be seen.
func (s *Store) Certificates(ctx context.Context) ([]*x509.Certificate, error) {
	if s.reader != nil && s.reader.source == "" && s.reader.given == "" {
		return nil, nil
	}
	if _, err := s.id(); err == nil {
		return s.own(ctx)
	}
	var all []*x509.Certificate
	for _, id := range s.listed {
		chain, err := s.chain(ctx, id, s.ask)
		if err != nil {
			return nil, err
		}
		all = append(all, chain...)
	}
	return all, nil
}

// Import stores a chain with the key, leaf first, in place of whatever was there. It returns how many certificates were
// not there before. NetHSM replaces nothing by itself, so the old one is deleted first, and put back when the new one
// is not taken.
func (s *Store) Import(ctx context.Context, of keystore.Key, chain []*x509.Certificate) (int, error) {
	k := of.(*Key)         // keys of this store are its own
	delete(s.chains, k.id) // what was read before may be old
	path, what := keyPath(k.id)+"/cert", "storing the certificate of key "+k.name()
	old, err := s.change(ctx, request{what: what, method: http.MethodGet, path: path, accept: typeBytes}, http.StatusOK,
		http.StatusNotFound)
	if err != nil {
		return 0, err
	}
	var there []*x509.Certificate
	if old.status == http.StatusOK {
		there, _ = parseChain(old.body) // what is no certificate is to go as well
		if slices.EqualFunc(there, chain, (*x509.Certificate).Equal) {
			return 0, nil
		}
		_, err = s.change(ctx, request{what: what, method: http.MethodDelete, path: path}, http.StatusNoContent,
			http.StatusNotFound)
	}
	if err == nil {
		var data bytes.Buffer
		for _, cert := range chain {
			_ = pem.Encode(&data, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a buffer takes all
		}
		err = s.putChain(ctx, k, what, data.Bytes())
	}
	if err != nil && old.status == http.StatusOK {
		return 0, s.restore(ctx, k, old.body, err)
	}
	if err != nil {
		return 0, err
	}
	s.chains[k.id] = chain
	added := 0
	for _, cert := range chain {
		if !slices.ContainsFunc(there, cert.Equal) {
			added++
		}
	}
	return added, nil
}

// putChain stores what is to be served as the key's certificate, where nothing is.
func (s *Store) putChain(ctx context.Context, k *Key, what string, data []byte) error {
	_, err := s.change(ctx, request{
		what: what, method: http.MethodPut, path: keyPath(k.id) + "/cert", body: data, sends: typeBytes,
		done:   func() (bool, error) { return s.holds(ctx, k, data) },
		unsure: "it may be there: see 'notation-hsm cert export " + k.name() + "'",
	}, http.StatusCreated, http.StatusNoContent)
	return err
}

// holds reports whether that is what is stored with a key.
func (s *Store) holds(ctx context.Context, k *Key, data []byte) (bool, error) {
	r := request{what: "reading the certificate of key " + k.name(), method: http.MethodGet, path: keyPath(k.id) + "/cert",
		accept: typeBytes}
	a, err := s.change(ctx, r, http.StatusOK, http.StatusNotFound)
	return err == nil && a.status == http.StatusOK && bytes.Equal(a.body, data), err
}

// restore puts back what was stored with a key, when something else could not be stored in its place, even after an
// interrupt.
func (s *Store) restore(ctx context.Context, k *Key, data []byte, why error) error {
	ctx = context.WithoutCancel(ctx)
	f := *failure.From(why)
	if there, err := s.holds(ctx, k, data); err != nil || !there {
		if err := s.putChain(ctx, k, "putting the old one back", data); err != nil {
			f.What += "; and its old certificate is gone (" + failure.From(err).Error() + ")"
			f.Hint = "once that is mended, store one again: notation-hsm cert import " + k.name() + " FILE"
			return &f
		}
	}
	f.What += "; its old certificate is there as before"
	return &f
}

// Delete removes a key; its certificates go with it. What is gone already is no failure.
func (s *Store) Delete(ctx context.Context, of keystore.Key, _ []*x509.Certificate) error {
	k := of.(*Key) // keys of this store are its own
	delete(s.chains, k.id)
	_, err := s.change(ctx, request{what: "deleting key nethsm:" + k.id, method: http.MethodDelete, path: keyPath(k.id)},
		http.StatusNoContent, http.StatusNotFound)
	return err
}

// Discard is for what is left of a key whose making was cut short. A NetHSM makes a key whole or not at all, so a key
// of that name is somebody's.
func (s *Store) Discard(ctx context.Context) error {
	id, err := s.id()
	if err != nil {
		return err
	}
	there, err := (&Key{store: s, id: id}).exists(ctx, s.ask)
	if err == nil && there {
		return failure.New(failure.Denied, "the key nethsm:%s is there, and does not work for user %s", id, s.reader.user).
			WithHint("see whose it is with 'notation-hsm key show', and delete it or choose another name")
	}
	return err
}
