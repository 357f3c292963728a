package main

import (
	"fmt"
	"sync"
	"syscall"
	"time"
)

// crowd is how many processes sign at once in atOnce.
const crowd = 200

// atOnce measures how long many processes take that sign at once with one SoftHSM token, whose file they may not read
// and write at the same time, against the same number one after another.
func (b *bench) atOnce() {
	k := b.parts.token.keys[0]
	sign := b.signers(b.parts.token, k, b.parts.module, "NOTATION_HSM_TIMEOUT=5m")[0]
	wall, cpu := b.crowd(sign)
	for _, r := range []struct {
		name    string
		figures [2]figures
	}{{"time", wall}, {"CPU time", cpu}} {
		b.add(row{
			name: fmt.Sprintf("EC-256, %d processes at once: %s, ms", crowd, r.name), ours: spread(r.figures[1]),
			other: "one after another: " + spread(r.figures[0]),
		}.ratio(r.figures[1].ratio(r.figures[0]), "one after another", atMost(1.5)))
	}
}

// crowd runs a contender many times, one after another and at once, and returns the milliseconds of both, and of
// processor time.
func (b *bench) crowd(c contender) (wall, cpu [2]figures) {
	one := func() { b.race(0, c) }
	for range 3 {
		for i, run := range []func(){
			func() {
				for range crowd {
					one()
				}
			},
			func() {
				var group sync.WaitGroup
				for range crowd {
					group.Go(one)
				}
				group.Wait()
			},
		} {
			start, before := time.Now(), childrenCPU()
			run()
			wall[i] = append(wall[i], float64(time.Since(start).Milliseconds()))
			cpu[i] = append(cpu[i], float64((childrenCPU() - before).Milliseconds()))
		}
	}
	return wall, cpu
}

// childrenCPU returns the processor time of all processes that were started and have ended.
func childrenCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
