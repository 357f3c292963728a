package broker

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

const operatedPolicy = `version: 1
keys:
  release:
    key: pkcs11:token=signing;object=release
    formats: [notation]
    use:
    - {name: anyone, when: 'caller.claims.repository == "example/app"'}
`

// collector is one of OpenTelemetry. It keeps the names of spans by their IDs and parents.
type collector struct {
	*httptest.Server

	got chan string
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{got: make(chan string, 1024)}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		c.got <- string(data)
	}))
	t.Cleanup(c.Close)
	return c
}

// TestOperations runs a broker with metrics, a feed and a collector of traces. /metrics has what the documentation says
// and nothing else of the broker's, the feed has the log, the traces have the spans of a signature, and its log is JSON
// with one line for it. None of them has a token or the PIN.
func TestOperations(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	_, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	n.Trust(t, pem)
	registry, traces, dir := oci.StartRegistry(t), startCollector(t), t.TempDir()
	digest, err := oci.PushImage(t.Context(), registry+"/app:v1", "content")
	if err != nil {
		t.Fatal(err)
	}
	image, fed := registry+"/app@"+digest.String(), filepath.Join(dir, "feed.json")
	address := softhsmtest.FreeAddresses(t, 1)[0]
	b := softhsmtest.StartTeam(t, token, softhsmtest.TeamOptions{Policy: operatedPolicy, Type: "other",
		Listen: "metrics: " + address, Log: "feeds: [{file: " + fed + "}]", Config: "traces: " + traces.URL})
	allowed := b.Issuer.Mint(t, map[string]any{"aud": b.URL, "sub": "ci", "repository": "example/app"})
	b.Use(t, allowed)
	softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", "broker:release", image)
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", image)
	other := b.Issuer.Mint(t, map[string]any{"aud": b.URL, "sub": "ci", "repository": "example/other"})
	status, answer, err := b.Ask(b.Client(), other, http.MethodPost, "/v1/requests", `{"key":"release","artifact":{"format":`+
		`"notation","media_type":"application/vnd.oci.image.manifest.v1+json","digest":"`+digest.String()+`","size":500}}`)
	if err != nil || status != http.StatusForbidden {
		t.Fatalf("another repository gets %d, %s, %v", status, answer, err)
	}

	var metrics string
	if !b.Ready(func() bool {
		metrics = get(t, "http://"+address+"/metrics")
		return strings.Contains(metrics, `hsm_broker_log_unpublished_entries 0`) &&
			strings.Contains(metrics, `hsm_broker_feed_lag_entries{feed="`+fed+`",index="0"} 0`)
	}) {
		t.Fatal("the broker ended")
	}
	documented := documentedMetrics(t)
	var exposed []string
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (hsm_broker_\w+) `).FindAllStringSubmatch(metrics, -1) {
		exposed = append(exposed, match[1])
	}
	slices.Sort(exposed)
	if !slices.Equal(exposed, documented) {
		t.Errorf("the metrics are\n%v, not those of the documentation,\n%v", exposed, documented)
	}
	for _, line := range []string{`hsm_broker_requests_total{key="release",rule="anyone",state="signed"} 1`,
		`hsm_broker_http_requests_total{operation="POST /v1/keys/{key}/signatures",status="201"} 1`,
		`hsm_broker_refusals_total{kind="denied",operation="POST /v1/requests"} 1`,
		`hsm_broker_module_seconds_count{key="release"} 1`, `hsm_broker_read_only{reason="database-older"} 0`} {
		says(t, metrics, line+"\n")
	}

	entries := softhsmtest.Read(t, fed)
	says(t, entries, `"type":"signed/v1"`)
	spans := ""
	if !b.Ready(func() bool {
		select {
		case more := <-traces.got:
			spans += more
		default:
		}
		return strings.Contains(spans, `"name":"POST /v1/keys/{key}/signatures"`) && strings.Contains(spans, `"denied"`)
	}) {
		t.Fatal("the broker ended")
	}
	for _, name := range []string{"policy", "commit", "module"} {
		says(t, spans, `"name":"`+name+`"`)
	}
	output := b.Stop()
	signatures := 0
	for _, line := range strings.Split(output, "\n") {
		var logged map[string]any
		if !strings.HasPrefix(line, "{") {
			continue
		}
		if err := json.Unmarshal([]byte(line), &logged); err != nil {
			t.Errorf("a line of the log is no JSON: %s", line)
		}
		if logged["msg"] != "signed" {
			continue
		}
		signatures++
		for name, want := range map[string]string{"key": "release", "rule": "anyone", "digest": digest.String(),
			"subject": "ci", "issuer": b.Issuer.URL} {
			if logged[name] != want {
				t.Errorf("%s of the signature is %v in the log: %s", name, logged[name], line)
			}
		}
		if logged["request"] == "" || len(logged["trace_id"].(string)) != 32 {
			t.Errorf("the signature has no request or trace in the log: %s", line)
		}
	}
	if signatures != 1 {
		t.Errorf("the log has %d signatures:\n%s", signatures, output)
	}
	for where, text := range map[string]string{"metrics": metrics, "feed": entries, "traces": spans, "log": output} {
		for _, secret := range []string{softhsmtest.PIN, allowed, other} {
			if strings.Contains(text, secret) {
				t.Errorf("the %s has a secret", where)
			}
		}
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	answer, err := http.Get(url) //nolint:gosec,noctx // on loopback
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, answer.Status, err)
	}
	return string(data)
}

// ofReplicas are the metrics of a broker whose store is on PostgreSQL.
var ofReplicas = []string{"hsm_broker_leader", "hsm_broker_replicas", "hsm_broker_standby",
	"hsm_broker_turn_wait_seconds"}

// documentedMetrics returns the names in the table of metrics, sorted, without those of a broker that publishes tags,
// has notices or witnesses, or is a replica.
func documentedMetrics(t *testing.T) (names []string) {
	t.Helper()
	page := softhsmtest.Read(t, filepath.Join(softhsmtest.Root(), "docs", "broker-operations.md"))
	for _, match := range regexp.MustCompile("(?m)^\\| `(hsm_broker_\\w+)").FindAllStringSubmatch(page, -1) {
		if !strings.HasPrefix(match[1], "hsm_broker_tag_") && !strings.HasPrefix(match[1], "hsm_broker_notice") &&
			!strings.HasPrefix(match[1], "hsm_broker_witness_") && !slices.Contains(ofReplicas, match[1]) {
			names = append(names, match[1])
		}
	}
	slices.Sort(names)
	return names
}
