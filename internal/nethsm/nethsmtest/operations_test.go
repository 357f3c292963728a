package nethsmtest

import (
	"slices"
	"testing"
)

// TestOperations compares the table of operations with the description: the same operations, each with the same roles,
// states and content types.
func TestOperations(t *testing.T) {
	d, err := describe()
	if err != nil {
		t.Fatal(err)
	}
	described := 0
	for _, o := range all {
		name := o.method + " " + o.path
		theirs, found := d.operations[name]
		if found != (o.handle != nil) {
			t.Errorf("%s: in the description %v, implemented %v", name, found, o.handle != nil)
		}
		if found {
			described++
			compare(t, name, o, theirs)
		}
	}
	if described != len(d.operations) {
		t.Errorf("%d of %d operations of the description are in the table", described, len(d.operations))
	}
}

func compare(t *testing.T, name string, ours *operation, theirs apiOperation) {
	t.Helper()
	same := func(what string, have, want []string) {
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("%s: %s are %v, in the description %v", name, what, have, want)
		}
	}
	var roles, takes, gives, want []string
	for _, role := range ours.roles {
		roles = append(roles, string(role))
	}
	if ours.public {
		roles = append(roles, everyone)
	}
	same("roles", roles, slices.Clone(theirs.Who))
	if always := len(ours.states) == len(anyState); always != theirs.Always {
		t.Errorf("%s: in every state %v, in the description %v", name, always, theirs.Always)
	}
	for _, kind := range theirs.Takes {
		takes = append(takes, contentType(kind))
	}
	same("request content types", slices.Clone(ours.takes), takes)
	if ours.gives != "" {
		gives = []string{ours.gives}
	}
	for _, kind := range theirs.Gives {
		if kind != "nothing" {
			want = append(want, contentType(kind))
		}
	}
	same("response content types", gives, want)
}
