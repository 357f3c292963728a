package ca

import (
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// planCost is what reading and rehearsing a ceremony may allocate: the parser has a node of some 500 bytes for each
// value, and each part is compared with those before it.
var planCost = boundtest.Budget{Bytes: 256 << 10, BytesPerByte: 8 << 10}

// FuzzCeremony checks that no plan crashes or costs more than its size allows, and that no refusal is an internal
// error.
func FuzzCeremony(f *testing.F) {
	for _, seed := range []string{
		"", "# nothing", "root: 1", "[1]", "keys: [{name: a, token: t, label: l, spec: EC-256}]\n",
		"keys: [{name: a, token: t, label: l, spec: EC-256}]\nroot: {name: r, key: a, subject: CN=R, days: 9, path-length: " +
			"0, permit: ['dns:a', 'ip:10.0.0.0/8']}\ncrls: [{ca: r, next-update: 7d}]\n",
		"root: {name: r, key: 'pkcs11:object=a', subject: CN=R, days: 99}\nintermediates: [{name: i, parent: r, key: " +
			"'pkcs11:object=b', subject: CN=I, days: 9, cdp: 'http://a/b'}]\n" +
			"leaves: [{name: l, ca: i, key: 'pkcs11:object=c', subject: CN=L, days: 1, ocsp: 'http://o'}]\n",
		"root: &a {name: *a}", "root: {<<: {name: a}}", "root: {name: a, name: b}", "root: {days: 99999999999999999999}",
		"crls: [{ca: a, next-update: 999999999999d}]", "root: ~",
	} {
		f.Add([]byte(seed))
	}
	folder := f.TempDir()
	f.Setenv("XDG_CONFIG_HOME", f.TempDir())
	f.Fuzz(func(t *testing.T, data []byte) {
		var p *Plan
		var err error
		planCost.Check(t, len(data), func() {
			p = &Plan{keystore: keystore.New(nil), path: "ceremony.yaml"}
			if err = config.Strict(p.path, data, p); err == nil {
				_, err = p.Rehearse(folder)
			}
		})
		if err != nil && failure.Is(err, failure.Internal) {
			t.Errorf("%q: %v is an internal error", data, err)
		}
	})
}
