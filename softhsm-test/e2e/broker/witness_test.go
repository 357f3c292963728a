package broker

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/notation-hsm/notation-hsm/internal/translog"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestWitness has a real witness cosign the log of a broker, whose EC key is in a token. The broker starts while the
// witness is away, and goes on after a restart of the witness.
func TestWitness(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	registry, dir := oci.StartRegistry(t), t.TempDir()
	skey, vkey, err := note.GenerateKey(rand.Reader, "witness.example.com")
	if err != nil {
		t.Fatal(err)
	}
	addresses := softhsmtest.FreeAddresses(t, 3)
	b := softhsmtest.StartTeam(t, token, softhsmtest.TeamOptions{Policy: operatedPolicy, Type: "other",
		Listen: "metrics: " + addresses[0], Log: fmt.Sprintf("witnesses: [{url: %q, key: %q}]", "http://"+addresses[1],
			vkey)})
	mint := func() string { // a token is good for one request
		return b.Issuer.Mint(t, map[string]any{"aud": b.URL, "sub": "ci", "repository": "example/app"})
	}
	metricSays := func(line string) func() bool {
		return func() bool { return strings.Contains(get(t, "http://"+addresses[0]+"/metrics"), line) }
	}
	sign := func(content string) {
		t.Helper()
		digest, err := oci.PushImage(t.Context(), registry+"/app:"+content, content)
		if err != nil {
			t.Fatal(err)
		}
		b.Use(t, mint())
		softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", "broker:release",
			registry+"/app@"+digest.String())
	}
	sign("one")
	if !b.Ready(func() bool { return !metricSays(`hsm_broker_witness_errors_total{witness="witness.example.com"} 0`)() }) {
		t.Fatal("the broker ended")
	}
	status, ready, err := b.Ask(b.Client(), mint(), http.MethodGet, "/readyz", "")
	if err != nil || status != http.StatusOK {
		t.Fatalf("a broker without its witness is not ready: %d, %s, %v", status, ready, err)
	}
	says(t, ready, `"name":"witness witness.example.com"`)
	says(t, ready, "cannot get a cosignature of the witness witness.example.com: ")

	logKey := strings.TrimSpace(softhsmtest.Run(t, b.Program, "log", "key", "--config", b.Config()))
	logs, key := filepath.Join(dir, "logs.yaml"), filepath.Join(dir, "witness.key")
	softhsmtest.Write(t, logs, "Logs:\n- {Origin: broker.example.com/log, URL: \"\", PublicKey: \""+logKey+"\"}\n")
	softhsmtest.Write(t, key, skey)
	start := func() *softhsmtest.Service {
		return softhsmtest.Start(t, softhsmtest.Build(t, "omniwitness"), "--listen", addresses[1], "--metrics_listen",
			addresses[2], "--private_key_path", key, "--additional_logs", logs, "--db_file", filepath.Join(dir, "witness.db"))
	}
	named, err := translog.ParseWitness(vkey)
	if err != nil {
		t.Fatal(err)
	}
	cosigned := func() bool {
		status, served, err := b.Ask(b.Client(), "", http.MethodGet, "/v1/log/checkpoint", "")
		if err != nil || status != http.StatusOK {
			t.Fatalf("%d, %s, %v", status, served, err)
		}
		all, err := translog.Cosigned([]byte(served), []*translog.Witness{named})
		if err != nil {
			t.Fatal(err)
		}
		return len(all) == 1
	}
	witness := start()
	for _, content := range []string{"two", "three"} {
		if !b.Ready(cosigned) || !b.Ready(metricSays(`hsm_broker_witness_lag_entries{witness="witness.example.com"} 0`)) {
			t.Fatal("the broker ended")
		}
		witness.Stop()
		sign(content)
		witness = start()
	}
	if !b.Ready(cosigned) {
		t.Fatal("the broker ended")
	}
	softhsmtest.Run(t, b.Program, "log", "verify", b.URL+"/v1/log", "--ca", b.CA, "--key", logKey)
	witness.Stop()
	says(t, b.Stop(), "the witness cosigns again")
}
