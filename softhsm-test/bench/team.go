package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const teamPolicy = `
version: 1
keys:
  key-EC-256:
    key: pkcs11:token=bench;object=key-EC-256
    formats: [notation]
    use:
    - name: release
      when: caller.issuer == "ISSUER" && caller.claims.repository == "example/app"
        && caller.claims.ref.startsWith("refs/tags/v")
      limit: 1000000 per hour
    modify: [{when: caller.issuer == "unix"}]
`

// What the module and the callers of a team's broker can do: 5 ms a call, of which a signature takes two, on 16
// sessions.
const (
	moduleRate  = 1600.0 // signatures a second
	teamClients = 128
	moduleTime  = 10.0 // ms of a signature
)

// team measures a team's broker: over TLS, by tokens of OIDC that are good once, with a policy, a log and a store.
func (b *bench) team() {
	f := fixture{bench: b}
	t := b.teamToken()
	f.Setenv("SHIM_DELAY_MS", "5")
	defer f.Setenv("SHIM_DELAY_MS", "")
	team := softhsmtest.StartTeam(f, t.Token, softhsmtest.TeamOptions{Policy: teamPolicy, Module: b.parts.shim,
		Limits: "requests: 10000000 per minute"})
	l := &load{b: b, team: team, urls: []string{team.URL}, clients: teamClients, client: client(team)}
	l.run(2*time.Second, 0) // everything is open
	fsync := b.fsync(team.Dir)
	full := l.run(8*time.Second, 0)
	half := l.run(8*time.Second, moduleRate/2)
	team.Stop()
	other := softhsmtest.Start(f, self(), "open-broker", team.Config())
	if !other.Ready(func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(team.URL, "https://"))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}) {
		f.Fatal(other.Stop())
	}
	l.run(2*time.Second, 0)
	bare := l.run(8*time.Second, 0)
	other.Stop()

	against := min(moduleRate, bare.rate())
	b.add(row{
		name: fmt.Sprintf("a team's broker, EC-256 with 5 ms a call, %d clients: signatures/s", teamClients),
		ours: fmt.Sprintf("%.0f", full.rate()), other: fmt.Sprintf("without policy and log: %.0f", bare.rate()),
	}.ratio(full.rate()/against, fmt.Sprintf("%.0f", against), atLeast(0.8)))
	p99 := half.quantile(0.99)
	most := moduleTime + 4*fsync + 10
	b.add(row{
		name: fmt.Sprintf("a team's broker, EC-256 at %.0f a second: p99, ms", moduleRate/2), ours: fmt.Sprintf("%.1f", p99),
		other: fmt.Sprintf("fsync p99: %.1f; median %.1f", fsync, half.quantile(0.5)),
		goal:  goal(p99 <= most, fmt.Sprintf("at most %.1f (the module's %.0f, 4 fsync, 10)", most, moduleTime)),
	})
}

// teamToken makes a token with the certificate of its key beside it, which brokers that start from now on use.
func (b *bench) teamToken() *token {
	f := fixture{bench: b}
	t := b.newToken(b.parts, 10)
	f.Setenv("SOFTHSM2_CONF", filepath.Join(t.Dir, "softhsm2.conf"))
	softhsmtest.Run(f, b.parts.plugin, "cert", "import", t.keys[0].uri, filepath.Join(t.Dir, "EC-256.pem"))
	return t
}

// client returns a client of a broker that keeps its connections.
func client(team *softhsmtest.TeamBroker) *http.Client {
	c := team.Client()
	c.Transport.(*http.Transport).MaxIdleConnsPerHost = 2 * teamClients
	return c
}

// load makes signatures through a broker.
type load struct {
	b       *bench
	team    *softhsmtest.TeamBroker
	urls    []string // of replicas, in turn
	clients int
	client  *http.Client
	number  atomic.Int64
}

// result is what a run has found.
type result struct {
	took         time.Duration
	milliseconds figures       // of each signature
	processor    time.Duration // of the brokers, where it is measured
}

// add adds what another run has found.
func (r *result) add(other *result) {
	r.took, r.processor = r.took+other.took, r.processor+other.processor
	r.milliseconds = append(r.milliseconds, other.milliseconds...)
}

func (r *result) rate() float64 { return float64(len(r.milliseconds)) / r.took.Seconds() }

func (r *result) quantile(q float64) float64 {
	slices.Sort(r.milliseconds)
	return r.milliseconds[int(q*float64(len(r.milliseconds)-1))]
}

// run makes signatures for a time: as many as clients can make, or at a rate, whatever the broker does.
func (l *load) run(d time.Duration, rate float64) *result {
	f := fixture{bench: l.b}
	count := int(d.Seconds() * max(rate, 3*moduleRate))
	tokens := make(chan string, count)
	for range count {
		tokens <- l.team.Issuer.Mint(f, release(l.team))
	}
	var mu sync.Mutex
	r := &result{}
	one := func() {
		took, err := l.sign(<-tokens)
		if err != nil {
			f.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		r.milliseconds = append(r.milliseconds, float64(took.Microseconds())/1000)
	}
	began := time.Now()
	var group sync.WaitGroup
	if rate == 0 {
		for range l.clients {
			group.Go(func() {
				for time.Since(began) < d {
					one()
				}
			})
		}
	} else {
		for i := range int(d.Seconds() * rate) {
			time.Sleep(time.Until(began.Add(time.Duration(float64(i) / rate * float64(time.Second)))))
			group.Go(one)
		}
	}
	group.Wait()
	r.took = time.Since(began)
	return r
}

func release(team *softhsmtest.TeamBroker) map[string]any {
	return identitytest.GitHub(team.Public, "example/app", "refs/tags/v1.0.0")
}

// sign makes one signature.
func (l *load) sign(token string) (time.Duration, error) {
	number := int(l.number.Add(1))
	body, err := json.Marshal(brokerapi.SignatureRequest{Algorithm: "ECDSA-SHA-256",
		Payload: softhsmtest.SigningInput("ES256", number)})
	if err != nil {
		return 0, err
	}
	r, err := http.NewRequestWithContext(l.b.ctx, http.MethodPost,
		l.urls[number%len(l.urls)]+brokerapi.SignaturesPath("key-EC-256"), bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	began := time.Now()
	response, err := l.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusCreated {
		return 0, fmt.Errorf("%s: %s, %w", response.Status, data, err)
	}
	return time.Since(began), nil
}

// fsync returns the 99th percentile, in ms, of how long it takes to write a page to a file and have it on the disk.
func (b *bench) fsync(dir string) float64 {
	f := fixture{bench: b}
	file, err := os.Create(filepath.Join(dir, "fsync"))
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close()
	r := &result{}
	for range 300 {
		began := time.Now()
		if _, err := file.Write(make([]byte, 4096)); err != nil {
			f.Fatal(err)
		}
		if err := file.Sync(); err != nil {
			f.Fatal(err)
		}
		r.milliseconds = append(r.milliseconds, float64(time.Since(began).Microseconds())/1000)
	}
	return r.quantile(0.99)
}
