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

// Token is a token in a slot, with a session open. It is not logged in until something needs that.
type Token struct {
	*Module
	settings *config.Settings
	slot     uint
	info     tokenInfo
	session  sessionHandle // the one that holds the login
	open     bool
	loggedIn bool
}

// Tokens lists the tokens of the module that the settings name.
func Tokens(ctx context.Context, s *config.Settings) ([]key.Token, error) {
	m, err := Load(ctx, s)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var tokens []key.Token
	err = m.within("listing tokens", func(context.Context) error {
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
	t := &Token{Module: m, settings: s}
	err = m.within("opening a session", func(ctx context.Context) error {
		if err := t.find(); err != nil {
			return err
		}
		return t.openSession(ctx)
	})
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Close closes the session, which logs out, and finalises the module.
func (t *Token) Close() error {
	if t.open && !t.stuck.Load() {
		t.open = false
		// Closing the last session logs the user out (PKCS#11 5.6, C_CloseSession): no C_Logout is needed.
		if err := t.cleanup("closing the session", func(context.Context) error { return t.calls.closeSession(t.session) }); err != nil {
			slog.Warn("closing the session", "error", err)
		}
	}
	return t.Module.Close()
}

// find sets the slot and what is known of the token in it.
func (t *Token) find() error {
	want := t.settings.Key
	if want.SlotID != nil && want.Token == "" && want.Serial == "" {
		info, err := t.calls.tokenInfo(*want.SlotID)
		if err != nil {
			return t.failed(err, "can't use slot %d of %s", *want.SlotID, t.path)
		}
		t.slot, t.info = *want.SlotID, info
		return nil
	}
	slots, err := t.calls.slots()
	if err != nil {
		return t.failed(err, "can't list the slots of %s", t.path)
	}
	var there, matching []key.Token
	var firstErr error
	for _, slot := range slots {
		info, err := t.calls.tokenInfo(slot)
		if err != nil {
			// A reader without its card must not hide the token in the next one.
			if firstErr == nil {
				firstErr = err
			}
			continue
		}
		token := describe(slot, info)
		there = append(there, token)
		if matches(want, token) {
			matching = append(matching, token)
			t.slot, t.info = slot, info
		}
	}
	switch {
	case len(matching) == 1:
		return nil
	case len(matching) > 1:
		return failure.New(failure.Invalid, "name one of them by its serial, as in the URIs shown",
			"%d tokens match %s:%s", len(matching), tokenName(want), list(matching))
	case firstErr != nil && len(there) == 0:
		return t.failed(firstErr, "can't read any token of %s", t.path)
	case len(there) == 0:
		return failure.New(failure.Invalid, "check that the HSM is connected and its module configured (some modules read a file that a variable names: see env in the config file)",
			"the PKCS#11 module %s shows no token", t.path)
	}
	return failure.New(failure.Invalid, "use one of these, or check module-path", "no token matches %s; the module %s has:%s",
		tokenName(want), t.path, list(there))
}

func tokenName(want config.URI) string {
	want.Object, want.ID = "", nil
	if text := want.String(); text != config.Scheme {
		return text
	}
	return "(no token is named)"
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
		PINPad: flag(pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH), WriteProtect: flag(pkcs11.CKF_WRITE_PROTECTED),
		PIN: pinState(info.flags),
	}
	t.URI = config.URI{Token: info.label, Serial: info.serial, Manufacturer: info.manufacturer, Model: info.model}.String()
	if info.label == "" && info.serial == "" {
		t.URI = config.URI{SlotID: &slot}.String()
	}
	const unknown, unlimited = ^uint(0), uint(0)
	if info.sessions != unknown && info.maxSessions != unknown && info.maxSessions != unlimited {
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
