// Command issuer plays, in the demonstration of a team's broker, the CI system that issues tokens (OpenID Connect) and
// the CA that issues certificates:
//
//	issuer certificate DIR NAME            makes DIR/NAME.pem and DIR/NAME.key for 127.0.0.1 and CN=NAME, by DIR/ca.pem
//	issuer serve DIR ADDRESS               serves the issuer https://ADDRESS, with the certificate DIR/issuer.pem
//	issuer token DIR ADDRESS AUDIENCE REPOSITORY REF
//	                                       prints a token as a job of GitHub Actions gets it
//
// Its keys are in DIR. It is for demonstrations alone.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "certificate":
		return certificate(args[1], args[2])
	case len(args) == 3 && args[0] == "serve":
		return serve(args[1], args[2])
	case len(args) == 6 && args[0] == "token":
		return token(args[1], args[2], args[3], args[4], args[5])
	}
	return errors.New("usage: issuer certificate DIR NAME | serve DIR ADDRESS |" +
		" token DIR ADDRESS AUDIENCE REPOSITORY REF")
}

// certificate makes a certificate and its key.
func certificate(dir, name string) error {
	ca, err := authority(dir)
	if err != nil {
		return err
	}
	issuer, err := certificateIn(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	key, err := keyIn(filepath.Join(dir, name+".key"))
	if err != nil {
		return err
	}
	return issue(filepath.Join(dir, name+".pem"), &x509.Certificate{Subject: pkix.Name{CommonName: name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, issuer, key.Public(), ca)
}

// authority returns the key of the CA, which it makes if there is none.
func authority(dir string) (*ecdsa.PrivateKey, error) {
	key, err := keyIn(filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "ca.pem")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "demonstration"}, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign}
	return key, issue(path, template, template, key.Public(), key)
}

// issue signs a certificate that is good for a day.
func issue(path string, template, issuer *x509.Certificate, public crypto.PublicKey, key *ecdsa.PrivateKey) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	template.SerialNumber, template.BasicConstraintsValid = serial, true
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

func certificateIn(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s has no certificate", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// keyIn returns the key in a file, which it makes if there is none.
func keyIn(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		return key, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s has no key", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s has a key that is not EC", path)
	}
	return key, nil
}

// signing returns the key that signs tokens.
func signing(dir string) (jose.JSONWebKey, error) {
	key, err := keyIn(filepath.Join(dir, "tokens.key"))
	return jose.JSONWebKey{Key: key, KeyID: "demonstration", Use: "sig", Algorithm: "ES256"}, err
}

// serve serves what verifiers of tokens ask an issuer for (OpenID Connect Discovery 1.0).
func serve(dir, address string) error {
	key, err := signing(dir)
	if err != nil {
		return err
	}
	answers := map[string]any{
		"/.well-known/openid-configuration": map[string]any{"issuer": "https://" + address,
			"jwks_uri": "https://" + address + "/keys"},
		"/keys": jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}},
	}
	server := &http.Server{Addr: address, ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answer, ok := answers[r.URL.Path]
			if !ok {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer)
		})}
	return server.ListenAndServeTLS(filepath.Join(dir, "issuer.pem"), filepath.Join(dir, "issuer.key"))
}

// token prints a token with the claims of https://docs.github.com/en/actions/reference/security/oidc that a broker
// needs.
func token(dir, address, audience, repository, ref string) error {
	key, err := signing(dir)
	if err != nil {
		return err
	}
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": "https://" + address, "aud": audience, "sub": "repo:" + repository + ":ref:" + ref, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"repository": repository, "repository_id": "74", "repository_owner": "example", "repository_owner_id": "65",
		"ref": ref, "sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e", "event_name": "push", "run_id": "9001",
		"run_attempt": "1", "workflow_ref": repository + "/.github/workflows/release.yml@" + ref,
	})
	if err != nil {
		return err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return err
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		return err
	}
	compact, err := signed.CompactSerialize()
	if err == nil {
		_, err = fmt.Print(compact)
	}
	return err
}
