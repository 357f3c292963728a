package approver

import (
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// TestRead shows what is asked for, who has agreed, and who is lacking.
func TestRead(t *testing.T) {
	t.Parallel()
	s := newScene(t, target(manifestType, []byte("one")), target(manifestType, []byte("two")))
	seen, err := s.read()
	if err != nil {
		t.Fatal(err)
	}
	all := text(seen.Tables(""))
	for _, want := range []string{"REQUEST | " + request, "a signature of 2 artifacts",
		"key | release, certificate sha256:",
		"repository | registry.example.com/app", approval.Hash([]byte("two")), manifestType + ", 3 bytes, format notation",
		"annotation build=7", "24h0m0s from the signing time", "repo:example/app at https://issuer.example.com",
		`ref: "refs/tags/v1"`, "broker | " + broker, "expires | 2030-03-20T17:46:40Z", "statement | " + seen.Hash,
		"use of release | release | 2 of managers (alice, bob, carol) | 1", " |  | 1 of security (dave) by key | nobody",
		" |  | 1h0m0s after the last approval | ", "bob | approve | key SHA256:", "you are | alice"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing in\n%s", want, all)
		}
	}
	alice := s.people["alice"]
	if id, err := seen.Mine(approval.Key, alice.credential.Public, approval.Approve); err != nil || id != alice.hash {
		t.Errorf("%s, %v", id, err)
	}
	if _, err := seen.Mine(approval.SSH, alice.credential.Public, approval.Approve); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
	if _, err := seen.Mine(approval.Key, s.people["bob"].credential.Public, approval.Approve); !failure.Is(err,
		failure.NotFound) {
		t.Error(err)
	}
	s.decide("bob", approval.Withdraw)
	if seen, err = s.read(); err != nil || !strings.Contains(text(seen.Tables("")), "(alice, bob, carol) | 2") {
		t.Errorf("a withdrawn approval counts: %v", err)
	}
	s.decide("bob", approval.Approve)
	if seen, err = s.read(); err != nil || seen.Needs[0].Alternatives[0].Lacking[0] != 1 {
		t.Errorf("an approval after a withdrawn one does not count: %v", err)
	}
}

// TestNew knows a key that is enrolled, but was not when the request was made.
func TestNew(t *testing.T) {
	t.Parallel()
	s := newScene(t, target(manifestType, []byte("one")))
	added := s.newPerson("id-alice")
	s.people["added"] = added
	s.enrol("added")
	seen, err := s.read()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seen.Mine(approval.Key, added.credential.Public, approval.Approve); !failure.Is(err, failure.Denied) {
		t.Error(err)
	}
	s.evidence.You = ""
	if seen, err = s.read(); err != nil {
		t.Fatal(err)
	}
	if _, err := seen.Mine(approval.Key, s.people["alice"].credential.Public, approval.Approve); !failure.Is(err,
		failure.Denied) {
		t.Error(err)
	}
}

// TestKinds lets a person whose kind of key does not count reject, and not approve.
func TestKinds(t *testing.T) {
	t.Parallel()
	s := newScene(t, target(manifestType, []byte("one")))
	dave := s.people["dave"]
	dave.credential.Kind = approval.SSH
	dave.hash = approval.Hash(encode(t, &dave.credential))
	s.statement.Predicate.Needs[0].Rules = nil
	s.rule("release", policy.Use)
	s.you("dave")
	s.evidence.Statement, s.evidence.Approvals = encode(t, &s.statement), nil
	seen, err := s.read()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seen.Mine(approval.SSH, dave.credential.Public, approval.Approve); !failure.Is(err, failure.Denied) {
		t.Error(err)
	}
	if id, err := seen.Mine(approval.SSH, dave.credential.Public, approval.Reject); err != nil || id != dave.hash {
		t.Errorf("%s, %v", id, err)
	}
}

// TestForged refuses evidence that does not hold together.
func TestForged(t *testing.T) {
	t.Parallel()
	first := func(all map[string][]byte) string {
		for hash := range all {
			return hash
		}
		return ""
	}
	for want, forge := range map[string]func(*scene){
		"the statement is of request": func(s *scene) { s.statement.Predicate.Request = "other"; s.seal() },
		"is of the broker":            func(s *scene) { s.statement.Predicate.Broker = "https://other.example.com"; s.seal() },
		"cannot read the statement":   func(s *scene) { s.evidence.Statement = append(s.evidence.Statement, ' ') },
		"the requester that it names": func(s *scene) { s.evidence.Opening = encode(s.t, &approval.Opening{Subject: "bob"}) },
		"is missing":                  func(s *scene) { delete(s.evidence.Rules, first(s.evidence.Rules)) },
		"the rule":                    func(s *scene) { s.evidence.Rules[first(s.evidence.Rules)] = []byte("{}") },
		"the credential ":             func(s *scene) { s.evidence.Credentials[first(s.evidence.Credentials)] = []byte("{}") },
		"the credential \"sha256:":    func(s *scene) { delete(s.evidence.Credentials, s.people["bob"].hash) },
		"is of another statement": func(s *scene) {
			old := s.evidence.Approvals
			s.statement.Predicate.Nonce = salt(s.t)
			s.seal()
			s.evidence.Approvals = old
		},
		"its signature is not that of the key": func(s *scene) {
			e, err := approval.DecodeEnvelope(s.evidence.Approvals[0])
			if err != nil {
				s.t.Fatal(err)
			}
			e.Credential = s.people["dave"].hash
			s.evidence.Approvals[0] = encode(s.t, e)
		},
		"it is for 1 artifacts, and for a change: true": func(s *scene) {
			s.statement.Predicate.Change = &approval.Change{What: "block"}
			s.seal()
		},
		"is not the artifact": func(s *scene) { s.statement.Subjects[0].Digest = map[string]string{"sha256": "00"}; s.seal() },
		"subject 1":           func(s *scene) { s.statement.Subjects[0].Digest["sha512"] = "00"; s.seal() },
		"2 subjects for 1": func(s *scene) {
			s.statement.Subjects = append(s.statement.Subjects, s.statement.Subjects[0])
			s.seal()
		},
		"are other ones": func(s *scene) {
			name := first(s.evidence.Names)
			s.evidence.Names[name] = []byte(strings.ReplaceAll(string(s.evidence.Names[name]), "carol", "erin"))
		},
		"are those of another one": func(s *scene) {
			rule, _, err := approval.DecodeRule(s.evidence.Rules[first(s.evidence.Rules)])
			if err != nil {
				s.t.Fatal(err)
			}
			rule.Groups[0].Quorum = 1
			data := encode(s.t, rule)
			s.evidence.Rules = map[string][]byte{approval.Hash(data): data}
			s.statement.Predicate.Needs[0].Rules[0].Digest = approval.Hash(data)
			s.seal()
		},
		"name one person": func(s *scene) {
			s.people["alice"].id, s.people["carol"].id = s.people["carol"].id, s.people["alice"].id
			s.rule("other", policy.Use)
			s.seal()
		},
	} {
		s := newScene(t, target(manifestType, []byte("one")))
		forge(s)
		if _, err := s.read(); !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestErased shows requests of which the broker has erased names, and has nobody approve them.
func TestErased(t *testing.T) {
	t.Parallel()
	for want, erase := range map[string]func(*scene){
		"who asked": func(s *scene) { s.evidence.Opening = nil },
		"the names of the people of rule release": func(s *scene) { clear(s.evidence.Names) },
		"a policy": func(s *scene) {
			s.statement.Predicate.Change = &approval.Change{What: "policy", Policy: approval.Hash([]byte("after"))}
			s.seal()
		},
	} {
		s := newScene(t)
		s.statement.Predicate.Change = &approval.Change{What: "block"}
		s.seal()
		erase(s)
		seen, err := s.read()
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		if all := text(seen.Tables("")); !strings.Contains(all, "not shown | "+want) {
			t.Errorf("%s: %s", want, all)
		}
		public := s.people["alice"].credential.Public
		if _, err := seen.Mine(approval.Key, public, approval.Approve); !failure.Is(err, failure.Denied) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if id, err := seen.Mine(approval.Key, public, approval.Reject); err != nil || id != s.people["alice"].hash {
			t.Errorf("%s: %s, %v", want, id, err)
		}
	}
}

// TestChanges shows what a change changes, and refuses one whose documents are not those of the statement.
func TestChanges(t *testing.T) {
	t.Parallel()
	after := strings.Replace(inForce, "quorum: 2", "quorum: 1", 1)
	config := `{"administrators":[],"modules":[{"token":"pkcs11:token=prod"}]}`
	for name, c := range map[string]struct {
		change func(*scene) *approval.Change
		want   []string
	}{
		"policy": {func(s *scene) *approval.Change {
			s.evidence.Documents[approval.Hash([]byte(after))] = []byte(after)
			s.evidence.Documents[approval.Hash([]byte(inForce))] = []byte(inForce)
			return &approval.Change{What: "policy", Policy: approval.Hash([]byte(after))}
		}, []string{"another policy", "keys.release.use.release.approvals | 2 of managers, 1 of security (key) becomes 1 of"}},
		"config": {func(s *scene) *approval.Change {
			s.evidence.Documents[approval.Hash([]byte(config))] = []byte(config)
			return &approval.Change{What: "config", Config: approval.Hash([]byte(config))}
		}, []string{"another config", `modules | [{"token":"pkcs11:token=prod"}]`}},
		"enrol": {func(s *scene) *approval.Change {
			added := s.newPerson("id-alice")
			s.evidence.Documents[added.hash] = encode(s.t, &added.credential)
			return &approval.Change{What: "enrol", Credential: added.hash}
		}, []string{"a credential to be added", "person | alice", "credential | key SHA256:"}},
		"remove": {func(s *scene) *approval.Change {
			other := s.newPerson("id-mallory")
			s.evidence.Documents[other.hash] = encode(s.t, &other.credential)
			return &approval.Change{What: "remove", Credential: other.hash}
		}, []string{"to be removed", "person | erin, as the broker says"}},
		"block": {func(*scene) *approval.Change { return &approval.Change{What: "block"} },
			[]string{`blocking the key "release"`}},
	} {
		s := newScene(t)
		s.statement.Predicate.Change = c.change(s)
		s.statement.Predicate.Needs = []approval.Need{{Action: "modify", Key: "release"}}
		s.rule("modify-1", policy.Modify)
		s.seal()
		seen, err := s.read()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		all := text(seen.Tables("erin"))
		for _, want := range c.want {
			if !strings.Contains(all, want) {
				t.Errorf("%s: %q is missing in\n%s", name, want, all)
			}
		}
		for hash := range s.evidence.Documents {
			s.evidence.Documents[hash] = append(s.evidence.Documents[hash], ' ')
			if _, err := s.read(); !failure.Is(err, failure.Denied) {
				t.Errorf("%s: another document: %v", name, err)
			}
			break
		}
	}
}

// TestChangesRefused refuses a change that it does not know, and a policy without all rules for modify.
func TestChangesRefused(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.statement.Predicate.Change = &approval.Change{What: "burn"}
	s.seal()
	if _, err := s.read(); !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), `the change "burn"`) {
		t.Error(err)
	}
	after := strings.Replace(inForce, "quorum: 2", "quorum: 1", 1)
	for _, data := range []string{inForce, after} {
		s.evidence.Documents[approval.Hash([]byte(data))] = []byte(data)
	}
	s.statement.Predicate.Change = &approval.Change{What: "policy", Policy: approval.Hash([]byte(after))}
	s.seal()
	if _, err := s.read(); !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(),
		"lacks the rules for modify") {
		t.Error(err)
	}
}

// TestCredentialText names credentials as the tools of their kind do.
func TestCredentialText(t *testing.T) {
	t.Parallel()
	passkey := &approval.Credential{Kind: approval.Passkey, Passkey: &approval.WebAuthn{AAGUID: "00-11", Attested: true,
		BackupEligible: true}, Public: []byte("abc")}
	for want, c := range map[string]*approval.Credential{
		"ssh SHA256:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0": {Kind: approval.SSH, Public: []byte("abc")},
		"passkey SHA256:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0, authenticator 00-11, attested, " +
			"can be copied to other devices": passkey,
	} {
		if got := CredentialText(c); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}
