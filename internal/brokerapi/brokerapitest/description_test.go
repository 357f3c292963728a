package brokerapitest

import "testing"

// TestLoad reads both descriptions, and what one refers to in the other.
func TestLoad(t *testing.T) {
	t.Parallel()
	if len(Load(t).Operations()) == 0 || len(LoadTeam(t).Operations()) == 0 {
		t.Error("a description has no operations")
	}
}
