package notaryv1

import "testing"

// FuzzParse verifies that metadata of any content is read or refused, and that what is read is within the limits.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"signed":{"_type":"Targets","version":1,"expires":"2036-11-24T04:08:25.68Z","targets":{"v1":{"length":5,"hashes":` +
			`{"sha256":"YQ=="}}},"delegations":{"keys":{},"roles":[{"name":"targets/a","paths":[""],"keyids":[],` +
			`"threshold":1}]}},"signatures":[{"keyid":"a","method":"ECDSA","sig":"AAAA"}]}`,
		`{"signed":{"_type":"Root","version":1,"expires":"2036-11-24T04:08:25Z","keys":{"a":{"keytype":"ecdsa-x509",` +
			`"keyval":{"private":null,"public":"LS0t"}}},"roles":{"root":{"keyids":["a"],"threshold":1}}},"signatures":[]}`,
		`{"signed":{"version":1e3},"signed":{}}`, `{"signed":{"a":-0,"b":"\ud800","c":[{}]}}`, "", "null",
	} {
		f.Add([]byte(seed), "targets")
		f.Add([]byte(seed), "root")
	}
	f.Fuzz(func(t *testing.T, data []byte, role string) {
		if role != roleRoot && role != roleTargets && !isDelegation(role) {
			return
		}
		m, err := parse(data, role, 1<<16)
		if err != nil {
			return
		}
		if m.Version < 1 || len(m.message) == 0 || len(data) > 1<<16 {
			t.Errorf("%q is accepted", data)
		}
		for _, r := range m.Roles {
			if keys, err := r.keyRing(m.Keys); err == nil {
				if signed, err := m.verify(keys, r.Threshold); err == nil && len(signed) < r.Threshold {
					t.Errorf("%d signatures meet the threshold %d", len(signed), r.Threshold)
				}
			}
		}
		for _, d := range m.Delegations.Roles {
			if !isDelegation(d.Name) {
				t.Errorf("%q is a delegation", d.Name)
			}
		}
	})
}
