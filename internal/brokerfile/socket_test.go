package brokerfile

import (
	"fmt"
	"strings"
	"testing"
)

// TestSocketPath refuses paths that no socket can have: Linux would answer with "invalid argument".
func TestSocketPath(t *testing.T) {
	for size, refused := range map[int]bool{maxSocketPath: false, maxSocketPath + 1: true} {
		path := "/" + strings.Repeat("a", size-1)
		_, mistakes := Parse([]byte(fmt.Sprintf("version: 1\nlisten:\n  unix: {path: %s}\n", path)))
		said := fmt.Sprint(mistakes)
		if strings.Contains(said, "the path of a socket at most") != refused {
			t.Errorf("%d bytes: %s", size, said)
		}
	}
}
