// Command bench measures what the plugin costs beside others: calls to the module, time and memory for one signature,
// and signatures a second in one process. It prints one table; with UPDATE_DOCS=1 it also writes it to
// docs/performance.md, with a plot. A goal that is not met is no failure, for the machine may be busy: bench fails only
// when it cannot measure. "bench team" measures a team's broker alone, "bench replicas" those that share PostgreSQL,
// "bench verify" the gate, and "bench audit" the audit of a repository. "bench soak COUNT" makes so many signatures
// through one agent instead, and "bench log COUNT" fills a broker's log.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/notation-hsm/notation-hsm/internal/backends"
)

func main() {
	backends.ServeWorker()
	if len(os.Args) > 1 && os.Args[1] == "loop" { // bench starts itself for this
		if err := loop(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "open-broker" { // likewise
		if err := openBroker(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := &bench{ctx: ctx}
	run := b.measure
	if len(os.Args) == 3 && (os.Args[1] == "soak" || os.Args[1] == "log") {
		count, err := strconv.Atoi(os.Args[2])
		if err != nil || count < 10 {
			fmt.Fprintf(os.Stderr, "bench: %q is not a number from 10\n", os.Args[2])
			os.Exit(2)
		}
		run = func() { b.soak(count) }
		if os.Args[1] == "log" {
			run = func() { b.biglog(int64(count)) }
		}
	}
	if len(os.Args) == 2 {
		one := map[string]func(){"team": b.team, "replicas": b.replicas, "audit": b.audit, "verify": b.verify}[os.Args[1]]
		if one != nil {
			run = func() {
				b.parts = b.prepare()
				one()
				fmt.Print(table(b.rows))
			}
		}
	}
	if err := b.guard(run); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of the program: its parts, and what it has found so far.
type bench struct {
	ctx     context.Context
	cleanup []func()
	parts   parts
	rows    []row
}

func (b *bench) measure() {
	b.parts = b.prepare()
	b.metadata()
	b.oneSignature()
	b.throughput()
	b.atOnce()
	b.manyObjects()
	b.images()
	delays := b.delays()
	b.agent()
	b.team()
	b.replicas()
	b.audit()
	b.verify()
	fmt.Print(table(b.rows))
	if os.Getenv("UPDATE_DOCS") != "" {
		b.updateDocs(delays)
	}
}
