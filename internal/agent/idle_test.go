package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestIdle ends after the time without a use. The clock is that of the bubble.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		u := &uses{last: start}
		ended := make(chan time.Duration, 1)
		go func() {
			if u.wait(t.Context(), 8*time.Hour) {
				ended <- time.Since(start)
			}
		}()
		sleep := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		sleep(7 * time.Hour)
		u.begin()
		u.end(true) // 7:00
		sleep(2 * time.Hour)
		u.begin()
		u.end(false) // a request that was refused uses no key
		if left := u.left(8 * time.Hour); left != 6*time.Hour {
			t.Errorf("left is %s", left)
		}
		sleep(5 * time.Hour)
		u.begin() // 14:00
		sleep(10 * time.Hour)
		u.end(true) // 24:00
		if u.made != 2 {
			t.Errorf("%d uses", u.made)
		}
		if at := <-ended; at != 32*time.Hour {
			t.Errorf("ended after %s", at)
		}
	})
}

// TestIdleInterrupted ends with its context.
func TestIdleInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		u := &uses{last: time.Now()}
		if u.wait(ctx, 8*time.Hour) {
			t.Error("it was idle for an hour")
		}
	})
}
