package nethsmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// DescriptionVariable names the environment variable with the path of Nitrokey's OpenAPI description (nethsm-api.yaml).
const DescriptionVariable = "NETHSM_OPENAPI"

// contract holds requests and responses against the description and reports violations to the test. A nil one does
// nothing.
type contract struct {
	t      testing.TB
	router routers.Router
}

// loadContract returns nil when the environment names no description.
func loadContract(t testing.TB) *contract {
	t.Helper()
	if os.Getenv(DescriptionVariable) == "" {
		return nil
	}
	d := description()
	if d.err != nil {
		t.Fatalf("%s: %v", DescriptionVariable, d.err)
	}
	return &contract{t, d.router}
}

type loaded struct {
	doc    *openapi3.T
	router routers.Router
	err    error
}

// description reads the file once in a process.
var description = sync.OnceValue(func() (d loaded) {
	if d.doc, d.err = openapi3.NewLoader().LoadFromFile(os.Getenv(DescriptionVariable)); d.err != nil {
		return d
	}
	// Quirk: some examples do not fit their own schemas (a label of null, IDs).
	if d.err = d.doc.Validate(context.Background(), openapi3.DisableExamplesValidation()); d.err != nil {
		return d
	}
	adapt(d.doc)
	d.router, d.err = gorillamux.NewRouter(d.doc)
	return d
})

// adapt says in the description's own terms what it says in prose, and works round what the library does not know.
func adapt(doc *openapi3.T) {
	// Quirk: the only server is Nitrokey's public demonstration.
	doc.Servers = openapi3.Servers{{URL: base}}

	// Quirk: "additional properties will cause a Bad Request Error" stands in the introduction alone; by the rules of
	// OpenAPI they would be allowed. MetricsData names no properties and so stays open.
	for _, schema := range doc.Components.Schemas {
		closeSchema(schema)
	}

	// Quirk: POST /users/{UserID} takes "NAMESPACE~", which the pattern of its parameter refuses.
	namespace := openapi3.NewStringSchema().WithPattern(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*~$`)
	post := doc.Paths.Value("/users/{UserID}").Post
	post.Parameters = append(post.Parameters,
		&openapi3.ParameterRef{Value: openapi3.NewPathParameter("UserID").WithSchema(namespace)})

	// Quirk: the library has no decoder of PEM files. A PEM file is text.
	openapi3filter.RegisterBodyDecoder(typePEM, openapi3filter.PlainBodyDecoder)
}

func closeSchema(ref *openapi3.SchemaRef) {
	schema := ref.Value
	if schema == nil || schema.AdditionalProperties.Has != nil {
		return
	}
	if schema.Type.Is(openapi3.TypeObject) && len(schema.Properties) > 0 {
		closed := false
		schema.AdditionalProperties.Has = &closed
	}
	for _, property := range schema.Properties {
		closeSchema(property)
	}
}

// undocumented lists the statuses that the description leaves out of some or all operations, and that the real one has.
var undocumented = map[int]string{
	http.StatusBadRequest:            "a malformed name",
	http.StatusNotAcceptable:         "missing in some operations",
	http.StatusMethodNotAllowed:      "for any path",
	http.StatusRequestEntityTooLarge: "more than a megabyte",
	http.StatusRequestURITooLong:     "more than 2000 bytes",
	http.StatusUnsupportedMediaType:  "the request's content type",
	http.StatusTooManyRequests:       "until a second after a wrong passphrase",
	http.StatusNotImplemented:        "of this test server only",
}

// undocumentedHere lists those of single operations.
var undocumentedHere = map[string]int{
	"PUT /keys/{KeyID}/cert":  http.StatusNotFound, // no such key
	"PUT /keys/{KeyID}/label": http.StatusNotFound, // no such key
}

func (c *contract) input(r *http.Request, body []byte) (*openapi3filter.RequestValidationInput, error) {
	r = r.Clone(context.Background())
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	route, params, err := c.router.FindRoute(r)
	if err != nil {
		return nil, err
	}
	return &openapi3filter.RequestValidationInput{
		Request: r, PathParams: params, Route: route,
		Options: &openapi3filter.Options{
			AuthenticationFunc:                authentication,
			RejectWhenRequestBodyNotSpecified: true,
			SkipSettingDefaults:               true,
			IncludeResponseStatus:             true,
		},
	}, nil
}

// authentication wants a request to have the credentials that the operation needs; whether they are right is the
// server's matter.
func authentication(_ context.Context, input *openapi3filter.AuthenticationInput) error {
	// Quirk: /health/diagnose lists its authentication without the alternative of none, which its roles and its text have.
	roles := fmt.Sprint(input.RequestValidationInput.Route.Operation.Extensions["x-annotation-role"])
	if _, _, sent := input.RequestValidationInput.Request.BasicAuth(); !sent && !strings.Contains(roles, "Public") {
		return errors.New("no credentials")
	}
	return nil
}

func (c *contract) request(r *http.Request, body []byte) {
	if c == nil {
		return
	}
	if err := c.checkRequest(r, body); err != nil {
		c.t.Errorf("the request %s %s breaks NetHSM's description: %v", r.Method, r.URL, err)
	}
}

func (c *contract) checkRequest(r *http.Request, body []byte) error {
	input, err := c.input(r, body)
	if err != nil {
		return err
	}
	return openapi3filter.ValidateRequest(r.Context(), input)
}

func (c *contract) response(r *http.Request, body []byte, answer *reply) {
	if c == nil {
		return
	}
	if err := c.checkResponse(r, body, answer); err != nil {
		c.t.Errorf("the response %d to %s %s breaks NetHSM's description: %v\n%.300s", answer.status, r.Method, r.URL, err,
			answer.body)
	}
}

func (c *contract) checkResponse(r *http.Request, body []byte, answer *reply) error {
	if answer.status >= http.StatusBadRequest {
		// all errors are JSON with an explanation, as the introduction says and the operations mostly don't
		var explained struct{ Message string }
		if json.Unmarshal(answer.body, &explained) != nil || explained.Message == "" || answer.contentType != typeJSON {
			return errors.New("an error without its explanation")
		}
	}
	input, err := c.input(r, body)
	if err != nil {
		return routeless(err, answer.status)
	}
	documented := input.Route.Operation.Responses.Status(answer.status)
	if documented == nil {
		_, everywhere := undocumented[answer.status]
		if everywhere || undocumentedHere[r.Method+" "+input.Route.Path] == answer.status {
			return nil
		}
	} else if len(documented.Value.Content) == 0 && len(answer.body) > 0 && answer.status < http.StatusBadRequest {
		return errors.New("a body where there is none")
	}
	return openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: answer.status, Header: answer.header(),
		Body: io.NopCloser(bytes.NewReader(answer.body)), Options: input.Options,
	})
}

// routeless judges the response to a request that the description does not know.
func routeless(err error, status int) error {
	switch {
	case errors.Is(err, routers.ErrPathNotFound) && status == http.StatusNotFound,
		errors.Is(err, routers.ErrMethodNotAllowed) && status == http.StatusMethodNotAllowed,
		status == http.StatusRequestURITooLong:
		return nil
	}
	return err
}
