package bound

import (
	"errors"
	"fmt"
	"math"
)

// CBOR fails unless data is one CBOR item within the limits, with definite lengths. Arrays, maps and tags count for the
// depth. CBOR inside of byte strings is not checked.
func CBOR(data []byte, l Limits) error {
	if err := l.checkSize(data); err != nil {
		return err
	}
	var missing []uint64 // the number of items that each open array, map or tag still needs
	at := 0
	for count := 1; count == 1 || len(missing) > 0; count++ {
		size, items, err := cborHead(data[at:])
		if err != nil {
			return fmt.Errorf("its item at byte %d %w", at, err)
		}
		at += size
		depth := len(missing)
		if items > 0 {
			missing = append(missing, items)
			depth++
		}
		if err := l.checkCounts(depth, count); err != nil {
			return err
		}
		if items > 0 {
			continue
		}
		for len(missing) > 0 { // the item is complete, and may complete the containers around it
			if missing[len(missing)-1]--; missing[len(missing)-1] > 0 {
				break
			}
			missing = missing[:len(missing)-1]
		}
	}
	if at < len(data) {
		return errors.New("something follows its CBOR item")
	}
	return nil
}

// cborHead reads the head of an item, with the content of a string. It returns their size in bytes, and the number of
// items that belong to the item and follow.
func cborHead(data []byte) (size int, items uint64, err error) {
	if len(data) == 0 {
		return 0, 0, errCutShort
	}
	major, argument := data[0]>>5, uint64(data[0]&0x1f)
	size = 1
	switch {
	case argument == 31:
		return 0, 0, errors.New("has an indefinite length")
	case argument > 27:
		return 0, 0, errors.New("is not CBOR")
	case argument >= 24:
		digits := 1 << (argument - 24)
		if digits > len(data)-size {
			return 0, 0, errCutShort
		}
		argument = 0
		for _, b := range data[size : size+digits] {
			argument = argument<<8 | uint64(b)
		}
		size += digits
	}
	rest := uint64(len(data) - size) //nolint:gosec // not negative
	switch major {
	case 2, 3: // strings
		if argument > rest {
			return 0, 0, errCutShort
		}
		return size + int(argument), 0, nil
	case 4, 5: // arrays and maps; each item has at least one byte
		if argument > rest || argument > math.MaxInt32 {
			return 0, 0, errCutShort
		}
		return size, argument * uint64(major-3), nil
	case 6: // a tag
		return size, 1, nil
	}
	return size, 0, nil
}
