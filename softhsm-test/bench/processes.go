package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of processor times in /proc.
const tick = 10 * time.Millisecond

// processorTime returns the processor time of a process, and of those that it has started and that run.
func processorTime(root int) (all time.Duration) {
	parents, times := map[int]int{}, map[int]time.Duration{}
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil { // it has ended
			continue
		}
		process, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		_, after, _ := strings.Cut(string(data), ") ") // PID (NAME) STATE PARENT ...
		fields := strings.Fields(after)
		parents[process], _ = strconv.Atoi(fields[1])
		for _, field := range fields[11:13] { // in the process, and in the kernel for it
			ticks, _ := strconv.Atoi(field)
			times[process] += time.Duration(ticks) * tick
		}
	}
	for process, used := range times {
		for at := process; at > 1; at = parents[at] {
			if at == root {
				all += used
				break
			}
		}
	}
	return all
}
