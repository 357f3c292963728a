package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// A contender is a program that is measured.
type contender struct {
	command     []string
	stdin       string // a file
	environment []string
}

func (c contender) with(environment ...string) contender {
	c.environment = append(slices.Clone(c.environment), environment...)
	return c
}

// figures are what many runs of the same thing gave.
type figures []float64

func (f figures) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(f))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

func (f figures) median() float64 { return f.quantile(0.5) }

// ratio is the median of how f and others compare round by round: what disturbs a round meets both, so this is steadier
// than the ratio of their medians.
func (f figures) ratio(others figures) float64 {
	ratios := make(figures, len(f))
	for i := range f {
		ratios[i] = f[i] / others[i]
	}
	return ratios.median()
}

// measured is what the runs of one contender took.
type measured struct {
	milliseconds, mebibytes figures
}

// race runs contenders alternately, so that other load of the machine affects all of them, and none is always first.
func (b *bench) race(rounds int, contenders ...contender) []measured {
	results := make([]measured, len(contenders))
	for round := range rounds + 1 {
		for turn := range contenders {
			i := (round + turn) % len(contenders)
			var nanoseconds, kibibytes float64
			c := contenders[i]
			out := b.start(c, append([]string{b.parts.run, cmp.Or(c.stdin, os.DevNull)}, c.command...))
			if _, err := fmt.Sscan(out, &nanoseconds, &kibibytes); err != nil {
				panic(fmt.Errorf("run printed %q: %w", out, err))
			}
			if round == 0 { // the first round fills caches
				continue
			}
			results[i].milliseconds = append(results[i].milliseconds, nanoseconds/1e6)
			results[i].mebibytes = append(results[i].mebibytes, kibibytes/1024)
		}
	}
	return results
}

// start runs a command with a contender's environment and returns what it printed.
func (b *bench) start(c contender, command []string) string {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(b.ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), c.environment...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// An interrupt ends what the command has started, too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Minute // for a machine that is busy with many at once
	if err := cmd.Run(); err != nil {
		panic(fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, stderr.String()))
	}
	return stdout.String()
}

// calls counts the calls that one run makes to the module, which has to be the spy. How the module's functions are
// fetched is left out: those are calls of the library, not of the device.
func (b *bench) calls(c contender) int {
	f := fixture{bench: b}
	log := filepath.Join(f.TempDir(), "calls")
	b.race(0, c.with("PKCS11SPY_OUTPUT="+log))
	calls := softhsmtest.Calls(f, log)
	if len(calls) == 0 {
		panic(fmt.Errorf("%s made no calls", c.command[0]))
	}
	return len(calls) - softhsmtest.Count(calls, "C_GetFunctionList") - softhsmtest.Count(calls, "C_GetInterface")
}
