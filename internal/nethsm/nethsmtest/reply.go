package nethsmtest

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// The description's patterns of names. Names are at most 128 bytes.
var (
	validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)
	userID  = regexp.MustCompile(`^([a-zA-Z0-9][a-zA-Z0-9_.-]*~)?[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)
)

// reply is a response before it is written.
type reply struct {
	status      int
	contentType string // empty without a body
	location    string
	body        []byte
	cut         bool // the instance goes down after it
}

const (
	typeJSON   = "application/json"
	typePEM    = "application/x-pem-file"
	typeBinary = "application/octet-stream"
	typeForm   = "multipart/form-data"
)

// fail returns an error with its reason as JSON.
func fail(status int, format string, args ...any) *reply {
	r := answer(map[string]string{"message": fmt.Sprintf(format, args...)})
	r.status = status
	return r
}

func answer(value any) *reply {
	body, err := json.Marshal(value)
	if err != nil {
		panic(err) // all values are this package's own
	}
	return &reply{status: http.StatusOK, contentType: typeJSON, body: body}
}

func done() *reply { return &reply{status: http.StatusNoContent} }

func created(folder, id string) *reply {
	r := answer(map[string]string{"id": id})
	r.status = http.StatusCreated
	r.location = base + folder + id
	return r
}

func items(ids []string) []map[string]string {
	list := []map[string]string{}
	for _, id := range ids {
		list = append(list, map[string]string{"id": id})
	}
	return list
}

// decode reads the request's JSON into a structure, whose fields without omitempty are required. Unknown properties,
// names in another case, missing ones and null are rejected, as the description requires.
func (c *call) decode(into any) *reply { return decodeJSON(c.body, into) }

func decodeJSON(body []byte, into any) *reply {
	var generic any
	decoder := json.NewDecoder(bytes.NewReader(body))
	if err := decoder.Decode(&generic); err != nil || decoder.More() {
		return fail(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	if err := exact(generic, reflect.TypeOf(into).Elem(), "the request"); err != nil {
		return fail(http.StatusBadRequest, "invalid data for JSON schema: %v", err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fail(http.StatusBadRequest, "invalid data for JSON schema: %v", err)
	}
	return nil
}

// exact compares the property names of a JSON value with the fields of a type; json.Unmarshal sees to the rest.
func exact(value any, t reflect.Type, where string) error {
	switch {
	case t.Kind() == reflect.Pointer && value == nil:
		return nil
	case t.Kind() == reflect.Pointer:
		return exact(value, t.Elem(), where)
	case value == nil:
		return fmt.Errorf("%s is null", where)
	case t.Kind() == reflect.Slice:
		list, _ := value.([]any)
		for _, element := range list {
			if err := exact(element, t.Elem(), where); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Struct:
		object, ok := value.(map[string]any)
		if !ok {
			return fmt.Errorf("%s is not an object", where)
		}
		known := map[string]bool{}
		for field := range t.Fields() {
			name, flags, _ := strings.Cut(field.Tag.Get("json"), ",")
			known[name] = true
			property, sent := object[name]
			if !sent && flags != "omitempty" {
				return fmt.Errorf("%s lacks property %s", where, name)
			}
			if !sent {
				continue
			}
			if err := exact(property, field.Type, name); err != nil {
				return err
			}
		}
		for name := range object {
			if !known[name] {
				return fmt.Errorf("%s has unknown property %q", where, name)
			}
		}
	}
	return nil
}

// passphrase reads the body {"passphrase": ...}.
func (c *call) passphrase() (string, *reply) {
	var sent struct {
		Passphrase string `json:"passphrase"`
	}
	if refusal := c.decode(&sent); refusal != nil {
		return "", refusal
	}
	if !goodPassphrase(sent.Passphrase) {
		return "", weakPassphrase()
	}
	return sent.Passphrase, nil
}

func goodPassphrase(passphrase string) bool { return len(passphrase) >= 10 && len(passphrase) <= 200 }

func weakPassphrase() *reply {
	return fail(http.StatusBadRequest, "a passphrase has 10 to 200 characters")
}

// randomID returns an ID for an object without one: 20 hexadecimal digits.
func randomID() string { return hex.EncodeToString(randomBytes(10)) }

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func encode64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
