// Package bound limits what is read: the size of files, and the structure of untrusted JSON, CBOR and DER before a
// parser sees it.
//
// Parsers recurse into nested values and allocate memory for each element, so a short input can cost far more than its
// size. The checks here read their input once, without recursion, and do not interpret it.
package bound

import "fmt"

// Depth is the limit of nesting for untrusted data, unless a format needs more.
const Depth = 16

// Limits are the limits of one input.
type Limits struct {
	Bytes    int // size of the input
	Depth    int // nesting of arrays, objects, maps, tags and constructed elements; an outermost one has depth 1
	Elements int // number of values: each array, object, name, scalar, CBOR item and DER element
}

// checkSize fails when data has more bytes than the limit.
func (l Limits) checkSize(data []byte) error {
	if len(data) > l.Bytes {
		return fmt.Errorf("it has %d bytes, more than %d", len(data), l.Bytes)
	}
	return nil
}

// checkCounts fails when the count-th element of the input, at this depth, exceeds a limit.
func (l Limits) checkCounts(depth, count int) error {
	if depth > l.Depth {
		return fmt.Errorf("it is nested deeper than %d", l.Depth)
	}
	if count > l.Elements {
		return fmt.Errorf("it has more than %d elements", l.Elements)
	}
	return nil
}
