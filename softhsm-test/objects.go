package softhsmtest

import (
	"fmt"
	"testing"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// AddObjects fills the token with data objects that nobody looks for.
func AddObjects(t testing.TB, token *Token, count int) {
	t.Helper()
	if err := token.addObjects(t, count); err != nil {
		t.Fatal(err)
	}
}

func (token *Token) addObjects(t testing.TB, count int) error {
	t.Helper()
	return token.InSession(t, func(module *pkcs11.Ctx, session pkcs11.SessionHandle) error {
		for i := range count {
			if _, err := module.CreateObject(session, []*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA),
				pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
				pkcs11.NewAttribute(pkcs11.CKA_LABEL, fmt.Sprintf("object %d", i)),
				pkcs11.NewAttribute(pkcs11.CKA_VALUE, []byte("value")),
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

// AddVisibleKey makes an RSA key whose private half is a public object, which everybody sees. It may only sign; its
// public half may still encrypt.
func AddVisibleKey(t testing.TB, token *Token, label string) {
	t.Helper()
	if err := token.InSession(t, func(module *pkcs11.Ctx, session pkcs11.SessionHandle) error {
		named := []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(label)),
		}
		public := append([]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, 2048), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0,
				1}),
			pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		}, named...)
		private := append([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
			pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, false)}, named...)
		_, _, err := module.GenerateKeyPair(session,
			[]*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)}, public, private)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// InSession calls a function with a session in which the user is logged in, with the module in this process.
func (token *Token) InSession(t testing.TB, do func(*pkcs11.Ctx, pkcs11.SessionHandle) error) (err error) {
	t.Helper()
	InProcess(t, func() { err = token.inSession(do) })
	return err
}

func (token *Token) inSession(do func(*pkcs11.Ctx, pkcs11.SessionHandle) error) error {
	module := pkcs11.New(token.Module)
	if module == nil {
		return fmt.Errorf("cannot load %s", token.Module)
	}
	defer module.Destroy()
	var options []pkcs11.InitializeOption
	if token.InitArgs != "" {
		options = append(options, pkcs11.InitializeWithReserved(unsafe.Pointer(unsafe.StringData(token.InitArgs+"\x00"))))
	}
	if err := module.Initialize(options...); err != nil {
		return err
	}
	defer func() { _ = module.Finalize() }()
	slots, err := module.GetSlotList(true)
	if err != nil {
		return err
	}
	for _, slot := range slots {
		info, err := module.GetTokenInfo(slot)
		if err != nil || info.Label != token.Label {
			continue
		}
		session, err := module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return err
		}
		if err := module.Login(session, pkcs11.CKU_USER, PIN); err != nil {
			return err
		}
		if err := do(module, session); err != nil {
			return err
		}
		return module.CloseSession(session)
	}
	return fmt.Errorf("there is no token %q", token.Label)
}
