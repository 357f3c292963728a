package remote

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"regexp"
)

// traceparent returns the header of that name (W3C Trace Context): the one that the environment has, as CI systems with
// tracing set it, or a new one.
func traceparent() string {
	given := os.Getenv("TRACEPARENT")
	if regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`).MatchString(given) {
		return given
	}
	id := make([]byte, 24)
	_, _ = rand.Read(id) // does not fail
	text := hex.EncodeToString(id)
	return "00-" + text[:32] + "-" + text[32:] + "-01" // sampled, so that the broker decides
}
