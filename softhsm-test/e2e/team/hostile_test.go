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
	descriptors, memory, routines := h.Settled(pid), h.Memory(pid), goroutines(t, metrics)
	for number := range uint64(4) {
		round(number + 1)
	}
	for now := 0; ; time.Sleep(10 * time.Millisecond) {
		if now = h.Settled(pid); now <= descriptors+64 { // up to 16 connections to the store come and go, of 3 files each
			break
		}
	}
	for goroutines(t, metrics) > routines+64 {
		time.Sleep(10 * time.Millisecond)
	}
	now := h.Memory(pid)
	t.Logf("descriptors: %d; goroutines: %d; resident memory: %d KiB, then %d KiB", descriptors, routines, memory, now)
	if now > memory+64<<10 {
		t.Errorf("the broker has %d KiB in memory, and had %d KiB before", now, memory)
	}
	h.Sign()
}

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

// goroutines returns the number of goroutines of a broker, as its metrics at an address have it.
func goroutines(t testing.TB, address string) int {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + address + "/metrics") //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
			n, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("the metrics have no number of goroutines")
	return 0
}
