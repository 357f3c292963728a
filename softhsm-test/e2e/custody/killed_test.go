package custody

import (
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// killAt runs a command and kills it as it enters the n-th call that changes a file. It returns the call, and whether
// it came to it.
func killAt(t testing.TB, n int, skip, name string, args ...string) (at string, killed bool) {
	t.Helper()
	return softhsmtest.StartTraced(t, n, skip, name, args...).Wait()
}

// killAtEach kills a command at each call that changes a file, one in each run.
func killAtEach(t testing.TB, skip string, prepare func(), check func(at string), name string,
	args ...string) (kills int) {
	t.Helper()
	return killAtEvery(t, 1, 1, skip, prepare, check, name, args...)
}

// killAtEvery does so at one call of step, from the first on.
func killAtEvery(t testing.TB, first, step int, skip string, prepare func(), check func(at string), name string,
	args ...string) (kills int) {
	t.Helper()
	for ; ; kills++ {
		prepare()
		at, killed := killAt(t, first+kills*step, skip, name, args...)
		if !killed {
			return kills
		}
		check(at)
	}
}
