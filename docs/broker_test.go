package docs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// TestBrokerMetrics holds the alerts and the dashboard of a broker to the metrics of its documentation, which an
// end-to-end test holds to those of a running broker.
func TestBrokerMetrics(t *testing.T) {
	t.Parallel()
	operations := read(t, "broker-operations.md")
	var known []string
	for _, match := range regexp.MustCompile("(?m)^\\| `(hsm_broker_\\w+)").FindAllStringSubmatch(operations, -1) {
		known = append(known, match[1])
	}
	if len(known) == 0 {
		t.Fatal("the page has no table of metrics")
	}
	var alerts struct {
		Groups []struct {
			Name  string
			Rules []struct{ Record, Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "../deploy/broker/alerts.yaml")), &alerts); err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "../deploy/broker/grafana-dashboard.json")), &board); err != nil {
		t.Fatal(err)
	}
	expressions := map[string]string{}
	for _, group := range alerts.Groups {
		for _, rule := range group.Rules {
			expressions[rule.Alert+rule.Record] = rule.Expr
			if rule.Alert != "" && !strings.Contains(operations, "`"+rule.Alert+"`") {
				t.Errorf("the page does not say what to do at %s", rule.Alert)
			}
		}
	}
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			expressions[panel.Title+" "+target.Expr] = target.Expr
		}
	}
	used := map[string]bool{}
	for where, expression := range expressions {
		names := regexp.MustCompile(`\bhsm_broker_\w+`).FindAllString(expression, -1)
		if len(names) == 0 && !strings.Contains(expression, "hsm_broker:") {
			t.Errorf("%s uses no metric", where)
		}
		for _, name := range names {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} { // of histograms
				if whole, is := strings.CutSuffix(name, suffix); is && !slices.Contains(known, name) {
					name = whole
				}
			}
			used[name] = true
			if !slices.Contains(known, name) {
				t.Errorf("%s uses %s, which no broker has", where, name)
			}
		}
	}
	for _, name := range known {
		if !used[name] {
			t.Errorf("neither an alert nor the dashboard uses %s", name)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.FromSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
