package nethsmtest

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// needDescription skips, on CI too, where Nitrokey's description is not at hand: it is not ours to ship.
func needDescription(t *testing.T) *openapi3.T {
	t.Helper()
	if os.Getenv(DescriptionVariable) == "" {
		t.Skipf("nothing was compared with NetHSM's OpenAPI description: set %s to the path of nethsm-api.yaml",
			DescriptionVariable)
	}
	if d := description(); d.err != nil {
		t.Fatal(d.err)
	} else if err := d.doc.Validate(context.Background(), openapi3.DisableExamplesValidation()); err != nil {
		t.Fatal(err)
	} else {
		return d.doc
	}
	return nil
}

// TestOperations compares the table of operations with the description: the same operations, each with the same states,
// roles, namespaces and content types.
func TestOperations(t *testing.T) {
	doc := needDescription(t)
	ours := map[string]*operation{}
	for _, o := range all {
		ours[o.method+" "+o.path] = o
	}
	for path, item := range doc.Paths.Map() {
		for method, theirs := range item.Operations() {
			name := method + " " + path
			o := ours[name]
			delete(ours, name)
			if o == nil {
				t.Errorf("%s is neither implemented nor in the list of what is not", name)
				continue
			}
			if o.handle != nil {
				compare(t, name, o, theirs)
			}
		}
	}
	for name := range ours {
		t.Errorf("%s is not in the description", name)
	}
}

func compare(t *testing.T, name string, ours *operation, theirs *openapi3.Operation) {
	t.Helper()
	same := func(what string, have, want []string) {
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("%s: %s are %v, in the description %v", name, what, have, want)
		}
	}
	annotation := func(key string) []string {
		var values []string
		list, _ := theirs.Extensions["x-annotation-"+key].([]any)
		for _, value := range list {
			values = append(values, value.(string))
		}
		return values
	}

	var roles, states []string
	for _, role := range ours.roles {
		roles = append(roles, string(role))
	}
	if ours.public || len(roles) == 0 {
		roles = append(roles, "Public")
	}
	same("roles", roles, annotation("role"))
	for _, state := range ours.states {
		states = append(states, string(state))
	}
	same("states", states, annotation("state"))

	callers := []string{"Root", "Namespaced"}
	if ours.rootOnly {
		callers = []string{"Root"}
	}
	if name != "PUT /config/tls/cert.pem" { // whose annotation was forgotten; its neighbours have it
		same("callers' namespaces", callers, annotation("caller-namespace"))
	}
	if targets := annotation("target-namespace"); ours.rootReadsAll != slices.Contains(targets, "CallerIsRoot") {
		t.Errorf("%s: rootReadsAll is %v, in the description %v", name, ours.rootReadsAll, targets)
	}

	var takes []string
	if theirs.RequestBody != nil {
		takes = slices.Collect(maps.Keys(theirs.RequestBody.Value.Content))
	}
	same("request content types", slices.Clone(ours.takes), takes)
	var gives, want []string
	if ours.gives != "" {
		want = []string{ours.gives}
	}
	for status, response := range theirs.Responses.Map() {
		if strings.HasPrefix(status, "2") {
			gives = slices.AppendSeq(gives, maps.Keys(response.Value.Content))
		}
	}
	same("response content types", want, gives)
}
