package softhsmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// TSA is a time stamping authority (RFC 3161) on a loopback port; openssl makes its answers.
type TSA struct {
	URL  string
	Root string // PEM file
}

// StartTSA starts a time stamping authority that ends with the test.
func StartTSA(t testing.TB) TSA {
	t.Helper()
	openssl, dir := Program(t, "openssl"), t.TempDir()
	root := NewCA(t, "TSA Root", nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		t.Fatal(err)
	}
	template := Template("TSA")
	template.ExtKeyUsage = nil
	template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage}}
	leaf := root.Issue(t, template, &key.PublicKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	Write(t, filepath.Join(dir, "tsa.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	Write(t, filepath.Join(dir, "tsa.pem"), PEM(leaf))
	Write(t, filepath.Join(dir, "root.pem"), root.PEM())
	Write(t, filepath.Join(dir, "serial"), "01\n")
	Write(t, filepath.Join(dir, "tsa.cnf"), fmt.Sprintf(`[tsa]
serial = %[1]s/serial
signer_cert = %[1]s/tsa.pem
certs = %[1]s/root.pem
signer_key = %[1]s/tsa.key
signer_digest = sha256
default_policy = 1.3.6.1.4.1.99999.1
digests = sha256, sha384, sha512
accuracy = secs:1
ess_cert_id_chain = no
ess_cert_id_alg = sha256
`, dir))
	var one sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		one.Lock()
		defer one.Unlock()
		query, err := io.ReadAll(r.Body)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "query"), query, 0o600)
		}
		if err == nil {
			err = exec.Command(openssl, "ts", "-reply", "-config", filepath.Join(dir, "tsa.cnf"), "-section", "tsa",
				"-queryfile", filepath.Join(dir, "query"), "-out", filepath.Join(dir, "reply")).Run()
		}
		reply, readErr := os.ReadFile(filepath.Join(dir, "reply"))
		if err != nil || readErr != nil {
			http.Error(w, "no timestamp", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/timestamp-reply")
		_, _ = w.Write(reply)
	}))
	t.Cleanup(server.Close)
	return TSA{server.URL, filepath.Join(dir, "root.pem")}
}
