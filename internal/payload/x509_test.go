package payload

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
)

// TestX509OpenSSL reads what OpenSSL makes.
func TestX509OpenSSL(t *testing.T) {
	made := time.Date(2026, 11, 26, 21, 48, 41, 0, time.UTC)
	const serial = "5ef53e8593ff2a50a07d1cfd6801a8d101b1ada9"
	for file, want := range map[string]*Artifact{
		"x509-openssl-leaf-crt.der": {Encoding: "certificate", Name: "CN=release,O=Example,C=CH", SigningTime: made,
			Expiry: made.AddDate(1, 0, 0), Algorithm: "RSASSA-PKCS1-v1_5-SHA-256", Annotations: map[string]string{
				"issuer": "CN=Example Root,O=Example,C=CH", "serial": serial,
				"publicKey":              "sha256:3535caa4f01bcfe73f0d4771cc81334cdfb9dfa796b1effd6a4809a83bbaed61",
				"authorityKeyIdentifier": "30168014efc18fa824166790e5d2327a2925ea0027341638",
				"subjectKeyIdentifier":   "041400c4e38ec238bbf85e006c43cddff15480edd442",
				"extKeyUsage":            "codeSigning", "keyUsage": "critical, digitalSignature",
				"subjectAltName": `dns:"example.com", email:"release@example.com"`}},
		"x509-openssl-ca-crl.der": {Encoding: "crl", Name: "CN=Example Root,O=Example,C=CH", SigningTime: made,
			Expiry: made.AddDate(0, 0, 7), Algorithm: "RSASSA-PKCS1-v1_5-SHA-256", Annotations: map[string]string{
				"authorityKeyIdentifier": "30168014efc18fa824166790e5d2327a2925ea0027341638", "cRLNumber": "1000", "revoked": "1",
				"revoked[" + serial + "]": "2026-11-26T21:48:41Z", "revoked[" + serial + "].cRLReason": "01"}},
		"x509-openssl-ec-csr.der": {Encoding: "certificate request", Name: "CN=release,O=Example,C=CH",
			Annotations: map[string]string{
				"publicKey":   "sha256:3535caa4f01bcfe73f0d4771cc81334cdfb9dfa796b1effd6a4809a83bbaed61",
				"extKeyUsage": "codeSigning", "keyUsage": "critical, digitalSignature",
				"subjectAltName": `dns:"example.com", email:"release@example.com"`}},
	} {
		want.Format = X509
		if got, err := Read(readFile(t, file)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", file, got, err)
		}
	}
	for file, algorithm := range map[string]string{"x509-openssl-pss-crt.der": "RSASSA-PSS-SHA-256",
		"x509-openssl-pss384-crt.der": "RSASSA-PSS-SHA-384"} {
		if got, err := Read(readFile(t, file)); err != nil || got.Algorithm != algorithm {
			t.Errorf("%s: %+v, %v", file, got, err)
		}
	}
	long, err := Read(readFile(t, "x509-openssl-ca-crt.der")) // its end is a GeneralizedTime
	if err != nil || long.Expiry.Year() != 2109 || long.Annotations["basicConstraints"] != "critical, CA" {
		t.Errorf("%+v, %v", long, err)
	}
}

// TestX509Algorithms reads each signature algorithm as crypto/x509 encodes it, and refuses others.
func TestX509Algorithms(t *testing.T) {
	for algorithm, want := range map[x509.SignatureAlgorithm]string{
		x509.SHA256WithRSA: "RSASSA-PKCS1-v1_5-SHA-256", x509.SHA384WithRSA: "RSASSA-PKCS1-v1_5-SHA-384",
		x509.SHA512WithRSA: "RSASSA-PKCS1-v1_5-SHA-512", x509.SHA256WithRSAPSS: "RSASSA-PSS-SHA-256",
		x509.SHA384WithRSAPSS: "RSASSA-PSS-SHA-384", x509.SHA512WithRSAPSS: "RSASSA-PSS-SHA-512", x509.PureEd25519: "",
	} {
		var signer crypto.Signer = rsaKey(t)
		if want == "" {
			_, private, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			signer = private
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"},
			SignatureAlgorithm: algorithm, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		a, err := Read(cert.RawTBSCertificate)
		switch {
		case want != "" && (err != nil || a.Algorithm != want):
			t.Errorf("%v: %+v, %v", algorithm, a, err)
		case want == "" && (err == nil || !strings.Contains(err.Error(), "signature: unknown algorithm")):
			t.Errorf("%v: %+v, %v", algorithm, a, err)
		}
	}
}

// pssOnly is an RSA key that signs with RSASSA-PSS alone.
type pssOnly struct{ *rsa.PrivateKey }

func (k pssOnly) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, pss := opts.(*rsa.PSSOptions); !pss {
		return nil, errors.New("CKR_KEY_FUNCTION_NOT_PERMITTED")
	}
	return k.PrivateKey.Sign(random, digest, opts)
}

// TestX509Product reads the certificates, revocation lists and requests of this product, with all kinds of keys.
func TestX509Product(t *testing.T) {
	signers := map[string]crypto.Signer{}
	for name, curve := range map[string]elliptic.Curve{"ECDSA-SHA-256": elliptic.P256(), "ECDSA-SHA-384": elliptic.P384(),
		"ECDSA-SHA-512": elliptic.P521()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		signers[name] = k
	}
	signers["RSASSA-PKCS1-v1_5-SHA-256"], signers["RSASSA-PSS-SHA-256"] = rsaKey(t), pssOnly{rsaKey(t)}
	for algorithm, signer := range signers {
		t.Run(algorithm, func(t *testing.T) { productReads(t, algorithm, signer) })
	}
}

func productReads(t *testing.T, algorithm string, signer crypto.Signer) {
	length := 1
	template, err := certs.CATemplate(certs.Terms{Subject: "CN=Root,O=Example,C=CH", Days: 36525, PathLength: &length,
		Permit: []string{"dns:example.com", "ip:192.0.2.0/24"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := certs.Sign(signer, template, nil, signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	if template, err = certs.LeafTemplate(certs.Terms{Subject: "CN=release,OU=a\\,b,C=CH,ST=Zürich", Days: 9,
		CDP: "http://pki.example.com/root.crl", OCSP: "http://ocsp.example.com"}, root); err != nil {
		t.Fatal(err)
	}
	leaf, err := certs.Sign(signer, template, root, signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	self, err := certs.SelfSign(signer, pkix.Name{CommonName: "release"}, 365)
	if err != nil {
		t.Fatal(err)
	}
	own, err := x509.ParseCertificate(self)
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, err := certs.KeyFingerprint(signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	for words, cert := range map[string]*x509.Certificate{"CA, path length 1": root, "not a CA": leaf,
		"critical, not a CA": own} {
		a, err := Read(cert.RawTBSCertificate)
		if err != nil {
			t.Fatalf("%s: %v", words, err)
		}
		if a.Encoding != "certificate" || a.Name != cert.Subject.String() ||
			a.Annotations["issuer"] != cert.Issuer.String() ||
			a.Annotations["serial"] != certs.Serial(cert) || !a.SigningTime.Equal(cert.NotBefore) ||
			!a.Expiry.Equal(cert.NotAfter) || a.Algorithm != algorithm || a.Annotations["publicKey"] != "sha256:"+fingerprint ||
			!strings.Contains(a.Annotations["basicConstraints"], words) {
			t.Errorf("%s: %+v", words, a)
		}
	}
	for cert, want := range map[*x509.Certificate]map[string]string{
		root: {"nameConstraints": `critical, permit dns:"example.com", permit ip:192.0.2.0/24`},
		leaf: {"cRLDistributionPoints": `uri:"http://pki.example.com/root.crl"`,
			"authorityInfoAccess": `OCSP uri:"http://ocsp.example.com"`},
	} {
		a, err := Read(cert.RawTBSCertificate)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range want {
			if a.Annotations[name] != text {
				t.Errorf("%s is %s", name, a.Annotations[name])
			}
		}
	}
	now := time.Now().UTC().Truncate(time.Second)
	for _, entries := range [][]x509.RevocationListEntry{nil, {{SerialNumber: leaf.SerialNumber, RevocationTime: now,
		ReasonCode: 1}, {SerialNumber: big.NewInt(7), RevocationTime: now}}} {
		list, err := certs.SignCRL(signer, &x509.RevocationList{Number: big.NewInt(300), ThisUpdate: now,
			NextUpdate: now.AddDate(30, 0, 0), RevokedCertificateEntries: entries}, root)
		if err != nil {
			t.Fatal(err)
		}
		a, err := Read(list.RawTBSRevocationList)
		if err != nil {
			t.Fatal(err)
		}
		if a.Encoding != "crl" || a.Name != "CN=Root,O=Example,C=CH" || !a.SigningTime.Equal(now) ||
			a.Algorithm != algorithm ||
			a.Annotations["cRLNumber"] != "012c" || a.Annotations["revoked"] != map[int]string{0: "0", 2: "2"}[len(entries)] ||
			!a.Expiry.Equal(now.AddDate(30, 0, 0)) {
			t.Errorf("%+v", a)
		}
		if len(entries) > 0 && (a.Annotations["revoked[07]"] != now.Format(time.RFC3339) ||
			a.Annotations["revoked["+certs.Serial(leaf)+"].cRLReason"] != "01") {
			t.Errorf("%+v", a)
		}
	}
	der, err := certs.Request(signer, pkix.Name{CommonName: "release"})
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Read(request.RawTBSCertificateRequest)
	if err != nil || a.Encoding != "certificate request" || a.Name != "CN=release" || a.Algorithm != "" ||
		a.Annotations["keyUsage"] != "critical, digitalSignature" || a.Annotations["extKeyUsage"] != "codeSigning" {
		t.Errorf("%+v, %v", a, err)
	}
}

// element returns an element in DER.
func element(tag byte, contents ...[]byte) []byte {
	content := bytes.Join(contents, nil)
	der, err := asn1.Marshal(asn1.RawValue{Class: int(tag >> 6), Tag: int(tag & 0x1f), IsCompound: tag&0x20 != 0,
		Bytes: content})
	if err != nil {
		panic(err)
	}
	return der
}

// fromHex decodes hex with spaces.
func fromHex(text string) []byte {
	data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		panic(err)
	}
	return data
}

// The parts of a certificate, a revocation list and a request that are read.
func x509Parts() map[string][]byte {
	name := element(0x30, element(0x31, element(0x30, fromHex("0603 550403"), element(0x0c, []byte("ca")))))
	now, later := element(0x17, []byte("260102030405Z")), element(0x17, []byte("270102030405Z"))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	constraints := fromHex("300f 0603551d13 0101ff 0405 3003 0101ff")
	return map[string][]byte{
		"v3": fromHex("a003 020102"), "serial": fromHex("0201 05"), "algorithm": fromHex("300a 06082a8648ce3d040302"),
		"name": name, "now": now, "later": later, "validity": element(0x30, now, later), "public": public,
		"extensions": element(0xa3, element(0x30, constraints)), "v2": fromHex("020101"), "v1": fromHex("020100"),
		"entries":        element(0x30, element(0x30, fromHex("0201 07"), now)),
		"crl extensions": element(0xa0, element(0x30, fromHex("300a 0603551d14 0403 020109"))),
		"attributes": element(0xa0, element(0x30, fromHex("0609 2a864886f70d01090e"),
			element(0x31, element(0x30, constraints)))),
	}
}

var x509Orders = map[string][]string{
	"certificate":         {"v3", "serial", "algorithm", "name", "validity", "name", "public", "extensions"},
	"crl":                 {"v2", "algorithm", "name", "now", "later", "entries", "crl extensions"},
	"certificate request": {"v1", "name", "public", "attributes"},
}

func TestX509Refuses(t *testing.T) {
	parts := x509Parts()
	build := func(kind, change string, by []byte) []byte {
		var all [][]byte
		for _, part := range x509Orders[kind] {
			if data := parts[part]; part == change {
				all = append(all, by)
			} else {
				all = append(all, data)
			}
		}
		if change == "after" {
			all = append(all, by)
		}
		return element(0x30, all...)
	}
	for kind := range x509Orders {
		if a, err := Read(build(kind, "", nil)); err != nil || a.Encoding != kind {
			t.Fatalf("%s: %+v, %v", kind, a, err)
		}
	}
	extensions := func(list ...string) []byte {
		var all [][]byte
		for _, e := range list {
			all = append(all, element(0x30, fromHex(e)))
		}
		return element(0xa3, element(0x30, all...))
	}
	named := func(tag byte, text string, more ...[]byte) []byte {
		return element(0x30, element(0x31, element(0x30, append([][]byte{fromHex("0603 550403"), element(tag, []byte(text))},
			more...)...)))
	}
	entry := func(der string) []byte { return element(0x30, fromHex(der), parts["now"]) }
	ecKey := parts["public"]
	for _, c := range []struct {
		kind, change string
		by           []byte
		words        string
	}{
		{"certificate", "v3", nil, "version: "},
		{"certificate", "v3", fromHex("a003 020101"), "version: 2 instead of 3"},
		{"certificate", "v3", fromHex("a004 02020002"), "version: 02020002 is not in the canonical encoding"},
		{"certificate", "v3", fromHex("a006 020102 020102"), "version: "},
		{"certificate", "serial", fromHex("0202 0005"), "serial number: 02020005 is not in the canonical encoding"},
		{"certificate", "serial", fromHex("0201 00"), "serial number: not a positive number"},
		{"certificate", "serial", fromHex("0201 85"), "serial number"},
		{"certificate", "serial", element(2, bytes.Repeat([]byte{1}, 21)), "serial number: not a positive number of at"},
		{"certificate", "serial", fromHex("0281 0105"), "more bytes than it needs"},
		{"certificate", "serial", nil, "serial number: an element of type 0x30 instead"},
		{"certificate", "algorithm", fromHex("300c 06082a8648ce3d040302 0500"), "signature: unknown algorithm"},
		{"certificate", "algorithm", fromHex("300b 06092a864886f70d01010b"), "signature: unknown algorithm"},
		{"certificate", "algorithm", fromHex("300d 06092a864886f70d010105 0500"), "signature: unknown algorithm"},
		{"certificate", "algorithm", fromHex("300d 06092a864886f70d01010a 0500"), "signature: unknown algorithm"},
		{"certificate", "name", named(0x13, "a@b"), "issuer: 1303614062 is not in the canonical encoding"},
		{"certificate", "name", named(0x0c, "\xff"), "issuer: 0c01ff is not in the canonical encoding"},
		{"certificate", "name", named(0x14, "ca"), "issuer: 14026361 is not in the canonical encoding"},
		{"certificate", "name", named(0x2c, "\x0c\x02ca"), "issuer: a wrongly constructed element"},
		{"certificate", "name", named(0x0c, "ca", fromHex("0500")), "issuer: a value that is unknown"},
		{"certificate", "name", element(0x30, element(0x31,
			element(0x30, fromHex("0603 550403"), element(0x0c, []byte("b"))),
			element(0x30, fromHex("0603 550403"), element(0x0c, []byte("a"))))), "in a set that is not sorted"},
		{"certificate", "name", element(0x30, element(0x31,
			element(0x30, fromHex("0603 550403"), element(0x0c, []byte("a"))),
			element(0x30, fromHex("0603 550403"), element(0x0c, []byte("a"))))), "in a set that is not sorted"},
		{"certificate request", "name", named(0x02, "\x05"), "subject: name 0 of 1: a value of type 0x2 instead of text"},
		{"certificate request", "name", named(0x30, "\x0c\x01a"), "0x30 instead of text"},
		{"certificate request", "name", named(0x80, "a"), "0x80 instead of text"},
		{"certificate request", "name", element(0x30, bytes.Repeat(named(0x0c, "a")[2:], 700)), "more than 8192"},
		{"certificate", "name", element(0x30, element(0x31)), "subject: name 0 of 1 without attributes"},
		{"certificate", "name", element(0x30), "issuer: empty"},
		{"crl", "name", element(0x30), "issuer: empty"},
		{"crl", "name", element(0x30, element(0x31)), "issuer: name 0 of 1 without attributes"},
		{"certificate", "validity", element(0x30, element(0x17, []byte("2601020304Z")), parts["later"]), "validity"},
		{"certificate", "validity", element(0x30, element(0x17, []byte("260102030405+0000")), parts["later"]), "validity"},
		{"certificate", "validity", element(0x30, element(0x18, []byte("20260102030405Z")), parts["later"]),
			"validity: not before"},
		{"certificate", "validity", element(0x30, parts["now"], element(0x18, []byte("20510102030405.5Z"))), "validity"},
		{"certificate", "validity", element(0x30, parts["now"], parts["later"], parts["later"]), "unknown"},
		{"certificate", "validity", element(0x30, parts["now"]), "validity: not after: missing"},
		{"certificate", "public", element(0x30, ecKey[2:], fromHex("0500")), "public key"},
		{"certificate", "public", ecKey[:len(ecKey)-1], "cut short"},
		{"certificate", "extensions", nil, "extensions: missing"},
		{"certificate", "extensions", element(0xa3, element(0x30)), "extensions: an empty list"},
		{"certificate", "extensions", extensions("0603551d13 010100 0405 3003 0101ff"), "extensions[0]: a value"},
		{"certificate", "extensions", extensions("0603551d13 010101 0405 3003 0101ff"), "extensions: 010101 is not"},
		{"certificate", "extensions", extensions("0603551d13 0405 3003 010100"), "extensions[0] (2.5.29.19): a value"},
		{"certificate", "extensions", extensions("0603551d13 0406 3003 0101ff 00"), "extensions[0] (2.5.29.19): "},
		{"certificate", "extensions", extensions("0603551d13 0403 020103"), "extensions[0] (2.5.29.19): "},
		{"certificate", "extensions", extensions("0603551d13 0405 3003 020101"), "extensions[0] (2.5.29.19): path length"},
		{"certificate", "extensions", extensions("0603551d0f 0404 03020080"), "extensions[0] (2.5.29.15): 8 bits"},
		{"certificate", "extensions", extensions("0603551d0f 0404 03020781", "0603551d13 0402 3000"),
			"extensions[0] (2.5.29.15): 03020781 is not"},
		{"certificate", "extensions", extensions("0603551d13 0402 3000", "0603551d13 0402 3000"),
			"extensions[1]: the extension basicConstraints twice"},
		{"certificate", "extensions", extensions("06022a03 0101ff 0402 0500"), "the critical extension 1.2.3 is unknown"},
		{"certificate", "extensions", extensions("0603551d14 0101ff 0403 020109"), "2.5.29.20 must not be critical"},
		{"certificate", "extensions", extensions("06022a03 0402 0501"), "extensions[0] (1.2.3): "},
		{"certificate", "extensions", extensions("06022a03 0404 0500 0500"), "extensions[0] (1.2.3): 2 elements"},
		{"certificate", "extensions", extensions("06022a03 0400"), "extensions[0] (1.2.3): 0 elements"},
		{"certificate", "extensions", extensions("0603551d14 0403 040109"), "extensions[0] (2.5.29.20): an element of"},
		{"certificate", "extensions", extensions("0603551d15 0403 020101"), "extensions[0] (2.5.29.21): an element of"},
		{"certificate", "after", fromHex("0500"), "an element of type 0x5 that is unknown"},
		{"certificate", "public", append(bytes.Clone(ecKey), fromHex("8102 0001")...), "extensions: an element of type 0x81"},
		{"crl", "v2", fromHex("020102"), "version: neither"},
		{"crl", "v2", fromHex("02020001"), "version: neither"},
		{"crl", "later", nil, "next update: an element of type 0x30 instead"},
		{"crl", "entries", element(0x30), "revoked certificates: an empty list"},
		{"crl", "entries", element(0x30, entry("020107"), entry("020107")), "revoked certificates[1]: the serial number 07"},
		{"crl", "entries", element(0x30, entry("0201ff")), "revoked certificates[0]: serial number: not a positive"},
		{"crl", "entries", element(0x30, element(0x30, fromHex("020107"), parts["now"], element(0x30))),
			"revoked certificates[0].extensions: an empty list"},
		{"crl", "entries", element(0x30, element(0x30, fromHex("020107"), parts["now"], fromHex("0500"))),
			"revoked certificates[0]: an element"},
		{"crl", "crl extensions", element(0xa0, element(0x30, element(0x30, fromHex("06022a03 0101ff 0402 0500")))),
			"extensions[0]: the critical extension 1.2.3 is unknown"},
		{"crl", "entries", element(0x30, element(0x30, fromHex("020107"), parts["now"],
			element(0x30, element(0x30, fromHex("0603551d1d 0101ff 0402 0500"))))),
			"revoked certificates[0].extensions[0]: the critical extension 2.5.29.29 is unknown"},
		{"crl", "crl extensions", nil, "extensions: missing"},
		{"crl", "algorithm", fromHex("300c 06082a8648ce3d040302 0500"), "signature: unknown algorithm"},
		{"certificate request", "attributes", nil, "attributes: missing"},
		{"certificate request", "attributes", element(0xa0, element(0x30, fromHex("0609 2a864886f70d010907"),
			element(0x31, element(0x0c, []byte("password"))))), "attributes: 1.2.840.113549.1.9.7 is unknown"},
		{"certificate request", "attributes", element(0xa0, parts["attributes"][2:], parts["attributes"][2:]), "not one"},
		{"certificate request", "after", fromHex("0500"), "an element of type 0x5 that is unknown"},
	} {
		data := build(c.kind, c.change, c.by)
		if a, err := Read(data); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s with %s %x: %+v, %v, which does not say %q", c.kind, c.change, c.by, a, err, c.words)
		}
		if a, err := Read(append(data, 0)); err == nil {
			t.Errorf("%s with a byte after it: %+v", c.kind, a)
		}
	}
	for kind := range x509Orders {
		whole := build(kind, "", nil)
		for _, data := range [][]byte{append(bytes.Clone(whole), 0), append(bytes.Clone(whole), whole...),
			whole[:len(whole)-1], append([]byte{0x30, 0x80}, whole[3:]...), whole[3:]} {
			if a, err := Read(data); err == nil {
				t.Errorf("%s as %x: %+v", kind, data, a)
			}
		}
	}
}

// TestX509Names shows names in extensions in words if these say all, and otherwise in hex.
func TestX509Names(t *testing.T) {
	const dns, ip = "8203 612e62", "8704 c0000201"
	for _, c := range []struct{ id, value, want string }{
		{"11", "300b" + dns + ip, `dns:"a.b", ip:192.0.2.1`},
		{"11", "3009" + dns + "8802 2a03", "30098203612e6288022a03"},
		{"11", "3005" + "8703 c00002", "30058703c00002"},
		{"1e", "300c a10a 3008" + "8206 612e62633a64", `exclude dns:"a.bc:d"`},
		{"1e", "300c a00a 3008" + dns + "8001 05", "300ca00a30088203612e62800105"},
		{"1f", "300b 3009 a007 a005" + dns, `dns:"a.b"`},
		{"1f", "300f 300d a007 a005" + dns + "8102 0780", "300f300da007a0058203612e6281020780"},
	} {
		der := fromHex("0603 551d" + c.id)
		got, err := extensionText(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, int(der[4])}, Value: fromHex(c.value)})
		if err != nil || got != c.want {
			t.Errorf("%s: %s, %v, not %s", c.value, got, err, c.want)
		}
	}
}

// TestX509Name shows each attribute of a name. pkix.Name shows one common name alone.
func TestX509Name(t *testing.T) {
	parts := x509Parts()
	attribute := func(text string) []byte {
		return element(0x31, element(0x30, fromHex("0603 550403"), element(0x0c, []byte(text))))
	}
	names := element(0x30, attribute("other"), attribute("release"))
	a, err := Read(element(0x30, parts["v1"], names, parts["public"], element(0xa0)))
	if err != nil || a.Name != "CN=release,CN=other" {
		t.Errorf("%+v, %v", a, err)
	}
}
