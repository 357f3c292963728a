package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// throughput measures many signatures in one process that has the key open, as a signing service would.
func (b *bench) throughput() {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	const rounds, seconds = 11, "0.3"
	conf := contender{environment: []string{"SOFTHSM2_CONF=" + filepath.Join(b.parts.token.Dir, "softhsm2.conf")}}
	loop := func(with, module string, k key, arguments ...string) []string {
		return append([]string{self, "loop", "-with", with, "-module", module, "-pin", softhsmtest.PIN, "-label", k.label},
			arguments...)
	}
	for _, k := range b.parts.token.keys {
		mechanism := map[string]string{"EC-256": "ecdsa", "RSA-2048": "pss"}[k.spec]
		for _, threads := range []string{"2", "8"} {
			var perSecond [3]figures
			for round := range rounds {
				for turn := range perSecond {
					i := (round + turn) % len(perSecond)
					command := [][]string{
						loop("internal/pkcs11", b.parts.module, k, "-goroutines", threads, "-seconds", seconds),
						{b.parts.bare, b.parts.module, softhsmtest.PIN, "loop", k.label, mechanism, threads, seconds},
						loop("crypto11", b.parts.module, k, "-goroutines", threads, "-seconds", seconds),
					}[i]
					rate, err := strconv.ParseFloat(strings.TrimSpace(b.start(conf, command)), 64)
					if err != nil {
						panic(err)
					}
					perSecond[i] = append(perSecond[i], rate)
				}
			}
			ours, bare, crypto11 := perSecond[0], perSecond[1], perSecond[2]
			b.add(row{
				name: fmt.Sprintf("%s, %s threads: signatures/s", k.spec, threads),
				ours: spread(ours), bare: spread(bare), other: "crypto11: " + spread(crypto11),
			}.ratio(ours.ratio(bare), "bare C", atLeast(0.95)))
		}
		ours := b.callsPerSignature(conf, func(
			count string) []string {
			return loop("internal/pkcs11", b.parts.shim, k, "-count", count)
		})
		crypto11 := b.callsPerSignature(conf, func(
			count string) []string {
			return loop("crypto11", b.parts.shim, k, "-count", count)
		})
		b.add(row{
			name: k.spec + ": calls per further signature", ours: fmt.Sprint(ours), bare: "2",
			other: fmt.Sprintf("crypto11: %v", crypto11),
			goal:  goal(ours == 2, "exactly 2"),
		})
	}
}

// callsPerSignature takes the calls of a process that signs 100 times from those of one that signs 200 times.
func (b *bench) callsPerSignature(c contender, command func(count string) []string) float64 {
	f := fixture{bench: b}
	count := func(signatures string) float64 {
		log := filepath.Join(f.TempDir(), "calls")
		b.start(c.with("SHIM_LOG="+log), command(signatures))
		return float64(len(softhsmtest.Calls(f, log)))
	}
	return (count("200") - count("100")) / 100
}
