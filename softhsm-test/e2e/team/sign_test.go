package team

import (
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestSign signs by the API, and finds it in the log.
func TestSign(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, softhsmtest.TeamOptions{})
	signature := s.signs()
	s.Restart() // which publishes all
	events := s.audit()
	if count(events, "signed/v1") != 1 || count(events, "intent/v1") != 1 {
		t.Errorf("the log has %+v", events)
	}
	if last := events[len(events)-1]; last.Type != "signed/v1" || last.Request != signature.Request ||
		last.Key != "release" {
		t.Errorf("the last event is %+v", last)
	}
}
