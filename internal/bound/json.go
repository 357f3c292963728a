package bound

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// container is an array or an object whose end has not been read.
type container struct {
	names map[string]bool // the names in an object so far; nil for an array
	named bool            // the next value in an object belongs to the last name
}

// JSON fails unless data is one JSON value within the limits. It also fails when an object has a name twice, since
// parsers differ in which value they take.
func JSON(data []byte, l Limits) error {
	if err := l.checkSize(data); err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(data)) // Token neither recurses nor builds values
	decoder.UseNumber()
	var open []container
	count := 0
	for count == 0 || len(open) > 0 {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("it is not JSON: %w", err)
		}
		if token == json.Delim('}') || token == json.Delim(']') {
			open = open[:len(open)-1]
			continue
		}
		if len(open) > 0 {
			if err := open[len(open)-1].add(token); err != nil {
				return err
			}
		}
		switch token {
		case json.Delim('{'):
			open = append(open, container{names: map[string]bool{}})
		case json.Delim('['):
			open = append(open, container{})
		}
		count++
		if err := l.checkCounts(len(open), count); err != nil {
			return err
		}
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its JSON value")
	}
	return nil
}

// add records a name or the start of a value in the container. It fails for a name that the object has already.
func (c *container) add(token json.Token) error {
	if c.names == nil {
		return nil
	}
	if c.named = !c.named; !c.named {
		return nil
	}
	name, _ := token.(string) // the decoder accepts no other token as a name
	if c.names[name] {
		return fmt.Errorf("an object has the name %.50q twice", name)
	}
	c.names[name] = true
	return nil
}
