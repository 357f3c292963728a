package approval

import (
	"bytes"
	"slices"
	"testing"
)

// FuzzDecode checks that what decodes is what it encodes to, and that nothing makes a decoder panic.
func FuzzDecode(f *testing.F) {
	scene := newScene(f)
	scene.decide(carol, Approve)
	for _, seeds := range []map[string][]byte{scene.evidence.Rules, scene.names, scene.evidence.Credentials} {
		for _, data := range seeds {
			f.Add(data)
		}
	}
	f.Add(scene.evidence.Statement)
	f.Add(scene.evidence.Approvals[0])
	f.Add(encode(f, new(exampleApproval(alice, statement))))
	f.Add(encode(f, new(exampleLogin())))
	f.Add(encode(f, &Opening{Issuer: "mtls", Subject: "ci", Claims: map[string]string{"ref": "main"}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		read := func(document interface{ Encode() ([]byte, error) }, err error) {
			if err != nil {
				return
			}
			if again, err := document.Encode(); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("%q became %q, %v", data, again, err)
			}
		}
		a, err := Decode(data)
		read(a, err)
		l, err := DecodeLogin(data)
		read(l, err)
		e, err := DecodeEnvelope(data)
		read(e, err)
		c, err := DecodeCredential(data)
		read(c, err)
		s, err := DecodeStatement(data)
		read(s, err)
		o, err := DecodeOpening(data)
		read(o, err)
		n, err := DecodeNames(data)
		read(n, err)
		if err == nil {
			if rule, names, err := n.Publish(nil); err == nil {
				if _, err := rule.Open(names); err != nil || !bytes.Equal(names, data) {
					t.Fatalf("%q does not open its rule: %v", data, err)
				}
			}
		}
		r, groups, err := DecodeRule(data)
		read(r, err)
		for _, g := range groups {
			if g.Quorum < 1 || g.Quorum > len(g.Members) {
				t.Fatalf("%q: %+v", data, g)
			}
		}
	})
}

// FuzzVerify checks that no change of an envelope verifies as another approval, and that no key makes it panic.
func FuzzVerify(f *testing.F) {
	all := signers(f)
	names := []string{"key P-256", "key RSA-2048", "key Ed25519", "ssh Ed25519", "ssh P-256", "ssh RSA-2048",
		"ssh sk-ed25519", "ssh sk-ecdsa", "passkey ES256", "passkey RS256"}
	a := exampleApproval(alice, statement)
	a.Random = [32]byte{} // the same in each process
	document := encode(f, &a)
	for i, name := range names {
		e := all[name].approve(f, a)
		f.Add(uint8(i), all[name].credential.Public, e.Approval, e.AuthenticatorData, e.ClientData, e.Signature)
	}
	f.Fuzz(func(t *testing.T, which uint8, public, approved, authenticator, client, signature []byte) {
		c := all[names[int(which)%len(names)]].credential
		e := &Envelope{Approval: approved, AuthenticatorData: authenticator, ClientData: client, Signature: signature,
			Credential: Hash(encode(t, &c))}
		if got, err := e.Verify(&c); err == nil && (!bytes.Equal(approved, document) || *got != a) {
			t.Fatalf("%q verifies", approved)
		}
		if _, err := e.VerifyLogin(&c); err == nil {
			t.Fatalf("%q verifies as a login", approved)
		}
		_, _, _ = e.Authenticator()
		c.Public = public
		e.Credential = Hash(encode(t, &c))
		_, _ = e.Verify(&c)
		_, _ = e.VerifyLogin(&c)
	})
}

// FuzzAgreement checks that no evidence makes Verify panic, or agree to something else than the statement of the seed.
func FuzzAgreement(f *testing.F) {
	scene := newScene(f)
	scene.decide(carol, Approve)
	scene.decide(dave, Approve)
	var rules [][]byte
	for _, ref := range scene.verify().Needs[0].Need.Rules {
		rules = append(rules, scene.evidence.Rules[ref.Digest])
	}
	f.Add(scene.evidence.Statement, rules[0], rules[1], scene.evidence.Approvals[0], scene.evidence.Approvals[1], false)
	f.Fuzz(func(t *testing.T, statement, first, second, one, another []byte, removed bool) {
		e := Evidence{Statement: statement, Rules: map[string][]byte{Hash(first): first, Hash(second): second},
			Credentials: scene.evidence.Credentials, Approvals: [][]byte{one, another},
			Counts: func(string) bool { return !removed }}
		a, err := Verify(e)
		if err != nil {
			return
		}
		for _, d := range a.Decisions {
			if d.Statement != Hash(statement) || d.Hash != Hash(encode(t, d.Credential)) {
				t.Fatalf("%+v", d)
			}
		}
		if a.Agreed() && (removed || !slices.Equal(statement, scene.evidence.Statement)) {
			t.Fatalf("agreed to %q", statement)
		}
	})
}
