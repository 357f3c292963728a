package policy

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// Bounds of what a caller and a format may hand to conditions. Tokens of CI systems have some 30 claims in 2 KiB. The
// TUF metadata of 10,000 tags, which are 32 files and their snapshot, have some 1,300 annotations in 130 KiB a file.
const (
	maxClaims     = 1000      // values
	maxClaimDepth = 8         // nesting
	maxBytes      = 128 << 10 // of all names and texts

	maxAnnotations      = 20000   // values of an artifact
	maxAnnotationsBytes = 2 << 20 // of all names and texts of an artifact
)

// converter turns claims into values of CEL, within the bounds.
type converter struct{ values, bytes, maxValues, maxBytes int }

// claims returns the claims of a caller as a CEL map. It fails when they exceed a bound or have values that are not of
// JSON.
func claims(all map[string]any) (ref.Val, error) {
	c := converter{maxValues: maxClaims, maxBytes: maxBytes}
	return c.convert(all, maxClaimDepth)
}

// count adds to what was seen, and fails beyond a bound.
func (c *converter) count(text string) error {
	c.values++
	c.bytes += len(text)
	if c.values > c.maxValues {
		return fmt.Errorf("there are more than %d values", c.maxValues)
	}
	if c.bytes > c.maxBytes {
		return fmt.Errorf("they have more than %d bytes", c.maxBytes)
	}
	return nil
}

// convert returns a value of JSON as one of CEL.
func (c *converter) convert(value any, depth int) (ref.Val, error) {
	if depth < 0 {
		return nil, fmt.Errorf("they are nested deeper than %d", maxClaimDepth)
	}
	text, _ := value.(string)
	if err := c.count(text); err != nil {
		return nil, err
	}
	switch v := value.(type) {
	case nil:
		return types.NullValue, nil
	case string:
		return types.String(v), nil
	case bool:
		return types.Bool(v), nil
	case int:
		return types.Int(v), nil
	case int64:
		return types.Int(v), nil
	case float64:
		return types.Double(v), nil
	case json.Number:
		return number(v)
	case []string:
		list := make([]ref.Val, len(v))
		for i, item := range v {
			if err := c.count(item); err != nil {
				return nil, err
			}
			list[i] = types.String(item)
		}
		return types.NewRefValList(types.DefaultTypeAdapter, list), nil
	case []any:
		if len(v) > maxClaims {
			return nil, fmt.Errorf("there are more than %d values", maxClaims)
		}
		list := make([]ref.Val, len(v))
		for i, item := range v {
			var err error
			if list[i], err = c.convert(item, depth-1); err != nil {
				return nil, err
			}
		}
		return types.NewRefValList(types.DefaultTypeAdapter, list), nil
	case map[string]any:
		if len(v) > maxClaims {
			return nil, fmt.Errorf("there are more than %d values", maxClaims)
		}
		values := make(map[string]any, len(v))
		for name, item := range v {
			if err := c.count(name); err != nil {
				return nil, err
			}
			converted, err := c.convert(item, depth-1)
			if err != nil {
				return nil, err
			}
			values[name] = converted
		}
		return types.NewStringInterfaceMap(types.DefaultTypeAdapter, values), nil
	}
	return nil, fmt.Errorf("a value is a %T", value)
}

// number returns a number of JSON as a whole number if it is one that fits.
func number(n json.Number) (ref.Val, error) {
	if whole, err := strconv.ParseInt(string(n), 10, 64); err == nil {
		return types.Int(whole), nil
	}
	f, err := strconv.ParseFloat(string(n), 64)
	if err != nil || math.IsInf(f, 0) {
		return nil, fmt.Errorf("the number %.50s cannot be represented", string(n))
	}
	return types.Double(f), nil
}

// checkArtifact fails when what is known of an artifact exceeds a bound.
func checkArtifact(a *Artifact) error {
	c := converter{maxValues: maxAnnotations, maxBytes: maxAnnotationsBytes}
	for _, text := range []string{a.MediaType, a.Digest, a.Repository, a.Name} {
		if err := c.count(text); err != nil {
			return err
		}
	}
	for name, value := range a.Annotations {
		if err := c.count(name + value); err != nil {
			return err
		}
	}
	return nil
}
