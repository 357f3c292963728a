package monitor

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // for machines without a database of time zones
)

// Hours are when a key is used.
type Hours struct {
	Days string `yaml:"days"` // such as mon-fri or mon,wed,sat-sun
	From string `yaml:"from"` // HH:MM
	To   string `yaml:"to"`   // HH:MM, up to 24:00, which is outside
	Zone string `yaml:"zone"` // of the IANA database; "" for UTC

	days     [7]bool // by time.Weekday
	from, to int     // minutes
	zone     *time.Location
}

var (
	dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}
	dayTimes = regexp.MustCompile(`^([01][0-9]|2[0-4]):([0-5][0-9])$`)
)

// parse reads the texts.
func (h *Hours) parse() (err error) {
	for _, part := range strings.Split(h.Days, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		from, to := slices.Index(dayNames, first), slices.Index(dayNames, last)
		if from < 0 || to < 0 {
			return fmt.Errorf("days %.60q are not some of %s", h.Days, strings.Join(dayNames, ", "))
		}
		for day := from; ; day = (day + 1) % len(dayNames) {
			h.days[day] = true
			if day == to {
				break
			}
		}
	}
	if h.from, err = minutes(h.From); err != nil {
		return err
	}
	if h.to, err = minutes(h.To); err != nil {
		return err
	}
	if h.from >= h.to {
		return fmt.Errorf("from %s is not before to %s", h.From, h.To)
	}
	if h.zone, err = time.LoadLocation(h.Zone); err != nil || h.Zone == "Local" {
		return fmt.Errorf("zone %.60q is not in the IANA database", h.Zone)
	}
	return nil
}

func minutes(text string) (int, error) {
	parts := dayTimes.FindStringSubmatch(text)
	if parts == nil || text > "24:00" {
		return 0, fmt.Errorf("%.60q is not a time of day", text)
	}
	hour, _ := strconv.Atoi(parts[1])
	minute, _ := strconv.Atoi(parts[2])
	return hour*60 + minute, nil
}

// has reports whether a time is within the hours.
func (h *Hours) has(at time.Time) bool {
	at = at.In(h.zone)
	minute := at.Hour()*60 + at.Minute()
	return h.days[at.Weekday()] && h.from <= minute && minute < h.to
}
