package approval

import (
	"strings"
	"testing"
)

// TestOneEncoding checks that each document has one encoding: JSON that means the same is refused.
func TestOneEncoding(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.decide(carol, Approve)
	need := s.verify().Needs[0]
	rule, names := s.evidence.Rules[need.Need.Rules[0].Digest], need.Alternatives[0].Rule.Names
	for name, c := range map[string]struct {
		data   []byte
		decode func([]byte) error
		field  string // one that it has
	}{
		"approval": {encode(t, new(exampleApproval(alice, statement))), func(data []byte) error {
			_, err := Decode(data)
			return err
		}, "approver"},
		"login": {encode(t, new(exampleLogin())), func(data []byte) error {
			_, err := DecodeLogin(data)
			return err
		}, "broker"},
		"envelope": {s.evidence.Approvals[0], func(data []byte) error {
			_, err := DecodeEnvelope(data)
			return err
		}, "approval"},
		"credential": {encode(t, &s.people[carol].credential), func(data []byte) error {
			_, err := DecodeCredential(data)
			return err
		}, "approver"},
		"statement": {s.evidence.Statement, func(data []byte) error {
			_, err := DecodeStatement(data)
			return err
		}, "predicate"},
		"rule": {rule, func(data []byte) error {
			_, _, err := DecodeRule(data)
			return err
		}, "members"},
		"names": {s.names[names], func(data []byte) error {
			_, err := DecodeNames(data)
			return err
		}, "people"},
		"opening": {encode(t, &Opening{Issuer: "mtls", Subject: "ci"}), func(data []byte) error {
			_, err := DecodeOpening(data)
			return err
		}, "issuer"},
	} {
		if err := c.decode(c.data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		text, field := string(c.data), `"`+c.field+`":`
		for what, changed := range map[string]string{
			"a space":         strings.Replace(text, field, field+" ", 1),
			"a line":          text + "\n",
			"another case":    strings.Replace(text, field, strings.ToUpper(field), 1),
			"a field twice":   strings.Replace(text, field, field+`"",`+field, 1),
			"unknown field":   strings.Replace(text, field, `"a":1,`+field, 1),
			"something after": text + "}",
			"another value":   text + text,
			"an escape":       strings.Replace(text, c.field, `\u00`+hexOf(c.field[0])+c.field[1:], 1),
			"nothing":         "",
			"null":            "null",
			"an object":       "{}",
			"a list":          "[]",
			"much":            text + strings.Repeat(" ", maxDocument),
		} {
			if err := c.decode([]byte(changed)); err == nil {
				t.Errorf("%s: it decodes with %s", name, what)
			}
		}
	}
}

func hexOf(b byte) string { return string("0123456789abcdef"[b>>4]) + string("0123456789abcdef"[b&15]) }

// TestRefusedDocuments checks what the fields of documents have to be.
func TestRefusedDocuments(t *testing.T) {
	t.Parallel()
	a := exampleApproval(alice, statement)
	for what, change := range map[string]func(*Approval){
		"a long reason":     func(a *Approval) { a.Reason = strings.Repeat("a", maxReason+1) },
		"another decision":  func(a *Approval) { a.Decision = "maybe" },
		"another statement": func(a *Approval) { a.Statement = strings.ToUpper(a.Statement) },
		"a late time":       func(a *Approval) { a.Time = a.Time.AddDate(10_000, 0, 0) },
	} {
		changed := a
		change(&changed)
		if _, err := Decode(encode(t, &changed)); err == nil {
			t.Errorf("an approval decodes with %s", what)
		}
	}
	a.Reason = "line\u2028separator"
	if _, err := a.Encode(); err == nil {
		t.Error("a line separator has two encodings")
	}
	l := exampleLogin()
	for _, broker := range []string{"", strings.Repeat("a", maxURL+1)} {
		l.Broker = broker
		if _, err := DecodeLogin(encode(t, &l)); err == nil {
			t.Errorf("a login decodes with a broker of %d bytes", len(broker))
		}
	}
	for what, c := range map[string]Credential{
		"an unknown kind":         {Kind: "password"},
		"a passkey without data":  {Kind: Passkey},
		"an SSH key of a passkey": {Kind: SSH, Passkey: &WebAuthn{}},
	} {
		if _, err := DecodeCredential(encode(t, &c)); err == nil {
			t.Errorf("a credential decodes with %s", what)
		}
	}
	if _, err := DecodeStatement(encode(t, &Statement{})); err == nil {
		t.Error("a statement needs nobody")
	}
}
