package nethsmtest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

const (
	adminPassphrase    = "admin passphrase"
	operatorPassphrase = "operator passphrase"
)

// caller is a plain HTTP client with the credentials of one user; the public has none.
type caller struct {
	t                *testing.T
	server           *Server
	user, passphrase string
}

func (c caller) as(user, passphrase string) caller {
	c.user, c.passphrase = user, passphrase
	return c
}

type response struct {
	*http.Response
	body []byte
}

// do sends a request. A body that is a string or bytes goes as it is, with the content type, any other value as JSON.
func (c caller) do(method, path string, body any, header ...string) (*response, error) {
	c.t.Helper()
	var reader io.Reader
	contentType := ""
	switch body := body.(type) {
	case nil:
	case string:
		reader, contentType = strings.NewReader(body), typeJSON
	case []byte:
		reader, contentType = bytes.NewReader(body), typeBinary
	default:
		encoded, err := json.Marshal(body)
		if err != nil {
			c.t.Fatal(err)
		}
		reader, contentType = bytes.NewReader(encoded), typeJSON
	}
	r, err := http.NewRequest(method, c.server.URL+path, reader)
	if err != nil {
		c.t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	if c.user != "" {
		r.SetBasicAuth(c.user, c.passphrase)
	}
	answer, err := c.server.Client().Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	all, err := io.ReadAll(answer.Body)
	return &response{answer, all}, err
}

// want sends a request and fails the test unless the status is this one. It returns the body.
func (c caller) want(status int, method, path string, body any, header ...string) []byte {
	c.t.Helper()
	r, err := c.do(method, path, body, header...)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	if r.StatusCode != status {
		c.t.Fatalf("%s %s: status %d, want %d: %s", method, path, r.StatusCode, status, r.body)
	}
	return r.body
}

// field is want with 200 or 201, of which it returns one property of the JSON.
func (c caller) field(name, method, path string, body any) string {
	c.t.Helper()
	r, err := c.do(method, path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(r.body, &object); err != nil || r.StatusCode > http.StatusCreated {
		c.t.Fatalf("%s %s: status %d, %s", method, path, r.StatusCode, r.body)
	}
	value, _ := object[name].(string)
	return value
}

// wrong is want for a request that breaks the description on purpose.
func (c caller) wrong(status int, method, path string, body any, header ...string) {
	c.t.Helper()
	c.server.AllowInvalid(func() { c.want(status, method, path, body, header...) })
}

type object = map[string]any

// provisioned starts a server and returns callers for its administrator, its operator and the public.
func provisioned(t *testing.T, options ...Option) (s *Server, admin, operator, public caller) {
	t.Helper()
	s = Start(t, append([]Option{RateLimit(0)}, options...)...)
	s.Provision(adminPassphrase, operatorPassphrase)
	public = caller{t: t, server: s}
	return s, public.as(AdminUser, adminPassphrase), public.as(OperatorUser, operatorPassphrase), public
}
