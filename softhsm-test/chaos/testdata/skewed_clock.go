package broker

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// skewed returns the machine's time, and as many seconds more as the file has that CHAOS_CLOCK names.
func skewed() time.Time {
	text, err := os.ReadFile(os.Getenv("CHAOS_CLOCK"))
	seconds, errNumber := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || errNumber != nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(seconds) * time.Second)
}
