package identity

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// Limits bound what one caller asks of the broker, which counts. A limit of zero has its default.
type Limits struct {
	Requests Rate `yaml:"requests"` // default: 600 per minute
	Open     int  `yaml:"open"`     // requests that wait for people or time; default: 100
	Size     Size `yaml:"size"`     // of the body of a request; default: 1536KiB
}

// WithDefaults returns the limits, with defaults for those that are not set.
func (l Limits) WithDefaults() Limits {
	if l.Requests == (Rate{}) {
		l.Requests = Rate{Count: 600, Per: time.Minute}
	}
	if l.Open == 0 {
		l.Open = 100
	}
	if l.Size == 0 {
		l.Size = 1536 << 10 // a payload of 1 MiB in base64 fits
	}
	return l
}

func (l Limits) check() (mistakes []error) {
	if l.Open < 0 {
		mistakes = append(mistakes, mistake("callers.limits.open: is %d", l.Open).WithHint("use a positive number"))
	}
	return mistakes
}

// Rate is a number of requests in a period, written as "600 per minute".
type Rate struct {
	Count int
	Per   time.Duration
}

var periods = map[string]time.Duration{
	"second": time.Second, "minute": time.Minute, "hour": time.Hour, "day": 24 * time.Hour,
}

// UnmarshalYAML parses a rate.
func (r *Rate) UnmarshalYAML(node *yaml.Node) error {
	words := strings.Fields(node.Value)
	if len(words) == 3 && words[1] == "per" {
		count, err := strconv.Atoi(words[0])
		if per, known := periods[words[2]]; known && err == nil && count > 0 {
			*r = Rate{count, per}
			return nil
		}
	}
	return fmt.Errorf("line %d: %q is not a rate such as \"600 per minute\"", node.Line, node.Value)
}

// Size is a number of bytes, written as "1MiB", "64KiB" or "65536".
type Size int

// UnmarshalYAML parses a size.
func (s *Size) UnmarshalYAML(node *yaml.Node) error {
	text, unit := node.Value, 1
	if number, found := strings.CutSuffix(text, "MiB"); found {
		text, unit = number, 1<<20
	} else if number, found := strings.CutSuffix(text, "KiB"); found {
		text, unit = number, 1<<10
	}
	count, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || count <= 0 || count > math.MaxInt32/unit {
		return fmt.Errorf("line %d: %q is not a size such as 1MiB", node.Line, node.Value)
	}
	*s = Size(count * unit)
	return nil
}
