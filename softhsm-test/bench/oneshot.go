package main

import (
	"fmt"
	"path/filepath"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// metadata measures how soon the plugin can say who it is, which is what each of Notation's three starts costs at
// least.
func (b *bench) metadata() {
	r := b.race(300, contender{command: []string{b.parts.plugin, "get-plugin-metadata"}},
		contender{command: []string{b.parts.empty}})
	b.add(row{
		name: "`get-plugin-metadata`, ms", ours: spread(r[0].milliseconds),
		other: "empty Go program: " + spread(r[1].milliseconds),
	}.ratio(r[0].milliseconds.ratio(r[1].milliseconds), "the empty program", atMost(2)))
}

// signers are the three that make one signature: the plugin, pkcs11-tool, and the least in C.
func (b *bench) signers(t *token, k key, module string, environment ...string) []contender {
	p := b.parts
	mechanism, bare := []string{"ECDSA"}, "ecdsa"
	if k.spec == "RSA-2048" {
		mechanism = []string{"RSA-PKCS-PSS", "--hash-algorithm", "SHA256", "--mgf", "MGF1-SHA256", "--salt-len", "32"}
		bare = "pss"
	}
	environment = append(environment, "SOFTHSM2_CONF="+filepath.Join(t.Dir, "softhsm2.conf"),
		"NOTATION_HSM_MODULE_PATH="+module)
	contenders := []contender{
		{command: []string{p.plugin, "generate-signature"}, stdin: k.request},
		// The key is named by its id: pkcs11-tool does not look at a label when it signs.
		{command: append([]string{p.pkcs11Tool, "--module", module, "--token-label", tokenLabel, "--login", "--pin",
			softhsmtest.PIN, "--sign",
			"--id", k.id, "--input-file", p.digest, "--output-file", "/dev/null", "--mechanism"}, mechanism...)},
		{command: []string{p.bare, module, softhsmtest.PIN, "sign", k.label, bare}},
	}
	for i := range contenders {
		contenders[i] = contenders[i].with(environment...)
	}
	return contenders
}

// oneSignature measures one signature in a process of its own.
func (b *bench) oneSignature() {
	for _, k := range b.parts.token.keys {
		b.countCalls(k.spec+": calls", b.parts.token, k)
		plain := b.race(100, b.signers(b.parts.token, k, b.parts.module)...)
		memory := row{name: k.spec + ": peak memory, MiB"}.contenders(func(i int) string {
			return fmt.Sprintf("%.1f", plain[i].mebibytes.median())
		})
		memory.goal = goal(plain[0].mebibytes.median() < 32, "under 32")
		b.add(memory)
		b.add(times(k.spec+": time, ms", plain, atMost(1.1)))
		delayed := b.race(15, b.signers(b.parts.token, k, b.parts.shim, "SHIM_DELAY_MS=5")...)
		b.add(times(k.spec+": time with 5 ms for a call, ms", delayed, atMost(1)))
	}
}

func (b *bench) countCalls(name string, t *token, k key) (calls [3]int) {
	for i, c := range b.signers(t, k, b.parts.spy) {
		calls[i] = b.calls(c)
	}
	b.add(row{name: name}.contenders(func(i int) string { return fmt.Sprint(calls[i]) }))
	return calls
}

// manyObjects shows that what is beside the key on a token does not cost calls. It may cost the module itself time.
func (b *bench) manyObjects() {
	k := b.parts.token.keys[0]
	before := b.countCalls("10 objects: calls", b.parts.token, k)
	b.add(times("10 objects: time, ms", b.race(20, b.signers(b.parts.token, k, b.parts.module)...), nil))
	full := b.newToken(b.parts, 10_000)
	k = full.keys[0]
	after := b.countCalls("10,000 objects: calls", full, k)
	b.rows[len(b.rows)-1].goal = goal(before[0] == after[0], "as with 10")
	b.add(times("10,000 objects: time, ms", b.race(10, b.signers(full, k, b.parts.module)...), nil))
}

// delays measures a signature against the time that each call takes, as on the way to a module across a network.
func (b *bench) delays() plot {
	p := plot{Title: "One EC-256 signature, one process", X: "time per call to the module (ms)",
		Y: "time per signature (ms)"}
	for _, name := range contenderNames {
		p.Series = append(p.Series, series{Name: name})
	}
	for _, delay := range []int{0, 1, 2, 5, 10, 20} {
		r := b.race(9, b.signers(b.parts.token, b.parts.token.keys[0], b.parts.shim,
			fmt.Sprintf("SHIM_DELAY_MS=%d", delay))...)
		for i := range r {
			p.Series[i].Points = append(p.Series[i].Points, [2]float64{float64(delay), r[i].milliseconds.median()})
		}
		b.add(times(fmt.Sprintf("EC-256, %d ms for a call: time, ms", delay), r, nil))
	}
	return p
}
