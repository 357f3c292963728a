package pkcs11

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// Token is a token as one store of the process sees it: with the settings that it was opened by. It is not logged in
// until something needs that. It and its keys are safe for concurrent use.
type Token struct {
	module   *Module
	calls    *cryptoki // the module's
	settings *config.Settings
	conn     *connection // nil until it is found
	info     tokenInfo   // what the token said of itself when it was opened
	slot     uint        // where it was then
	signing  string      // the activity of a signature, made once
	closed   atomic.Bool
}

// open returns the one token that the settings name, with a session.
func (b *Backend) open(ctx context.Context, s *config.Settings) (*Token, error) {
	m, err := b.acquire(ctx, s)
	if err != nil {
		return nil, err
	}
	t := &Token{module: m, calls: m.calls, settings: s, signing: "signing with key " + keyName(s.Key)}
	_, err = callOrUndo(ctx, m, s.Timeout, "opening a session", func(ctx context.Context) (struct{}, error) {
		if err := t.find(ctx); err != nil {
			return struct{}{}, err
		}
		t.conn = m.connect(t.slot, t.info, s.Key)
		return struct{}{}, t.openFirst(ctx)
	}, func() { _ = t.Close() })
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Close ends the use of the token. The last store that closes it closes its sessions, which logs out; the last of the
// module finalises that. To close a store again does nothing.
func (t *Token) Close() error {
	if t.closed.Swap(true) {
		return nil
	}
	if t.conn != nil {
		t.conn.disconnect()
	}
	return t.module.release()
}

// Describe returns what the token said of itself when it was opened.
func (t *Token) Describe() key.Token { return describe(t.slot, t.info) }

// find sets the slot of the token that the settings name, and what is known of it.
func (t *Token) find(ctx context.Context) (err error) {
	t.slot, t.info, err = t.look(ctx, t.settings.Key)
	return err
}

// look is Module.find as a step, after it has started a module again that says that it is not.
func (t *Token) look(ctx context.Context, want config.URI) (slot uint, info tokenInfo, err error) {
	m, limit := t.module, t.settings.Timeout
	look := func() error {
		defer m.lock(ctx, limit)()
		_, err := step(ctx, m, limit, "looking for the token", func() (_ struct{}, err error) {
			slot, info, err = m.find(want)
			return struct{}{}, err
		})
		return err
	}
	if err = look(); is(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED) {
		if err = m.restart(ctx, t.settings); err == nil {
			err = look()
		}
	}
	return slot, info, err
}

// find returns the slot of the one token that a URI names, and what the token says of itself.
func (m *Module) find(want config.URI) (uint, tokenInfo, error) {
	want.Object, want.ID = "", nil
	if want.SlotID != nil && want.Token == "" && want.Serial == "" {
		return m.inSlot(*want.SlotID)
	}
	slots, err := m.calls.slots()
	if err != nil {
		return 0, tokenInfo{}, m.failed(err, "cannot list the slots of %s", m.path)
	}
	var there, matching []key.Token
	var slot uint
	var info tokenInfo
	var unread error
	for _, s := range slots {
		i, err := m.calls.tokenInfo(s)
		if is(err, pkcs11.CKR_TOKEN_NOT_PRESENT) || is(err, pkcs11.CKR_TOKEN_NOT_RECOGNIZED) {
			continue
		}
		if err != nil { // it must not hide the token in the next slot
			unread = m.failed(err, "cannot read the token in slot %d of %s, and no other matches %s", s, m.path, want)
			continue
		}
		token := describe(s, i)
		there = append(there, token)
		if matches(want, token) {
			matching = append(matching, token)
			slot, info = s, i
		}
	}
	if len(matching) == 1 {
		return slot, info, nil
	}
	if len(matching) == 0 && unread != nil {
		return 0, info, unread
	}
	return 0, info, m.notOne(want, there, matching)
}

// inSlot returns what the token in a slot says of itself.
func (m *Module) inSlot(slot uint) (uint, tokenInfo, error) {
	info, err := m.calls.tokenInfo(slot)
	if err != nil {
		return 0, info, m.failed(err, "cannot use slot %d of %s", slot, m.path)
	}
	if info.flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
		return 0, info, failure.New(failure.Invalid, "the token in slot %d of %s is not initialised", slot, m.path).
			WithHint("initialise it with the vendor's tool, or use another: see 'notation-hsm token list'")
	}
	return slot, info, nil
}

// notOne is the failure of a search that found no token, or several.
func (m *Module) notOne(want config.URI, there, matching []key.Token) error {
	named := want.String() != config.Scheme
	switch {
	case len(matching) > 1 && !named:
		return failure.New(failure.Invalid,
			"the PKCS#11 module %s has %d tokens, and none is named:%s", m.path, len(matching), list(matching)).
			WithHint("name one, in the key's URI or with the setting token")
	case len(matching) > 1:
		return failure.New(failure.Invalid, "%d tokens match %s:%s", len(matching), want, list(matching)).
			WithHint("name one of them by its serial, as in the URIs shown")
	case len(there) == 0:
		return failure.New(failure.NotFound, "the PKCS#11 module %s shows no token", m.path).
			WithHint("check that the HSM is connected and its module configured (some modules read a file " +
				"that a variable names: see env in the config file)")
	case !named:
		return failure.New(failure.Invalid, "the PKCS#11 module %s has no token that is initialised:%s", m.path, list(there)).
			WithHint("initialise one with the vendor's tool")
	}
	return failure.New(failure.NotFound, "no token matches %s; the module %s has:%s", want, m.path, list(there)).
		WithHint("use one of these, or check module-path")
}

func list(tokens []key.Token) string {
	var lines strings.Builder
	for _, t := range tokens {
		fmt.Fprintf(&lines, "\n  %s", t.URI)
		if !t.Initialized {
			lines.WriteString(" (not initialised)")
		}
	}
	return lines.String()
}

// matches reports whether a token is one that a reference names; what the reference leaves out matches any.
func matches(want config.URI, token key.Token) bool {
	same := func(want, is string) bool { return want == "" || unpad([]byte(want)) == is }
	if want.SlotID != nil && *want.SlotID != token.Slot {
		return false
	}
	return token.Initialized && same(want.Token, token.Label) && same(want.Serial, token.Serial) &&
		same(want.Manufacturer, token.Manufacturer) && same(want.Model, token.Model)
}

func describe(slot uint, info tokenInfo) key.Token {
	flag := func(bit uint) bool { return info.flags&bit != 0 }
	t := key.Token{
		Slot: slot, Label: info.label, Serial: info.serial, Manufacturer: info.manufacturer, Model: info.model,
		Initialized: flag(pkcs11.CKF_TOKEN_INITIALIZED), LoginRequired: flag(pkcs11.CKF_LOGIN_REQUIRED),
		PINPad: flag(pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH), PIN: pinState(info.flags),
		WriteProtect: flag(pkcs11.CKF_WRITE_PROTECTED) || info.isNetHSM(),
	}
	t.URI = config.URI{Token: info.label, Serial: info.serial, Manufacturer: info.manufacturer, Model: info.model}.String()
	if info.label == "" && info.serial == "" {
		t.URI = config.URI{SlotID: &slot}.String()
	}
	const endless = 1 << 31 // "unknown" and "as many as you like" are written in several ways, all of them larger, or as 0
	if info.sessions < endless && info.maxSessions < endless && info.maxSessions != 0 {
		t.Sessions = fmt.Sprintf("%d/%d", info.sessions, info.maxSessions)
	}
	return t
}

func pinState(flags uint) key.PINState {
	switch {
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return key.PINLocked
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return key.PINFinalTry
	case flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0:
		return key.PINCountLow
	case flags&pkcs11.CKF_USER_PIN_TO_BE_CHANGED != 0:
		return key.PINExpired
	case flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0:
		return key.PINNotSet
	}
	return key.PINReady
}

// name returns the token's name in an error.
func (t *Token) name() string {
	if t.info.label == "" {
		return fmt.Sprintf("the token in slot %d", t.slot)
	}
	return t.info.name()
}

// name returns the name in an error of a token whose slot does not matter.
func (i tokenInfo) name() string { return fmt.Sprintf("token %q", i.label) }
