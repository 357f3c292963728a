//go:build cgo

package crashreport

import (
	"errors"
	"runtime"
	"strings"
	"testing"
)

// TestOwnFaults shows that a fault in Go code is still a panic that can be recovered from, as Go programs rely on: only
// a module's are the end. (Those are tested with a module that crashes, in softhsm-test.)
func TestOwnFaults(t *testing.T) {
	Report(func(err error) []byte { return []byte(err.Error()) })
	Expect(errors.New("the module crashed"))
	Expect(errors.New(strings.Repeat("the module crashed ", 10000))) // longer than there is room for, and a second time
	defer func() {
		if err, ok := recover().(runtime.Error); !ok || !strings.Contains(err.Error(), "nil pointer") {
			t.Errorf("a nil pointer ended in %v", err)
		}
	}()
	var nothing *int
	*nothing = 1
}
