package nethsm

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

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
