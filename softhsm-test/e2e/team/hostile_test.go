package team

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi/brokerapitest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestHostile sends a broker 500 malformed requests over TLS from 64 clients at once, leaves requests and signatures
// halfway, and holds connections, four times. Each request is refused, no answer blames the broker, and what the broker
// uses goes back.
func TestHostile(t *testing.T) {
	softhsmtest.Parallel(t)
	softhsmtest.NeedRoot(t) // to count the descriptors of a process that hides its memory
	metrics := softhsmtest.FreeAddresses(t, 1)[0]
	s := start(t, softhsmtest.TeamOptions{Policy: strings.Replace(policy, "when: caller.issuer == \"ISSUER\" &&",
		"when: caller.subject == \"CN=ci\" || caller.issuer == \"ISSUER\" &&", 1),
		Listen: "metrics: " + metrics, Limits: "requests: 1000000 per minute, open: 1000"})
	settings := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	settings.RootCAs.AppendCertsFromPEM([]byte(softhsmtest.Read(t, s.CA)))
	pair, err := tls.LoadX509KeyPair(s.ClientCertificate(t, "ci"))
	if err != nil {
		t.Fatal(err)
	}
	settings.Certificates = []tls.Certificate{pair}
	address := strings.TrimPrefix(s.URL, "https://")
	h := softhsmtest.Hostile{TB: t, Public: s.public.(*ecdsa.PublicKey), Description: brokerapitest.LoadTeam(t),
		Page: func(path string) bool {
			return !strings.HasPrefix(path, "/v1/") && path != brokerapi.HealthPath && path != brokerapi.ReadyPath
		},
		Dial: func() net.Conn {
			conn, err := tls.Dial("tcp", address, settings) //nolint:noctx // loopback
			if err != nil {
				t.Error(err)
				t.Fatal(s.Output.String())
			}
			return conn
		}}
	h.Sign()
	pid := s.PID()
	round := func(number uint64) {
		h.Storm(number)
		h.Vanish()
		h.Hold()
		silent := silence(t, address)
		h.Sign()
		for _, conn := range silent {
			conn.Close()
		}
	}
	round(0) // so that buffers, sessions and connections to the store are there before the first count
	descriptors, routines, live := h.Settled(pid), metric(t, metrics, "go_goroutines"), metric(t, metrics, liveMemory)
	for number := range uint64(4) {
		round(number + 1)
	}
	for now := 0; ; time.Sleep(10 * time.Millisecond) {
		if now = h.Settled(pid); now <= descriptors+64 { // up to 16 connections to the store come and go, of 3 files each
			break
		}
	}
	for metric(t, metrics, "go_goroutines") > routines+64 {
		time.Sleep(10 * time.Millisecond)
	}
	now := metric(t, metrics, liveMemory)
	for signed := 0; now > live+64<<20 && signed < 1000; signed++ { // the next collection frees what the storm used
		h.Sign()
		now = metric(t, metrics, liveMemory)
	}
	t.Logf("descriptors: %d; goroutines: %.0f; heap's goal: %.0f bytes, then %.0f", descriptors, routines, live, now)
	if now > live+64<<20 {
		t.Errorf("the broker's heap has a goal of %.0f bytes, and had %.0f before", now, live)
	}
	h.Sign()
}

// liveMemory is the metric of the size at which the heap is collected next: twice what was in use after the last
// collection. The resident memory says less, since the runtime returns pages to the system when it has time.
const liveMemory = "go_memstats_next_gc_bytes"

// silence opens connections that do not begin TLS, or do not go on with it.
func silence(t testing.TB, address string) (all []net.Conn) {
	t.Helper()
	for i := range 200 {
		conn, err := net.Dial("tcp", address) //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			_, _ = conn.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
		}
		all = append(all, conn)
	}
	return all
}

// metric returns the value of a metric without labels, of a broker that serves its metrics at an address.
func metric(t testing.TB, address, name string) float64 {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + address + "/metrics") //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("the metrics have no %s", name)
	return 0
}
