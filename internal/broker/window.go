package broker

import (
	"slices"
	"time"
)

// window counts uses by the time when they happened: in seconds for an hour, and in steps of a quarter of an hour for
// the longest period of a limit. A use counts until the step that has it is over for a whole period, so no limit is
// ever exceeded.
type window struct {
	Seconds  []count `json:"seconds,omitempty"`
	Quarters []count `json:"quarters,omitempty"`
}

// count is a number of uses in the step that begins at a time.
type count struct {
	At int64 `json:"at"` // Unix time
	N  int64 `json:"n"`
}

const (
	hour      = 3600
	quarter   = 900
	maxPeriod = 31 * 24 * hour
)

// clone returns a copy.
func (w *window) clone() *window { return &window{slices.Clone(w.Seconds), slices.Clone(w.Quarters)} }

// add counts a use.
func (w *window) add(at time.Time) {
	now := at.Unix()
	w.Seconds = addCount(w.Seconds, now, now-hour)
	w.Quarters = addCount(w.Quarters, now-now%quarter, now-maxPeriod-quarter)
}

func addCount(counts []count, at, oldest int64) []count {
	first := 0
	for first < len(counts) && counts[first].At < oldest {
		first++
	}
	counts = counts[first:]
	if n := len(counts); n > 0 && counts[n-1].At >= at { // a clock that went back counts as standing still
		counts[n-1].N++
		return counts
	}
	return append(counts, count{at, 1})
}

// within returns how many uses there were in the period before a time.
func (w *window) within(now time.Time, period time.Duration) (n int64) {
	counts, _ := w.of(now, period)
	for _, c := range counts {
		n += c.N
	}
	return n
}

// free returns after how long the oldest use in the period before a time does not count any more.
func (w *window) free(now time.Time, period time.Duration) time.Duration {
	counts, step := w.of(now, period)
	if len(counts) == 0 {
		return 0
	}
	return max(0, time.Unix(counts[0].At+step, 0).Add(period).Sub(now))
}

// of returns the steps that count in the period before a time, and their length in seconds.
func (w *window) of(now time.Time, period time.Duration) (counts []count, step int64) {
	if w == nil {
		return nil, 0
	}
	counts, step = w.Seconds, 1
	if period > hour*time.Second {
		counts, step = w.Quarters, quarter
	}
	oldest, first := now.Unix()-int64(period/time.Second), len(counts)
	for first > 0 && counts[first-1].At+step > oldest {
		first--
	}
	return counts[first:], step
}

// idle reports whether no use has happened in a period, nor in the quarter of an hour before it.
func (w *window) idle(now time.Time, period time.Duration) bool {
	return len(w.Quarters) == 0 || w.Quarters[len(w.Quarters)-1].At < now.Unix()-int64(period/time.Second)-quarter
}
