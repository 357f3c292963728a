package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// soak makes many signatures through one agent and prints, for each tenth of them, the rate, and what the agent and the
// process of its module use. Both should use as much in the last tenth as in the second.
func (b *bench) soak(count int) {
	f := fixture{bench: b}
	b.parts = b.prepare()
	t := b.newToken(b.parts, 10)
	agent := softhsmtest.StartAgent(f, t.Token)
	worker := child(agent.PID())
	fmt.Printf("%d EC-256 signatures, 64 clients\n%5s %12s %18s %18s\n", count, "tenth", "signatures/s",
		"agent: KiB, files", "worker: KiB, files")
	var memory [2][]float64
	var files [2][]int
	for tenth := range 10 {
		rate := b.start(contender{}, []string{self(), "loop", "-socket", agent.Socket, "-label", t.keys[0].label,
			"-goroutines", "64", "-count", strconv.Itoa(count / 10)})
		fmt.Printf("%5d %12.8s", tenth+1, rate)
		time.Sleep(time.Second) // the agent closes the connections of clients that have ended
		for i, pid := range []int{agent.PID(), worker} {
			kibibytes, open := uses(pid)
			memory[i], files[i] = append(memory[i], kibibytes), append(files[i], open)
			fmt.Printf(" %11.0f, %5d", kibibytes, open)
		}
		fmt.Println()
	}
	for i, name := range []string{"agent", "worker"} {
		ratio := memory[i][9] / memory[i][1]
		fmt.Printf("%s: memory %.3f of the second tenth, %s; files %+d\n", name, ratio, goal(ratio <= 1.1, "at most 1.10"),
			files[i][9]-files[i][1])
	}
}

// uses returns the memory of a process in KiB and how many files it has open.
func uses(pid int) (kibibytes float64, files int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		panic(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nVmRSS:")
	if _, err := fmt.Sscan(rest, &kibibytes); err != nil {
		panic(err)
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		panic(err)
	}
	return kibibytes, len(open)
}

// child returns the process that a process has started.
func child(pid int) (started int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is right
	for _, list := range lists {
		text, _ := os.ReadFile(list) // the thread may have ended
		if _, err := fmt.Sscan(string(text), &started); err == nil {
			return started
		}
	}
	panic(fmt.Errorf("process %d has started none", pid))
}
