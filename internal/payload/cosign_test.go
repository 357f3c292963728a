package payload

import (
	"os"
	"reflect"
	"testing"
)

func TestCosign(t *testing.T) {
	for file, want := range map[string]*Artifact{
		"cosign-none.json": {Name: "registry.example.com/team/app"},
		"cosign-annotations.json": {Name: "registry.example.com/team/app",
			Annotations: map[string]string{"commit": "0f3c", "env": "prod", "note": `a<b & "c"`}},
		"cosign-identity.json": {Name: "registry.example.com/team/app:1.2"},
	} {
		want.Format, want.Digest = Cosign, "sha256:"+testHash
		data, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Read(data); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", file, got, err)
		}
	}
}

func TestCosignRefuses(t *testing.T) {
	refusals(t, `{"critical":{"identity":{"docker-reference":"r"},"image":{"docker-manifest-digest":"sha256:`+
		testHash+`"},"type":"cosign container image signature"},"optional":{"a":"1","b":"\u003c"}}`, same,
		[]refusal{
			{`"critical"`, `"Critical"`, `unknown name "Critical", expected "critical"`},
			{`"critical"`, ` "critical"`, "byte 1"},
			{`"}}`, `"}}` + "\n", "is not in the canonical encoding"},
			{`"}}`, `"}}{}`, "follows"},
			{`"optional"`, `"more":1,"optional"`, `unknown name "more"`},
			{`"optional"`, `"optional":null,"optional"`, `duplicate name "optional"`},
			{`"optional":{"a":"1","b":"\u003c"}`, `"optional":{}`, "optional: {} instead of null"},
			{`,"optional":{"a":"1","b":"\u003c"}`, ``, `name "optional" is missing`},
			{`"a":"1"`, `"a":1`, "optional"},
			{`"a":"1"`, `"a":null`, "optional.a"},
			{`"a":"1"`, `"c":"1"`, "optional: "},
			{`\u003c`, `<`, "optional.b"},
			{`\u003c`, `\u003C`, "optional.b"},
			{`"docker-reference"`, `"Docker-Reference"`, "critical.identity: unknown name"},
			{`"docker-reference":"r"`, ``, "critical.identity: "},
			{`"docker-reference":"r"`, `"docker-reference":"\u0072"`, "critical.identity.docker-reference"},
			{`sha256:9f`, `sha256:9F`, "critical.image.docker-manifest-digest"},
			{`sha256:9f`, `sha256:`, "critical.image.docker-manifest-digest"},
			{`cosign container`, `atomic container`, "critical.type"},
			{`"image":{`, `"image":{"docker-manifest-digest":"` + testHash + `",`, "critical.image: duplicate name"},
		})
}
