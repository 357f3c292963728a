package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const (
	// replicaClients is the number of clients. Many more have the processors be the limit, and not the commits.
	replicaClients = 32
	// How often, and for how long, each broker is measured, in turn.
	replicaRounds = 3
	replicaTime   = 5 * time.Second
)

// replicas measures one and two replicas of a broker on PostgreSQL, and a broker on SQLite, with a module that answers
// at once, and what PostgreSQL commits alone. All of them share the processors of the machine, with the clients.
func (b *bench) replicas() {
	f := fixture{bench: b}
	metrics := softhsmtest.FreeAddresses(f, 2)
	o := softhsmtest.TeamOptions{Policy: teamPolicy, Limits: "requests: 10000000 per minute"}
	sqlite := softhsmtest.StartTeam(f, b.teamToken().Token, o)
	d := newDatabase(f)
	o.Store, o.Listen = d.url, "metrics: "+metrics[0]
	first := softhsmtest.StartTeam(f, b.teamToken().Token, o)
	second := first.Replica(f, 1, "metrics: "+metrics[1])
	b.load(first, first)
	first.Stop()
	d.copy()
	first.Start()

	var inSQLite, one, two result
	var grown growth
	var batch, alone, single figures // entries of a transaction; signatures a second of PostgreSQL alone
	for range replicaRounds {
		inSQLite.add(b.load(sqlite, sqlite))
		before := d.growth()
		one.add(b.load(first, first))
		grown = grown.plus(d.growth().minus(before))
		second.Start()
		commits := commitsOf(f, metrics[0]).plus(commitsOf(f, metrics[1]))
		two.add(b.load(first, first, second))
		batch = append(batch, commitsOf(f, metrics[0]).plus(commitsOf(f, metrics[1])).since(commits))
		second.Stop()
		entries := max(2, 2*int(batch[len(batch)-1]/2+0.5))
		alone, single = append(alone, d.alone(entries)*float64(entries)/2), append(single, d.alone(2))
	}
	first.Stop()
	sqlite.Stop()
	b.addReplicas(&inSQLite, &one, &two)
	b.add(row{
		name: fmt.Sprintf("two replicas, %.0f entries a transaction: signatures/s", batch.median()),
		ours: fmt.Sprintf("%.0f", two.rate()), other: "pgbench: " + spread(alone),
		goal: goal(two.rate() >= 1.5*one.rate() || two.rate() >= 0.6*alone.median(),
			"at least 1.5 of one replica or 0.6 of pgbench"),
	}.ratio(two.rate()/alone.median(), "pgbench", nil))
	b.add(row{
		name: "one signature a transaction: signatures/s", other: "pgbench: " + spread(single),
	})
	b.add(row{name: "PostgreSQL: bytes of a signature", ours: grown.perSignature()})
}

// addReplicas adds the rows of brokers that have signed for as many clients.
func (b *bench) addReplicas(inSQLite, one, two *result) {
	latency := func(r *result) string { return fmt.Sprintf("%.0f, %.0f", r.quantile(0.5), r.quantile(0.99)) }
	processor := func(r *result) string {
		return fmt.Sprintf("%.0f", r.processor.Seconds()*1e6/float64(len(r.milliseconds)))
	}
	for _, r := range []struct {
		name, rival string
		of, to      *result
	}{{"one replica on PostgreSQL", "SQLite", one, inSQLite}, {"two replicas", "one replica", two, one}} {
		b.add(row{
			name: fmt.Sprintf("%s, EC-256, %d clients: signatures/s", r.name, replicaClients),
			ours: fmt.Sprintf("%.0f", r.of.rate()), other: fmt.Sprintf("%s: %.0f", r.rival, r.to.rate()),
		}.ratio(r.of.rate()/r.to.rate(), r.rival, nil))
		b.add(row{name: r.name + ": median and p99, ms", ours: latency(r.of), other: r.rival + ": " + latency(r.to)})
		b.add(row{name: r.name + ": processor time of a signature, microseconds", ours: processor(r.of),
			other: r.rival + ": " + processor(r.to)})
	}
}

// load makes signatures for a while through replicas in turn.
func (b *bench) load(team *softhsmtest.TeamBroker, replicas ...*softhsmtest.TeamBroker) *result {
	l := &load{b: b, team: team, clients: replicaClients, client: client(team)}
	used := func() (all time.Duration) {
		for _, r := range replicas {
			all += processorTime(r.PID())
		}
		return all
	}
	for _, r := range replicas {
		l.urls = append(l.urls, r.URL)
	}
	l.number.Store(time.Now().UnixNano()) // other images than before
	l.run(time.Second, 0)
	before := used()
	r := l.run(replicaTime, 0)
	r.processor = used() - before
	return r
}

// commits is how many transactions a broker has committed, and how many entries they had.
type commits struct{ count, entries float64 }

// since returns the number of entries of a transaction since former ones.
func (c commits) since(former commits) float64 {
	return (c.entries - former.entries) / (c.count - former.count)
}

func (c commits) plus(other commits) commits {
	return commits{c.count + other.count, c.entries + other.entries}
}

// commitsOf asks a broker for its metrics.
func commitsOf(f fixture, address string) (c commits) {
	r, err := http.NewRequestWithContext(f.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	check(f, err)
	response, err := http.DefaultClient.Do(r)
	check(f, err)
	defer response.Body.Close()
	for lines := bufio.NewScanner(io.LimitReader(response.Body, 1<<20)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		n, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "hsm_broker_commit_entries_count":
			c.count = n
		case "hsm_broker_commit_entries_sum":
			c.entries = n
		}
	}
	return c
}
