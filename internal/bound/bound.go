// Package bound bounds what is read: the size of files, and the structure of untrusted JSON and DER before anything
// parses it.
//
// Parsers recurse into what is nested and allocate for each element, so a short text can cost far more than its size.
// The checks here read their input once, from begin to end and without recursion. They say nothing of what the input
// means.
package bound

import "fmt"

// Depth is how deep untrusted data may be nested, unless a format needs more.
const Depth = 16

// Limits are what one input may have.
type Limits struct {
	Bytes    int // of the whole input
	Depth    int // arrays, objects and constructed elements within each other; an outermost one counts as 1
	Elements int // values: each array, object, name, scalar and DER element
}

func (l Limits) checkSize(data []byte) error {
	if len(data) > l.Bytes {
		return fmt.Errorf("it has %d bytes, more than %d", len(data), l.Bytes)
	}
	return nil
}

// checkCounts fails when an element at this depth, the count-th of the input, is one too many.
func (l Limits) checkCounts(depth, count int) error {
	if depth > l.Depth {
		return fmt.Errorf("it is nested deeper than %d", l.Depth)
	}
	if count > l.Elements {
		return fmt.Errorf("it has more than %d elements", l.Elements)
	}
	return nil
}
