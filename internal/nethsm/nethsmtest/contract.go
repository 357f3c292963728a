package nethsmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
)

// contract checks requests and responses against the description of the API (api.yaml) and reports violations to the
// test.
type contract struct {
	t testing.TB
	*description
}

func loadContract(t testing.TB) *contract {
	t.Helper()
	d, err := describe()
	if err != nil {
		t.Fatal(err)
	}
	return &contract{t, d}
}

// commonErrors are the statuses of errors that any operation may respond with.
var commonErrors = map[int]string{
	http.StatusBadRequest:            "a malformed name or body",
	http.StatusNotAcceptable:         "the content type of the answer",
	http.StatusMethodNotAllowed:      "for any path",
	http.StatusRequestEntityTooLarge: "more than a megabyte",
	http.StatusRequestURITooLong:     "more than 2000 bytes",
	http.StatusUnsupportedMediaType:  "the request's content type",
	http.StatusTooManyRequests:       "until a second after a wrong passphrase",
	http.StatusNotImplemented:        "of this test server only",
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

// authentication checks that a request has credentials. The server checks whether they are right.
func authentication(_ context.Context, input *openapi3filter.AuthenticationInput) error {
	if _, _, sent := input.RequestValidationInput.Request.BasicAuth(); !sent {
		return errors.New("no credentials")
	}
	return nil
}

func (c *contract) request(r *http.Request, body []byte) {
	if err := c.checkRequest(r, body); err != nil {
		c.t.Errorf("the request %s %s breaks the description of NetHSM's API: %v", r.Method, r.URL, err)
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
	if err := c.checkResponse(r, body, answer); err != nil {
		c.t.Errorf("the response %d to %s %s breaks the description of NetHSM's API: %v\n%.300s", answer.status, r.Method,
			r.URL, err, answer.body)
	}
}

func (c *contract) checkResponse(r *http.Request, body []byte, answer *reply) error {
	if answer.status >= http.StatusBadRequest {
		var explained struct{ Message string }
		if json.Unmarshal(answer.body, &explained) != nil || explained.Message == "" || answer.contentType != typeJSON {
			return errors.New("an error without its explanation")
		}
	}
	input, err := c.input(r, body)
	if err != nil {
		return routeless(err, answer.status)
	}
	operation := c.operations[input.Route.Method+" "+input.Route.Path]
	if answer.status >= http.StatusBadRequest {
		if !operation.mayFail(answer.status) {
			return errors.New("an error that this operation does not have")
		}
		return nil
	}
	if operation.Gives[answer.status] == "nothing" && len(answer.body) > 0 {
		return errors.New("a body where there is none")
	}
	return openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: answer.status, Header: answer.header(),
		Body: io.NopCloser(bytes.NewReader(answer.body)), Options: input.Options,
	})
}

// checkUnknown checks the response to a request for a path that the description does not have.
func routeless(err error, status int) error {
	switch {
	case errors.Is(err, routers.ErrPathNotFound) && status == http.StatusNotFound,
		errors.Is(err, routers.ErrMethodNotAllowed) && status == http.StatusMethodNotAllowed,
		status == http.StatusRequestURITooLong, status == http.StatusNotImplemented:
		return nil
	}
	return err
}
