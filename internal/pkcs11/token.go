package pkcs11

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// Token is a token in a slot, with a session open. It is not logged in until something needs that. Its keys may sign
// from many goroutines at once; everything else is for one.
type Token struct {
	*Module
	settings *config.Settings
	signing  string // what is done, in the words of an error; made once, not for each signature
	slot     uint
	info     tokenInfo
	sessions pool
	loggedIn bool
	loginErr error // why the one try failed; there is no second
}

// tokens lists the tokens of the module that the settings name.
func tokens(ctx context.Context, s *config.Settings) ([]key.Token, error) {
	m, err := Load(ctx, s)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var tokens []key.Token
	err = m.within(ctx, "listing tokens", func(context.Context) error {
		slots, err := m.calls.slots()
		if err != nil {
			return m.failed(err, "can't list the slots of %s", m.path)
		}
		for _, slot := range slots {
			info, err := m.calls.tokenInfo(slot)
			if err != nil {
				slog.Warn("no token information", "slot", slot, "error", err)
				continue
			}
			tokens = append(tokens, describe(slot, info))
		}
		return nil
	})
	return tokens, err
}

// Open loads the module, finds the one token that the settings name and opens a session on it.
func Open(ctx context.Context, s *config.Settings) (*Token, error) {
	m, err := Load(ctx, s)
	if err != nil {
		return nil, err
	}
	t := &Token{Module: m, settings: s, signing: "signing with key " + keyName(s.Key)}
	err = m.within(ctx, "opening a session", func(ctx context.Context) error {
		endTurn := m.turn(ctx)
		err := t.find()
		endTurn()
		if err != nil {
			return err
		}
		return t.openFirst(ctx)
	})
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Close closes the sessions, which logs out, and finalises the module.
func (t *Token) Close() error {
	t.closeSessions()
	return t.Module.Close()
}

// Describe returns what the token said of itself when it was opened.
func (t *Token) Describe() key.Token { return describe(t.slot, t.info) }

// find sets the slot and what is known of the token in it.
func (t *Token) find() error {
	want := t.settings.Key
	want.Object, want.ID = "", nil
	if want.SlotID != nil && want.Token == "" && want.Serial == "" {
		info, err := t.calls.tokenInfo(*want.SlotID)
		if err != nil {
			return t.failed(err, "can't use slot %d of %s", *want.SlotID, t.path)
		}
		if info.flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			return failure.New(failure.Invalid, "the token in slot %d of %s is not initialised", *want.SlotID, t.path).
				WithHint("initialise it with the vendor's tool, or use another: see 'notation-hsm token list'")
		}
		t.slot, t.info = *want.SlotID, info
		return nil
	}
	slots, err := t.calls.slots()
	if err != nil {
		return t.failed(err, "can't list the slots of %s", t.path)
	}
	var there, matching []key.Token
	var unread error
	for _, slot := range slots {
		info, err := t.calls.tokenInfo(slot)
		if is(err, pkcs11.CKR_TOKEN_NOT_PRESENT) || is(err, pkcs11.CKR_TOKEN_NOT_RECOGNIZED) {
			continue
		}
		if err != nil { // it must not hide the token in the next slot
			unread = t.failed(err, "can't read the token in slot %d of %s, and no other matches %s", slot, t.path, want)
			continue
		}
		token := describe(slot, info)
		there = append(there, token)
		if matches(want, token) {
			matching = append(matching, token)
			t.slot, t.info = slot, info
		}
	}
	named := want.String() != config.Scheme
	switch {
	case len(matching) == 1:
		return nil
	case len(matching) > 1 && !named:
		return failure.New(failure.Invalid,
			"the PKCS#11 module %s has %d tokens, and none is named:%s", t.path, len(matching), list(matching)).
			WithHint("name one, in the key's URI or with the setting token")
	case len(matching) > 1:
		return failure.New(failure.Invalid, "%d tokens match %s:%s", len(matching), want, list(matching)).
			WithHint("name one of them by its serial, as in the URIs shown")
	case unread != nil:
		return unread
	case len(there) == 0:
		return failure.New(failure.Invalid, "the PKCS#11 module %s shows no token", t.path).
			WithHint("check that the HSM is connected and its module configured (some modules read a file that a variable names: see " +
				"env in the config file)")
	}
	if !named {
		return failure.New(failure.Invalid, "the PKCS#11 module %s has no token that is initialised:%s", t.path, list(there)).
			WithHint("initialise one with the vendor's tool")
	}
	return failure.New(failure.Invalid, "no token matches %s; the module %s has:%s",
		want, t.path, list(there)).
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

// name is the token in the words of an error.
func (t *Token) name() string {
	if t.info.label == "" {
		return fmt.Sprintf("the token in slot %d", t.slot)
	}
	return fmt.Sprintf("token %q", t.info.label)
}
