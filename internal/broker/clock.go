package broker

import (
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the time. Tests have clocks that jump.
type Clock struct {
	Wall func() time.Time     // nil means the machine's
	Boot func() time.Duration // time since boot, with suspends; nil means the machine's
}

// maxJump is how far the wall clock can move against the time since boot before it counts as a jump.
const maxJump = 5 * time.Second

// watch follows the wall clock, and notices when it jumps. Since the last time before a jump it counts the time since
// boot: time locks stay closed until the clock is right again, or the broker is started anew.
type watch struct {
	clock Clock

	mu     sync.Mutex
	wall   time.Time     // when it was right last
	boot   time.Duration // at the same moment
	jumped time.Duration // by how much it is wrong; 0 if it is not
}

func newWatch(c Clock) *watch {
	if c.Wall == nil {
		c.Wall = time.Now
	}
	if c.Boot == nil {
		c.Boot = sinceBoot
	}
	return &watch{clock: c, wall: c.Wall().Round(0), boot: c.Boot()}
}

func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // no kernel is without it
	}
	return time.Duration(t.Nano())
}

// now returns the wall clock's time; while it is wrong, the time that it should have. It never is before last.
func (w *watch) now(last time.Time) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	wall, boot := w.clock.Wall().Round(0).UTC(), w.clock.Boot()
	expected := w.wall.Add(boot - w.boot)
	jump := wall.Sub(expected)
	switch {
	case jump.Abs() > maxJump:
		if w.jumped == 0 {
			slog.Error("the clock has jumped: time locks stay closed", "by", jump)
		}
		w.jumped = jump
		wall = expected
	default:
		if w.jumped != 0 {
			slog.Info("the clock is right again")
		}
		w.wall, w.boot, w.jumped = wall, boot, 0
	}
	if wall.Before(last) {
		return last
	}
	return wall
}

// frozen returns by how much the clock is wrong, compared to how it ran before and to the newest entry of the log; 0 if
// it is right.
func (w *watch) frozen(last time.Time) time.Duration {
	now := w.now(time.Time{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.jumped == 0 && last.Sub(now) > maxJump {
		return now.Sub(last)
	}
	return w.jumped
}
