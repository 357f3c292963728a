package custody

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/certs"
)

// Limits of what reading a file allocates. A share costs curve points, and age allocates chunks of 64 KiB.
var (
	shareCost  = boundtest.Budget{Bytes: 256 << 10, BytesPerByte: 32}
	backupCost = boundtest.Budget{Bytes: 64 << 10, BytesPerByte: 28}
)

// FuzzShare verifies that no share file crashes the parser or costs more than its size allows, and that every accepted
// share has numbers in range.
func FuzzShare(f *testing.F) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	ids := &identities{files: []age.Identity{identity}}
	custodian, err := parseCustodian(f.Context(), nil, identity.Recipient().String())
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range []struct{ n, threshold int }{{3, 2}, {100, 100}} {
		_, _, shares, err := split("backup", c.n, c.threshold)
		if err != nil {
			f.Fatal(err)
		}
		data, err := json.MarshalIndent(shares[0], "", "  ")
		if err != nil {
			f.Fatal(err)
		}
		sealed, err := custodian.encrypt(data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(sealed)
		f.Add([]byte(strings.Replace(string(data), `"threshold": 2`, `"threshold": 1`, 1)))
		f.Add([]byte(strings.Replace(string(data), `"value": "`, `"value": "00`, 1)))
	}
	stanza := "-> X25519 " + strings.Repeat("A", 43) + "\n" + strings.Repeat("A", 43) + "\n"
	f.Add([]byte("age-encryption.org/v1\n" + strings.Repeat(stanza, 150)))
	f.Add([]byte("age-encryption.org/v1\n-> " + strings.Repeat("a ", 7<<10)))
	f.Add(bytes.Repeat([]byte("["), 15<<10))
	f.Add([]byte(`{"ciphertext":"` + strings.Repeat("A", 15<<10) + `"}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > shareBounds.Bytes { // readSecret refuses it
			return
		}
		shareCost.Check(t, len(data), func() {
			plain, err := ids.decrypt(t.Context(), "share", data)
			if err != nil {
				return
			}
			if s, err := parseShare("share", plain); err == nil && (len(s.Commitments) != s.Threshold || s.Number > s.Of) {
				t.Errorf("%s is accepted", data)
			}
		})
	})
}

// exampleBackup is a backup as Backup writes it, with a MAC that verifies nowhere.
func exampleBackup(tb testing.TB) backupFile {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "release"},
		NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	b := backupFile{
		Version: backupVersion, Made: time.Now().UTC().Truncate(time.Second), Token: "signing", Label: "release", ID: "0102",
		Spec:         "EC-256",
		PublicKey:    string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		Certificates: string(certs.Encode([]*x509.Certificate{cert})),
		Attributes:   backupAttributes{true, true, true, true}, WrappingKey: wrappingRef{"backup", "0304"},
		Mechanism: "CKM_AES_KEY_WRAP_PAD", Wrapped: make([]byte, 80),
		MAC: &backupMAC{make([]byte, 40), make([]byte, 32)},
	}
	if b.Checksum, err = b.checksum(); err != nil {
		tb.Fatal(err)
	}
	return b
}

// FuzzBackup verifies that no backup crashes the parser or costs more than its size allows, and that every accepted
// backup is encoded again as it was.
func FuzzBackup(f *testing.F) {
	whole := exampleBackup(f)
	older := whole
	older.Version, older.MAC = unauthenticatedVersion, nil
	many := whole
	many.Certificates = strings.Repeat(many.Certificates, 300)
	for _, b := range []backupFile{whole, older, many} {
		data, err := json.MarshalIndent(b, "", "  ")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add(bytes.Repeat([]byte(`{"mac":`), 30<<10))
	f.Add([]byte("{" + strings.Repeat(`"label":"",`, 20<<10) + `"label":""}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > backupBounds.Bytes { // bound.ReadFile refuses it
			return
		}
		var b *backupFile
		var err error
		backupCost.Check(t, len(data), func() { b, err = parseBackup("backup", data) })
		if err == nil {
			var compact bytes.Buffer
			again, err := json.Marshal(b)
			if err != nil || json.Compact(&compact, data) != nil || !bytes.Equal(again, compact.Bytes()) {
				t.Errorf("%s is accepted, and encoded as %s, %v", data, again, err)
			}
		} else { // what a writer who makes a checksum gets to
			b = &backupFile{}
			if json.Unmarshal(data, b) != nil {
				return
			}
		}
		backupCost.Check(t, len(data), func() { _, _ = b.contents("backup") })
	})
}
