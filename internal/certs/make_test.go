package certs

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"time"
)

// pssOnly is an RSA key that its module restricts to RSASSA-PSS.
type pssOnly struct{ *rsa.PrivateKey }

func (k pssOnly) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, pss := opts.(*rsa.PSSOptions); !pss {
		return nil, errors.New("CKR_KEY_FUNCTION_NOT_PERMITTED")
	}
	return k.PrivateKey.Sign(random, digest, opts)
}

// liar is a key that signs another digest than the given one.
type liar struct{ crypto.Signer }

func (k liar) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	other := make([]byte, len(digest))
	return k.Signer.Sign(random, other, opts)
}

// TestPSSOnly makes certificates and lists with a key that is restricted to RSASSA-PSS.
func TestPSSOnly(t *testing.T) {
	t.Parallel()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signer := pssOnly{private}
	template, err := CATemplate(Terms{Subject: "CN=Root", Days: 10}, nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := Sign(signer, template, nil, signer.Public())
	if err != nil || root.SignatureAlgorithm != x509.SHA256WithRSAPSS {
		t.Fatalf("%v, %v", root, err)
	}
	if template, err = LeafTemplate(Terms{Subject: "CN=leaf", Days: 9}, root); err != nil {
		t.Fatal(err)
	}
	leaf, err := Sign(signer, template, root, &newKey(t).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := Check([]*x509.Certificate{leaf, root}, time.Now()); err != nil {
		t.Error(err)
	}
	list, err := SignCRL(signer, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(),
		NextUpdate: time.Now().Add(time.Hour)}, root)
	if err != nil || list.SignatureAlgorithm != x509.SHA256WithRSAPSS {
		t.Errorf("%v, %v", list, err)
	}
}

// TestWrongSignature returns no certificate and no list whose signature does not verify.
func TestWrongSignature(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	template, err := CATemplate(Terms{Subject: "CN=Root", Days: 10}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Sign(liar{k}, template, nil, k.Public()); err == nil ||
		!strings.Contains(err.Error(), "cannot sign the certificate") {
		t.Errorf("a certificate with a wrong signature: %v", err)
	}
	root, err := Sign(k, template, nil, k.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SignCRL(liar{k}, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(),
		NextUpdate: time.Now().Add(time.Hour)}, root); err == nil {
		t.Error("a list with a wrong signature")
	}
}

// TestText signs texts with keys of all kinds. A signature verifies for this text, with the certificate of its signer
// only.
func TestText(t *testing.T) {
	t.Parallel()
	restricted, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, signer := range []crypto.Signer{newKey(t), restricted, pssOnly{restricted}} {
		var own []*x509.Certificate
		for _, k := range []crypto.Signer{signer, newKey(t)} {
			template, err := CATemplate(Terms{Subject: "CN=Root", Days: 10}, nil)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := Sign(k, template, nil, k.Public())
			if err != nil {
				t.Fatal(err)
			}
			own = append(own, cert)
		}
		signature, err := SignText(signer, []byte("text"))
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckText(own[0], []byte("text"), signature); err != nil {
			t.Error(err)
		}
		if CheckText(own[0], []byte("other"), signature) == nil || CheckText(own[1], []byte("text"), signature) == nil {
			t.Errorf("%T: another text, or another signer, verifies", signer)
		}
	}
}
