// Package brokerapitest holds servers of the broker's API to their descriptions in internal/brokerapi: openapi.yaml of
// the agent, and openapi-broker.yaml of the broker of a team.
package brokerapitest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// Description is the description of a server.
type Description struct {
	doc    *openapi3.T
	router routers.Router
}

// Load reads and checks the description of the agent.
func Load(t testing.TB) *Description {
	t.Helper()
	return load(t, "openapi.yaml")
}

// LoadTeam reads and checks the description of the broker of a team.
func LoadTeam(t testing.TB) *Description {
	t.Helper()
	return load(t, "openapi-broker.yaml")
}

func load(t testing.TB, name string) *Description {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	loader := openapi3.NewLoader()
	loader.IsExternalRefsAllowed = true // openapi-broker.yaml refers to openapi.yaml
	d := &Description{}
	var err error
	if d.doc, err = loader.LoadFromFile(filepath.Join(filepath.Dir(filepath.Dir(here)), name)); err == nil {
		err = d.doc.Validate(context.Background())
	}
	if err == nil {
		d.router, err = gorillamux.NewRouter(d.doc)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}

// Operations returns the statuses of each operation, by method and path.
func (d *Description) Operations() map[string][]string {
	all := map[string][]string{}
	for name, item := range d.doc.Paths.Map() {
		for method, described := range item.Operations() {
			for status := range described.Responses.Map() {
				operation := method + " " + name
				all[operation] = append(all[operation], status)
			}
		}
	}
	return all
}

// Answer is what a server answered.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Check returns the operation of a request, by method and path, and "" if there is none. It fails unless the
// description has the answer.
func (d *Description) Check(r *http.Request, a Answer) (operation string, err error) {
	r = r.Clone(context.Background())
	r.Body = http.NoBody
	// A parameter of a path has no slash in OpenAPI, and the file of a log has.
	if file, ok := strings.CutPrefix(r.URL.EscapedPath(), brokerapi.LogPath+"/"); ok &&
		path.Clean(r.URL.Path) == r.URL.Path {
		r.URL.Path, r.URL.RawPath = brokerapi.LogPath+"/"+file, brokerapi.LogPath+"/"+url.PathEscape(file)
	}
	route, parameters, err := d.router.FindRoute(r)
	if err != nil {
		return "", d.checkUnknown(err, r, a)
	}
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: parameters, Route: route},
		Status:                 a.Status, Header: a.Header, Body: io.NopCloser(bytes.NewReader(a.Body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	return route.Method + " " + route.Path, openapi3filter.ValidateResponse(context.Background(), input)
}

// checkUnknown checks the answer to a request that no operation matches.
func (d *Description) checkUnknown(cause error, r *http.Request, a Answer) error {
	switch {
	case errors.Is(cause, routers.ErrPathNotFound) && a.Status == http.StatusNotFound,
		path.Clean(r.URL.EscapedPath()) != r.URL.EscapedPath() && a.Status == http.StatusNotFound,
		r.ProtoMajor != 1 || r.ProtoMinor != 1:
	case errors.Is(cause, routers.ErrMethodNotAllowed) && a.Status == http.StatusMethodNotAllowed:
		if a.Header.Get("Allow") == "" {
			return errors.New("no header Allow")
		}
	default:
		return fmt.Errorf("%s %s, which is not described, was answered with %d: %w", r.Method, r.URL.EscapedPath(), a.Status,
			cause)
	}
	if r.Method == http.MethodHead {
		return nil
	}
	if got := a.Header.Get("Content-Type"); got != brokerapi.ProblemType {
		return fmt.Errorf("the type of the answer is %q", got)
	}
	var problem brokerapi.Problem
	decoder := json.NewDecoder(bytes.NewReader(a.Body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&problem); err != nil {
		return err
	}
	if problem.Status != a.Status || problem.Detail == "" {
		return fmt.Errorf("the answer is no problem of status %d: %s", a.Status, a.Body)
	}
	return nil
}
