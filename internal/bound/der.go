package bound

import (
	"errors"
	"fmt"
)

// DER fails unless data is ASN.1 elements within the limits, one after another, in the form that DER prescribes:
// lengths are definite and as short as can be, and each element ends within the one that holds it. What is in strings
// is not looked at, even if it is DER again.
func DER(data []byte, l Limits) error {
	if err := l.checkSize(data); err != nil {
		return err
	}
	var ends []int // of the constructed elements around at
	at := 0
	for count := 1; at < len(data); count++ {
		constructed := data[at]&0x20 != 0
		end := len(data)
		if len(ends) > 0 {
			end = ends[len(ends)-1]
		}
		begin, length, err := header(data[at:end])
		if err != nil {
			return fmt.Errorf("its element at byte %d %w", at, err)
		}
		at += begin
		depth := len(ends)
		if constructed {
			ends = append(ends, at+length)
			depth++
		} else {
			at += length
		}
		if err := l.checkCounts(depth, count); err != nil {
			return err
		}
		for len(ends) > 0 && at == ends[len(ends)-1] {
			ends = ends[:len(ends)-1]
		}
	}
	return nil
}

var errCutShort = errors.New("is cut short")

// header reads tag and length of the element that data begins with. It returns the size of both and that of the
// content, which is in data.
func header(data []byte) (size, length int, err error) {
	size = 1
	if data[0]&0x1f == 0x1f { // the tag goes on, in bytes of which the last has no high bit
		for {
			if size == len(data) {
				return 0, 0, errCutShort
			}
			if size++; data[size-1]&0x80 == 0 {
				break
			}
		}
	}
	if size == len(data) {
		return 0, 0, errCutShort
	}
	first := int(data[size])
	size++
	if first < 0x80 {
		length = first
	} else {
		digits := first & 0x7f
		switch {
		case digits == 0:
			return 0, 0, errors.New("has an indefinite length, which is not DER")
		case digits > 4 || digits > len(data)-size:
			return 0, 0, errCutShort
		}
		for range digits {
			length = length<<8 | int(data[size])
			size++
		}
		if length < 0x80 || length>>(8*(digits-1)) == 0 {
			return 0, 0, errors.New("has a length in more bytes than it needs, which is not DER")
		}
	}
	if length < 0 || length > len(data)-size { // negative where an int has 32 bits
		return 0, 0, errCutShort
	}
	return size, length, nil
}
