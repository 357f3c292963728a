package nethsmtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// publicKey reads a key's public.pem.
func (c caller) publicKey(id string) any {
	c.t.Helper()
	block, _ := pem.Decode(c.want(200, "GET", "/keys/"+id+"/public.pem", nil))
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	return key
}

func (c caller) sign(id, mode string, message []byte) []byte {
	c.t.Helper()
	body := object{"mode": mode, "message": encode64(message)}
	signature, err := base64.StdEncoding.DecodeString(c.field("signature", "POST", "/keys/"+id+"/sign", body))
	if err != nil {
		c.t.Fatal(err)
	}
	return signature
}

func (c caller) generate(id, kind string, more object) {
	c.t.Helper()
	body := object{"id": id, "type": kind, "mechanisms": mechanismsOf[kind]}
	for name, value := range more {
		body[name] = value
	}
	c.want(201, "POST", "/keys/generate", body)
}

func digestOf(hash crypto.Hash, message []byte) []byte {
	h := hash.New()
	h.Write(message)
	return h.Sum(nil)
}

func TestSignatures(t *testing.T) {
	s, admin, op, _ := provisioned(t)
	message := []byte("a message")

	admin.generate("rsa", "RSA", object{"length": 2048})
	public := op.publicKey("rsa").(*rsa.PublicKey)
	for name, hash := range hashes {
		if err := rsa.VerifyPSS(public, hash, digestOf(hash, message), op.sign("rsa", "PSS_"+name, digestOf(hash, message)),
			&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}); err != nil {
			t.Errorf("PSS_%s: %v", name, err)
		}
	}
	sum := sha256.Sum256(message)
	prefix := []byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
		0x04, 0x20}
	if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:],
		op.sign("rsa", "PKCS1", append(prefix, sum[:]...))); err != nil {
		t.Errorf("PKCS1: %v", err)
	}
	op.want(400, "POST", "/keys/rsa/sign", object{"mode": "PSS_SHA256", "message": encode64(sum[:20])})
	op.want(400, "POST", "/keys/rsa/sign", object{"mode": "ECDSA", "message": encode64(sum[:])})

	for kind, hash := range map[string]crypto.Hash{"EC_P256": crypto.SHA256, "EC_P384": crypto.SHA384,
		"EC_P521": crypto.SHA512} {
		admin.generate(kind, kind, nil)
		digest := digestOf(hash, message)
		if !ecdsa.VerifyASN1(op.publicKey(kind).(*ecdsa.PublicKey), digest, op.sign(kind, "ECDSA", digest)) {
			t.Errorf("%s: the signature does not verify", kind)
		}
	}
	op.want(400, "POST", "/keys/EC_P256/sign",
		object{"mode": "ECDSA", "message": encode64(digestOf(crypto.SHA384, message))})
	admin.generate("ed", "Curve25519", nil)
	if !ed25519.Verify(op.publicKey("ed").(ed25519.PublicKey), message, op.sign("ed", "EdDSA", message)) {
		t.Error("Curve25519: the signature does not verify")
	}
	if got := s.state.keys[keyName{id: "rsa"}].operations; got != len(hashes)+1 {
		t.Errorf("%d operations counted", got)
	}
}

func TestDecryption(t *testing.T) {
	s, _, op, _ := provisioned(t)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s.AddKey("rsa", private)
	secret := randomBytes(32)
	decrypted := func(mode string, encrypted []byte) string {
		t.Helper()
		return op.field("decrypted", "POST", "/keys/rsa/decrypt", object{"mode": mode, "encrypted": encode64(encrypted)})
	}
	for name, hash := range hashes {
		encrypted, err := rsa.EncryptOAEP(hash.New(), rand.Reader, &private.PublicKey, secret, nil)
		if err != nil {
			t.Fatal(err)
		}
		if decrypted("OAEP_"+name, encrypted) != encode64(secret) {
			t.Errorf("OAEP_%s: another text", name)
		}
	}
	encrypted, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, &private.PublicKey, secret, nil)
	if err != nil {
		t.Fatal(err)
	}
	op.want(400, "POST", "/keys/rsa/decrypt", object{"mode": "OAEP_SHA256", "encrypted": encode64(encrypted)})
	// the raw power of a number, with its leading zeros
	number := new(big.Int).SetBytes(secret)
	raw := new(big.Int).Exp(number, big.NewInt(int64(private.E)), private.N).Bytes()
	if got := decrypted("RAW", raw); got != encode64(number.FillBytes(make([]byte, 256))) {
		t.Errorf("RAW: %s", got)
	}
	op.want(400, "POST", "/keys/rsa/decrypt",
		object{"mode": "RAW", "encrypted": encode64(slices.Repeat([]byte{0xff}, 256))})
}

// TestImport imports a key by its numbers and finds the same public key in each form.
func TestImport(t *testing.T) {
	_, admin, op, _ := provisioned(t)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	body := object{"type": "RSA", "mechanisms": []string{"RSA_Signature_PSS_SHA256"}, "private": object{
		"primeP": encode64(private.Primes[0].Bytes()), "primeQ": encode64(private.Primes[1].Bytes()),
		"publicExponent": "AQAB"}}
	admin.want(204, "PUT", "/keys/rsa", body)
	admin.want(409, "PUT", "/keys/rsa", body)
	if !private.PublicKey.Equal(op.publicKey("rsa").(*rsa.PublicKey)) {
		t.Error("another public key")
	}
	op.want(400, "POST", "/keys/rsa/sign", object{"mode": "PKCS1", "message": "AAAA"}) // no such mechanism
	var shown struct {
		Public struct{ Modulus, PublicExponent string }
	}
	if err := json.Unmarshal(op.want(200, "GET", "/keys/rsa", nil), &shown); err != nil {
		t.Fatal(err)
	}
	if shown.Public.Modulus != encode64(private.N.Bytes()) || shown.Public.PublicExponent != "AQAB" {
		t.Errorf("public key %+v", shown)
	}
	for kind, curve := range curves {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		scalar, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		id := admin.field("id", "POST", "/keys",
			object{"type": kind, "mechanisms": mechanismsOf[kind], "private": object{"data": encode64(scalar)}})
		if !key.PublicKey.Equal(op.publicKey(id).(*ecdsa.PublicKey)) {
			t.Errorf("%s: another public key", kind)
		}
	}
	admin.want(400, "PUT", "/keys/bad",
		object{"type": "EC_P256", "mechanisms": mechanismsOf["EC_P256"], "private": object{"data": "AAAA"}})
	admin.want(400, "PUT", "/keys/bad", object{"type": "RSA", "mechanisms": mechanismsOf["RSA"],
		"private": object{"data": "AAAA"}})
}

func TestGenerate(t *testing.T) {
	ready, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s, admin, op, _ := provisioned(t, RSAKeys(ready))
	admin.generate("first", "RSA", object{"length": 2048})
	second := s.Instance()
	other := admin
	other.server = second
	other.generate("second", "RSA", object{"length": 2048})
	if !ready.PublicKey.Equal(op.publicKey("first")) || ready.PublicKey.Equal(op.publicKey("second")) {
		t.Error("a ready key is for one request, of any instance")
	}
	ec := object{"id": "ec", "type": "EC_P256", "mechanisms": mechanismsOf["EC_P256"]}
	admin.want(201, "POST", "/keys/generate", ec)
	if got := admin.want(400, "POST", "/keys/generate", ec); !strings.Contains(string(got), "already exists") {
		t.Errorf("a key twice: %s", got)
	}
	delete(ec, "id")
	if id := admin.field("id", "POST", "/keys/generate", ec); len(id) != 20 {
		t.Errorf("the ID made is %q", id)
	}
	for name, body := range map[string]object{
		"no length":       {"type": "RSA", "mechanisms": mechanismsOf["RSA"]},
		"short":           {"type": "RSA", "mechanisms": mechanismsOf["RSA"], "length": 512},
		"no mechanism":    {"type": "EC_P256", "mechanisms": []string{}},
		"other mechanism": {"type": "EC_P256", "mechanisms": mechanismsOf["RSA"]},
	} {
		t.Run(name, func(*testing.T) { admin.want(400, "POST", "/keys/generate", body) })
	}
	admin.want(501, "POST", "/keys/generate", object{"type": "BrainpoolP256", "mechanisms": mechanismsOf["BrainpoolP256"]})
	op.want(403, "POST", "/keys/generate", ec)
}

func (c caller) list(path string) []string {
	c.t.Helper()
	var list []struct{ ID, User string }
	if err := json.Unmarshal(c.want(200, "GET", path, nil), &list); err != nil {
		c.t.Fatal(err)
	}
	ids := []string{}
	for _, item := range list {
		ids = append(ids, item.ID+item.User)
	}
	return ids
}

func TestRestrictionsAndLists(t *testing.T) {
	s, admin, op, _ := provisioned(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.AddKey("ab-free", key)
	s.AddKey("ab-release", key, "release")
	s.AddKey("b-release", key, "release", "berlin")
	admin.want(204, "PUT", "/keys/ab-free/label", object{"label": "free ✓"})

	sum := object{"mode": "ECDSA", "message": encode64(randomBytes(32))}
	op.want(200, "POST", "/keys/ab-free/sign", sum)
	op.want(403, "POST", "/keys/ab-release/sign", sum)
	op.want(200, "GET", "/keys/ab-release", nil)
	op.want(200, "POST", "/keys/ab-release/csr.pem", object{"commonName": "example.com"})
	lists := map[string][]string{
		"/keys": {"ab-free", "ab-release", "b-release"}, "/keys?filter=": {"ab-free"}, "/keys/ab*": {"ab-free", "ab-release"},
		"/keys/ab*?filter=x": {"ab-free"}, "/keys?label=free+%E2%9C%93": {"ab-free"}, "/keys/x*": {},
	}
	for path, want := range lists {
		if got := op.list(path); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	if got := admin.list("/keys?filter="); len(got) != 3 {
		t.Errorf("the administrator's list is filtered: %v", got)
	}
	admin.want(204, "PUT", "/users/operator/tags/berlin", nil)
	op.want(200, "POST", "/keys/b-release/sign", sum)
	op.want(403, "POST", "/keys/ab-release/sign", sum)
	admin.want(204, "DELETE", "/users/operator/tags/berlin", nil)
	admin.want(404, "DELETE", "/users/operator/tags/berlin", nil)
	op.want(403, "POST", "/keys/b-release/sign", sum)
	admin.want(400, "PUT", "/users/admin/tags/berlin", nil)
	op.want(404, "POST", "/keys/none/sign", sum)
}

func TestKeyCertificates(t *testing.T) {
	s, admin, op, _ := provisioned(t)
	admin.generate("key", "EC_P256", nil)
	op.want(404, "GET", "/keys/key/cert", nil)
	admin.want(404, "DELETE", "/keys/key/cert", nil)
	admin.want(404, "PUT", "/keys/none/cert", []byte("x"))
	certificate := slices.Repeat([]byte("certificate "), 1000)
	op.want(403, "PUT", "/keys/key/cert", certificate)
	admin.want(201, "PUT", "/keys/key/cert", certificate)
	admin.want(409, "PUT", "/keys/key/cert", certificate)
	if got := op.want(200, "GET", "/keys/key/cert", nil); !slices.Equal(got, certificate) {
		t.Error("another certificate")
	}
	admin.want(200, "POST", "/keys/key/move", object{"newId": "moved"})
	op.want(200, "GET", "/keys/moved/cert", nil)
	op.want(404, "GET", "/keys/key/cert", nil)
	admin.want(413, "PUT", "/keys/moved/cert", make([]byte, maxBody+1))
	s.SetKeyCertificate("moved", nil)
	op.want(404, "GET", "/keys/moved/cert", nil)
}

func TestCSR(t *testing.T) {
	_, admin, _, _ := provisioned(t)
	admin.generate("key", "EC_P384", nil)
	csr := func(body object) *x509.CertificateRequest {
		t.Helper()
		block, _ := pem.Decode(admin.want(200, "POST", "/keys/key/csr.pem", body))
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := csr.CheckSignature(); err != nil {
			t.Error(err)
		}
		return csr
	}
	full := csr(object{"commonName": "example.com", "organizationName": "Example", "countryName": "DE",
		"emailAddress":    "a@example.com",
		"subjectAltNames": []string{"www.example.com", "IP:192.0.2.1"}})
	if got :=
		full.Subject.String(); got != "CN=example.com,O=Example,C=DE,1.2.840.113549.1.9.1=#0c0d61406578616d706c652e636f6d" {
		t.Errorf("subject %s", got)
	}
	if len(full.DNSNames) != 1 || len(full.IPAddresses) != 1 {
		t.Errorf("names %v %v", full.DNSNames, full.IPAddresses)
	}
	if got := csr(object{"commonName": "example.com"}).DNSNames; !slices.Equal(got, []string{"example.com"}) {
		t.Errorf("without the property: %v", got)
	}
	if got := csr(object{"commonName": "Signing", "subjectAltNames": []string{}}).DNSNames; len(got) != 0 {
		t.Errorf("with an empty list: %v", got)
	}
	admin.want(400, "POST", "/keys/key/csr.pem", object{"commonName": ""})
}
