package nethsmtest

import (
	"context"
	_ "embed" // the description
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"go.yaml.in/yaml/v4"
)

//go:embed api.yaml
var apiFile []byte

// api is the content of api.yaml, which begins with the meaning of each part.
type api struct {
	Texts      map[string]string
	Names      map[string]string
	Words      map[string][]any
	Shapes     map[string]map[string]any
	Operations map[string]apiOperation
}

// apiOperation is the request and the responses of one method of one path.
type apiOperation struct {
	Who    []string
	Takes  []string
	Gives  map[int]any
	Fails  []int
	Always bool
	Names  map[string]string
	Query  []string
}

// everyone is a caller without credentials.
const everyone = "everyone"

// mayFail reports whether an operation may respond with the status of an error.
func (o apiOperation) mayFail(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return len(o.Who) > 0 || slices.Contains(o.Fails, status)
	case http.StatusPreconditionFailed:
		return !o.Always
	}
	return commonErrors[status] != "" || slices.Contains(o.Fails, status)
}

// description is api.yaml in the form that the OpenAPI library needs to validate requests and responses.
type description struct {
	operations map[string]apiOperation // by method and path
	router     routers.Router
}

// describe reads api.yaml, once in a process.
var describe = sync.OnceValues(func() (*description, error) {
	var a api
	if err := yaml.Load(apiFile, &a, yaml.WithKnownFields()); err != nil {
		return nil, fmt.Errorf("api.yaml: %w", err)
	}
	doc := &openapi3.T{OpenAPI: "3.0.0", Info: &openapi3.Info{Title: "NetHSM", Version: "1"}, Paths: openapi3.NewPaths(),
		Servers: openapi3.Servers{{URL: base}}, Components: &openapi3.Components{SecuritySchemes: openapi3.SecuritySchemes{
			"basic": {Value: &openapi3.SecurityScheme{Type: "http", Scheme: "basic"}}}}}
	for name, o := range a.Operations {
		method, path, _ := strings.Cut(name, " ")
		operation, err := a.operation(path, o)
		if err != nil {
			return nil, fmt.Errorf("api.yaml: %s: %w", name, err)
		}
		doc.AddOperation(path, method, operation)
	}
	if err := doc.Validate(context.Background()); err != nil {
		return nil, fmt.Errorf("api.yaml: %w", err)
	}
	openapi3filter.RegisterBodyDecoder(typePEM, openapi3filter.PlainBodyDecoder) // a PEM file is text
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		return nil, fmt.Errorf("api.yaml: %w", err)
	}
	return &description{a.Operations, router}, nil
})

func (a *api) operation(path string, o apiOperation) (*openapi3.Operation, error) {
	operation := &openapi3.Operation{Responses: openapi3.NewResponsesWithCapacity(len(o.Gives))}
	if len(o.Who) > 0 && !slices.Contains(o.Who, everyone) {
		operation.Security = &openapi3.SecurityRequirements{{"basic": {}}}
	}
	for segment := range strings.SplitSeq(path, "/") {
		name, _, parameter := parameterOf(segment)
		if !parameter {
			continue
		}
		kind, other := o.Names[name]
		if !other {
			kind = a.Names[name]
		}
		schema, err := a.schema(kind)
		if err != nil {
			return nil, err
		}
		operation.AddParameter(openapi3.NewPathParameter(name).WithSchema(schema))
	}
	for _, name := range o.Query {
		operation.AddParameter(openapi3.NewQueryParameter(name).WithSchema(openapi3.NewStringSchema()))
	}
	if len(o.Takes) > 0 {
		content := openapi3.Content{}
		for _, kind := range o.Takes {
			schema, err := a.schema(kind)
			if err != nil {
				return nil, err
			}
			content[contentType(kind)] = openapi3.NewMediaType().WithSchema(schema)
		}
		operation.RequestBody = &openapi3.RequestBodyRef{Value: openapi3.NewRequestBody().WithRequired(true).
			WithContent(content)}
	}
	for status, kind := range o.Gives {
		response := openapi3.NewResponse().WithDescription("a success")
		if kind != "nothing" {
			schema, err := a.schema(kind)
			if err != nil {
				return nil, err
			}
			response.Content = openapi3.Content{contentType(kind): openapi3.NewMediaType().WithSchema(schema)}
		}
		operation.AddResponse(status, response)
	}
	return operation, nil
}

// contentType returns the content type of a body of a kind.
func contentType(kind any) string {
	switch kind {
	case "pem":
		return typePEM
	case "bytes":
		return typeBinary
	case "form":
		return typeForm
	}
	return typeJSON
}

// schema returns the schema of a kind of value: a list of a kind, or the name of a text, of words or of a shape.
func (a *api) schema(kind any) (*openapi3.Schema, error) {
	if list, ok := kind.([]any); ok && len(list) == 1 {
		items, err := a.schema(list[0])
		return openapi3.NewArraySchema().WithItems(items), err
	}
	name, _ := kind.(string)
	if pattern, ok := a.Texts[name]; ok {
		return openapi3.NewStringSchema().WithPattern(pattern), nil
	}
	if words, ok := a.Words[name]; ok {
		return openapi3.NewStringSchema().WithEnum(words...), nil
	}
	if shape, ok := a.Shapes[name]; ok {
		return a.object(shape)
	}
	switch name {
	case "string", "pem":
		return openapi3.NewStringSchema(), nil
	case "bytes":
		return openapi3.NewStringSchema().WithFormat("binary"), nil
	case "null or string":
		return openapi3.NewStringSchema().WithNullable(), nil
	case "time":
		return openapi3.NewDateTimeSchema(), nil
	case "number":
		return openapi3.NewIntegerSchema(), nil
	case "boolean":
		return openapi3.NewBoolSchema(), nil
	case "object":
		return openapi3.NewObjectSchema().WithAnyAdditionalProperties(), nil
	}
	var least, most int
	if n, err := fmt.Sscanf(name, "%d..%d", &least, &most); n == 2 && err == nil {
		return openapi3.NewIntegerSchema().WithMin(float64(least)).WithMax(float64(most)), nil
	}
	return nil, fmt.Errorf("there is no kind %v", kind)
}

// object returns the schema of a shape, which has no other properties than those.
func (a *api) object(shape map[string]any) (*openapi3.Schema, error) {
	closed := false
	object := openapi3.NewObjectSchema()
	object.AdditionalProperties.Has = &closed
	for name, kind := range shape {
		property, err := a.schema(kind)
		if err != nil {
			return nil, err
		}
		plain := strings.Trim(name, "()")
		if plain == name {
			object.Required = append(object.Required, name)
		}
		object.WithProperty(plain, property)
	}
	return object, nil
}
