package nethsm

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// readChain is the certificates of a key and when they were read.
type readChain struct {
	certificates []*x509.Certificate
	at           time.Time
}

// chain returns the certificates that are stored with a key, in their order. For a few seconds it returns what was read
// before: a signature reads the chain several times. A long-lived process sees a new chain after that.
func (s *Store) chain(ctx context.Context, id string, ask asker) ([]*x509.Certificate, error) {
	s.mu.Lock()
	known, ok := s.chains[id]
	s.mu.Unlock()
	if ok && time.Since(known.at) < s.backend.certificateAge {
		return known.certificates, nil
	}
	a, err := ask(ctx, readCertificate(id), http.StatusOK, http.StatusNotFound)
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	if a.status == http.StatusOK {
		if chain, err = parseChain(a.body); err != nil {
			return nil, failure.New(failure.Invalid, "cannot read the certificate of key nethsm:%s: %w", id, err).
				WithHint("store the chain again: notation-hsm cert import nethsm:" + id + " FILE")
		}
	}
	s.remember(id, chain)
	return chain, nil
}

// readCertificate returns the request for what is stored as the certificate of a key.
func readCertificate(id string) request {
	return request{what: "reading the certificate of key nethsm:" + id, method: http.MethodGet,
		path: keyPath(id) + "/cert", accept: typeBytes}
}

func (s *Store) remember(id string, chain []*x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chains[id] = readChain{chain, time.Now()}
}

// forget makes the next call of chain read the certificates of a key again.
func (s *Store) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.chains, id)
}

// parseChain reads what is stored with a key: certificates in PEM, as Import writes them, or in DER.
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

// ownChain returns the certificates that are stored with the key of the settings.
func (s *Store) ownChain(ctx context.Context) ([]*x509.Certificate, error) {
	id, err := s.id()
	if err != nil {
		return nil, err
	}
	return s.chain(ctx, id, s.ask)
}

// Leaf returns the first certificate of the key that is not a CA certificate, or nil. It may have been issued for
// another key: the NetHSM stores any certificate.
func (s *Store) Leaf(ctx context.Context) (*x509.Certificate, error) {
	chain, err := s.ownChain(ctx)
	if i := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return !c.IsCA }); err == nil && i >= 0 {
		return chain[i], nil
	}
	return nil, err
}

// Issuers returns the certificates of the key whose subject is the issuer of cert.
func (s *Store) Issuers(ctx context.Context, cert *x509.Certificate) ([]*x509.Certificate, error) {
	chain, err := s.ownChain(ctx)
	return slices.DeleteFunc(slices.Clone(chain),
		func(c *x509.Certificate) bool { return !bytes.Equal(c.RawSubject, cert.RawIssuer) }), err
}

// Certificates returns the certificates of the key of the settings, or of each key that Keys returned last. It returns
// none when there is no passphrase to read them with.
func (s *Store) Certificates(ctx context.Context) ([]*x509.Certificate, error) {
	if s.reader != nil && s.reader.source == "" && s.reader.given == "" {
		return nil, nil
	}
	if _, err := s.id(); err == nil {
		return s.ownChain(ctx)
	}
	s.mu.Lock()
	listed := s.listed
	s.mu.Unlock()
	var all []*x509.Certificate
	for _, id := range listed {
		chain, err := s.chain(ctx, id, s.ask)
		if err != nil {
			return nil, err
		}
		all = append(all, chain...)
	}
	return all, nil
}

// Import stores a chain with the key, leaf first, instead of the one that is stored. It returns how many of the
// certificates were not stored before. A NetHSM replaces nothing, so Import deletes the previous chain first, and
// restores it when the new one is rejected.
func (s *Store) Import(ctx context.Context, k keystore.Key, chain []*x509.Certificate) (int, error) {
	id := own(k).id
	s.forget(id)
	read := readCertificate(id)
	read.what = storing(id)
	previous, err := s.change(ctx, read, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return 0, err
	}
	var known []*x509.Certificate
	if previous.status == http.StatusOK {
		known, _ = parseChain(previous.body) // data other than certificates is replaced as well
		if slices.EqualFunc(known, chain, (*x509.Certificate).Equal) {
			return 0, nil
		}
		_, err = s.change(ctx, request{what: storing(id), method: http.MethodDelete, path: keyPath(id) + "/cert"},
			http.StatusNoContent, http.StatusNotFound)
	}
	if err == nil {
		err = s.putCertificate(ctx, id, encode(chain))
	}
	if err != nil && previous.status == http.StatusOK {
		return 0, s.restore(ctx, id, previous.body, err)
	}
	if err != nil {
		return 0, err
	}
	s.remember(id, chain)
	added := 0
	for _, cert := range chain {
		if !slices.ContainsFunc(known, cert.Equal) {
			added++
		}
	}
	return added, nil
}

func storing(id string) string { return "storing the certificate of key nethsm:" + id }

// encode returns a chain in PEM.
func encode(chain []*x509.Certificate) []byte {
	var data bytes.Buffer
	for _, cert := range chain {
		_ = pem.Encode(&data, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a buffer does not fail
	}
	return data.Bytes()
}

// putCertificate stores data as the certificate of a key that has none.
func (s *Store) putCertificate(ctx context.Context, id string, data []byte) error {
	_, err := s.change(ctx, request{
		what: storing(id), method: http.MethodPut, path: keyPath(id) + "/cert", body: data, sends: typeBytes,
		took:      func(ctx context.Context) (bool, error) { return s.hasCertificate(ctx, id, data) },
		uncertain: "it may be stored: see 'notation-hsm cert export nethsm:" + id + "'",
	}, http.StatusCreated, http.StatusNoContent)
	return err
}

// hasCertificate reports whether the data is stored as the certificate of a key.
func (s *Store) hasCertificate(ctx context.Context, id string, data []byte) (bool, error) {
	a, err := s.change(ctx, readCertificate(id), http.StatusOK, http.StatusNotFound)
	return err == nil && a.status == http.StatusOK && bytes.Equal(a.body, data), err
}

// restore stores the previous data of a key again, after cause prevented new data from being stored, even if ctx has
// ended. It returns cause with the result.
func (s *Store) restore(ctx context.Context, id string, data []byte, cause error) error {
	ctx = context.WithoutCancel(ctx) // each request is still limited by the timeout
	f := *failure.From(cause)
	if stored, err := s.hasCertificate(ctx, id, data); err != nil || !stored {
		if err := s.putCertificate(ctx, id, data); err != nil {
			f.What += "; and the previous certificate is lost (" + failure.From(err).Error() + ")"
			f.Hint = "once the cause is resolved, store a chain again: notation-hsm cert import nethsm:" + id + " FILE"
			return &f
		}
	}
	f.What += "; the previous certificate is stored as before"
	return &f
}
