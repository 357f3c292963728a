package bound

import (
	"errors"
	"fmt"
)

// DER fails unless data is a sequence of ASN.1 elements within the limits and with DER lengths: definite, in the fewest
// bytes, and within the element that contains them. DER inside of strings is not checked.
func DER(data []byte, l Limits) error {
	if err := l.checkSize(data); err != nil {
		return err
	}
	var ends []int // the ends of the constructed elements that contain the position at
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

// header reads the tag and the length of the element at the start of data. It returns the size of both, and the size of
// the content, which is within data.
func header(data []byte) (size, length int, err error) {
	size = 1
	if data[0]&0x1f == 0x1f { // the tag continues until a byte without the high bit
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
