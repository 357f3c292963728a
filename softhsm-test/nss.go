package softhsmtest

import (
	"encoding/asn1"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"
)

// NSS makes a database of NSS and returns it as a token of NSS's softoken, which wants parameters in C_Initialize.
func NSS(t testing.TB) *Token {
	t.Helper()
	token := &Token{Dir: t.TempDir(), Label: "NSS Certificate DB",
		Module: library(t, "/usr/lib/*/libsoftokn3.so", "/usr/lib/*/nss/libsoftokn3.so", "/usr/lib64/libsoftokn3.so")}
	pin := filepath.Join(token.Dir, "pin")
	if err := os.WriteFile(pin, []byte(PIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	Run(t, Program(t, "certutil"), "-N", "-d", "sql:"+token.Dir, "-f", pin)
	token.InitArgs = fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='secmod.db' flags=", token.Dir)
	return token
}

// Generate makes a key pair on the token without the product, which generates none in a module that wants parameters.
func (token *Token) Generate(t testing.TB, spec, label string) {
	t.Helper()
	named := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(label)),
	}
	private := append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
	}, named...)
	public := append([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true)}, named...)
	var bits, mechanism uint
	if _, err := fmt.Sscanf(spec, "RSA-%d", &bits); err == nil {
		mechanism = pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN
		public = append(public, pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, bits),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	} else {
		mechanism = pkcs11.CKM_EC_KEY_PAIR_GEN
		curve, err := asn1.Marshal(map[string]asn1.ObjectIdentifier{
			"EC-256": {1, 2, 840, 10045, 3, 1, 7}, "EC-384": {1, 3, 132, 0, 34}, "EC-521": {1, 3, 132, 0, 35},
		}[spec])
		if err != nil {
			t.Fatal(err)
		}
		public = append(public, pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, curve))
	}
	if err := token.inSession(func(module *pkcs11.Ctx, session pkcs11.SessionHandle) error {
		_, _, err := module.GenerateKeyPair(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, public,
			private)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
