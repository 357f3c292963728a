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
	const rounds = 11
	conf := contender{environment: []string{"SOFTHSM2_CONF=" + filepath.Join(b.parts.token.Dir, "softhsm2.conf")}}
	loop := func(with, module string, k key, arguments ...string) []string {
		return append([]string{self(), "loop", "-with", with, "-module", module, "-pin", softhsmtest.PIN, "-label", k.label},
			arguments...)
	}
	for _, k := range b.parts.token.keys {
		mechanism := map[string]string{"EC-256": "ecdsa", "RSA-2048": "pss"}[k.spec]
		contenders := func(module, threads, seconds string) [][]string {
			ours := []string{"-goroutines", threads, "-seconds", seconds}
			return [][]string{
				loop("internal/pkcs11", module, k, ours...),
				{b.parts.bare, module, softhsmtest.PIN, "loop", k.label, mechanism, threads, seconds},
				loop("worker", module, k, ours...),
				loop("crypto11", module, k, ours...),
			}
		}
		for _, threads := range []string{"2", "8"} {
			r := b.raceRates(rounds, conf, contenders(b.parts.module, threads, "0.3"))
			ours, bare, worker, crypto11 := r[0], r[1], r[2], r[3]
			name := fmt.Sprintf("%s, %s threads", k.spec, threads)
			b.add(row{
				name: name + ": signatures/s", ours: spread(ours), bare: spread(bare), other: "crypto11: " + spread(crypto11),
			}.ratio(ours.ratio(bare), "bare C", atLeast(0.95)))
			b.addWorker(name, worker, bare, ours, k.spec == "RSA-2048")
		}
		if k.spec == "RSA-2048" {
			slow := conf.with("SHIM_DELAY_MS=5")
			r := b.raceRates(rounds/2, slow, contenders(b.parts.shim, "16", "1")[:3])
			b.addWorker(k.spec+", 16 at 5 ms", r[2], r[1], r[0], true)
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

// self returns the path of this program.
func self() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

// raceRates runs commands in turns, each of which prints how many signatures a second it made.
func (b *bench) raceRates(rounds int, conf contender, commands [][]string) []figures {
	perSecond := make([]figures, len(commands))
	for round := range rounds {
		for turn := range commands {
			i := (round + turn) % len(commands)
			rate, err := strconv.ParseFloat(strings.TrimSpace(b.start(conf, commands[i])), 64)
			if err != nil {
				panic(err)
			}
			perSecond[i] = append(perSecond[i], rate)
		}
	}
	return perSecond
}

// addWorker adds a row of a module in a process of its own, beside the same in the process that signs.
func (b *bench) addWorker(name string, worker, bare, inProcess figures, bounded bool) {
	var least limit
	if bounded {
		least = atLeast(0.9)
	}
	b.add(row{
		name: name + ", worker: signatures/s", ours: spread(worker), bare: spread(bare),
		other: "in process: " + spread(inProcess),
	}.ratio(worker.ratio(inProcess), "in process", least))
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
