package payload

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const testHash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

// envelope returns the encoding of a statement that is signed.
func envelope(statement string) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(statementType), statementType, len(statement), statement)
}

func TestDSSE(t *testing.T) {
	for file, want := range map[string]*Artifact{
		"dsse-sign-annotations.pae": {Encoding: "in-toto Statement v1", Digest: "sha256:" + testHash,
			Annotations: map[string]string{"predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": "{}",
				"subject[0].annotations.env": "prod", "subject[0].annotations.note": "a<b"}},
		"dsse-uri.pae": {Encoding: "in-toto Statement v0.1", Digest: "sha256:" + testHash,
			Name: "registry.example.com/team/app",
			Annotations: map[string]string{"predicateType": "https://example.com/test/v1",
				"predicate": `{"of":[1,2,null],"passed":true}`}},
		"dsse-in-toto-golang.pae": {Encoding: "in-toto Statement v0.1",
			Annotations: map[string]string{"predicateType": "https://example.com/test/v1",
				"predicate": `{"n":7,"note":"a\u003cb"}`, "subject[0].name": "app.tar.gz",
				"subject[0].digest.sha256": testHash, "subject[0].digest.sha512": testHash + testHash,
				"subject[1].name": "app.zip", "subject[1].digest.sha256": testHash}},
	} {
		want.Format, want.MediaType = DSSE, "application/vnd.in-toto+json"
		data, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Read(data); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", file, got, err)
		}
	}
}

// TestDSSEPredicate shows a long predicate by its digest.
func TestDSSEPredicate(t *testing.T) {
	statement := func(predicate string) []byte {
		return envelope(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + testHash +
			`"}}],"predicateType":"t","predicate":` + predicate + `}`)
	}
	for predicate, want := range map[string]string{
		`"` + strings.Repeat("a", maxPredicate-2) + `"`: `"` + strings.Repeat("a", maxPredicate-2) + `"`,
		// printf '"%s"' $(head -c 4095 /dev/zero | tr '\0' a) | sha256sum
		`"` + strings.Repeat("a", maxPredicate-1) + `"`: "sha256:" +
			"32a5413b832014b6d6619032d9a8fef17ffca11d3247090050ea89faf459c9ef",
	} {
		if a, err := Read(statement(predicate)); err != nil || a.Annotations["predicate"] != want {
			t.Errorf("%.80v, %v", a, err)
		}
	}
}

// TestDSSELarge says of a statement that is too large that it is, and not that its client is wrong.
func TestDSSELarge(t *testing.T) {
	for _, value := range []string{"[" + strings.Repeat("0,", maxElements) + "0]",
		strings.Repeat("[", 16) + strings.Repeat("]", 16)} {
		_, err := Read(envelope(strings.Replace(dsseStatement, `"c":{}`, `"c":`+value, 1)))
		if err == nil || !strings.Contains(failure.From(err).Hint, "fewer or less nested values") {
			t.Errorf("%v, with the hint %q", err, failure.From(err).Hint)
		}
	}
}

const dsseStatement = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"app","digest":{"sha256":"` +
	testHash + `"},"annotations":{"x":"1"}}],"predicateType":"https://example.com/t",` +
	`"predicate":{"a":1.5,"b":"é<","c":{}}}`

func TestDSSERefuses(t *testing.T) {
	refusals(t, string(envelope(dsseStatement)), same,
		[]refusal{
			{"DSSEv1", "DSSEv2", "version and payload type"},
			{"DSSEv1 28", "DSSEv1 028", "version and payload type"},
			{"DSSEv1 28", "DSSEv1 +28", "version and payload type"},
			{"28 application", "28  application", "version and payload type"},
			{"vnd.in-toto+json", "vnd.in-toto+jsoN", "version and payload type"},
			{"28 application/vnd.in-toto+json", "1 a", "version and payload type"},
			{"json 2", "json 02", "length of the payload"},
			{"json 2", "json 3", "length of the payload"},
			{dsseStatement, dsseStatement + "\n", "length of the payload"},
			{" {", "  {", "length of the payload"},
		})
	refusals(t, dsseStatement, func(s string) []byte { return envelope(s) }, []refusal{
		{`{"_type"`, ` {"_type"`, "byte 0"},
		{`"predicate":{"a":`, `"predicate": {"a":`, "not in the canonical encoding"},
		{`{}}}`, `{}}} `, "not in the canonical encoding"},
		{`{}}}`, `{}}}{}`, "something follows"},
		{`"_type"`, `"_Type"`, `unknown name "_Type", expected "_type"`},
		{`"_type"`, `"\u005ftype"`, `_type`},
		{`"predicateType"`, `"predicatetype"`, `unknown name "predicatetype", expected "pred`},
		{`"_type"`, `"more":1,"_type"`, `statement: unknown name "more"`},
		{`"predicateType":"https://example.com/t",`, ``, `name "predicateType" is missing`},
		{`"predicateType":"https://example.com/t"`, `"predicateType":""`, "predicateType: "},
		{`"predicateType":"https://example.com/t"`, `"predicateType":null`, "predicateType: null"},
		{`"predicate":`, `"predicate":1,"predicate":`, `duplicate name "predicate"`},
		{`Statement/v1`, `Statement/v2`, "_type: "},
		{`[{"name"`, `[{"uri":"u","name"`, `subject[0]: unknown name "uri"`},
		{`"name":"app"`, `"Name":"app"`, `subject[0]: unknown name "Name", expected`},
		{`"name":"app"`, `"name":1`, "subject[0]: name: 1"},
		{`"name":"app"`, `"name":""`, "subject[0]: name: "},
		{`"digest":{"sha256":"` + testHash + `"}`, `"digest":{}`, "subject[0]: digest: no digest"},
		{`"digest":{"sha256":"` + testHash + `"}`, `"digest":[]`, "subject[0].digest: array"},
		{`,"digest":{"sha256":"` + testHash + `"}`, ``, `subject[0]: name "digest" is missing`},
		{`"sha256":"9f`, `"sha256":"9F`, "subject[0].digest.sha256"},
		{`"sha256":"9f`, `"sha256":"`, "subject[0].digest.sha256"},
		{`"sha256":"9f`, `"SHA256":"9f`, "subject[0].digest.SHA256"},
		{`"sha256":"9f`, `"md5":"9f`, "subject[0].digest.md5"},
		{`{"sha256":"9f`, `{"sha512":"` + testHash + testHash + `","sha256":"9f`, "they are not sorted"},
		{`"annotations":{"x":"1"}`, `"annotations":{"x":1}`, "subject[0].annotations.x"},
		{`"annotations":{"x":"1"}`, `"annotations":{"x":"1","a":"2"}`, "they are not sorted"},
		{`"annotations":{"x":"1"}`, `"annotations":null`, "subject[0].annotations: null"},
		{`"x":"1"`, `"x":"\u0031"`, "subject[0].annotations.x"},
		{`"subject":[`, `"subject":[],"s":[`, `unknown name "s"`},
		{`"annotations":{"x":"1"}}`, `"annotations":{"x":"1"}},3`, "subject[1]: 3 is not an object"},
		{`"predicate":{"a":1.5,`, `"predicate":{"a":1.50,`, "predicate.a: 1.50 instead of 1.5"},
		{`"predicate":{"a":1.5,`, `"predicate":{"a":15e-1,`, "predicate.a: 15e-1 instead of 1.5"},
		{`"predicate":{"a":1.5,`, `"predicate":{"a":-0,`, "predicate.a: -0 instead of 0"},
		{`"predicate":{"a":1.5,`, `"predicate":{"a":9007199254740993,`, "predicate.a: 9007199254740993 instead"},
		{`"predicate":{"a":1.5,`, `"predicate":{"a":1e999,`, "1e999 is too large"},
		{`"predicate":{"a":1.5,`, `"predicate":{"a":1.5,"a":1.5,`, `predicate: duplicate name "a"`},
		{`"predicate":{"a":1.5,"b":"é<","c":{}}`, `"predicate":null`, "predicate: null is not an object"},
		{`"predicate":{"a":1.5,"b":"é<","c":{}}`, `"predicate":[]`, "predicate: [] is not an object"},
		{`"b":"é<"`, `"b":"\u00e9<"`, "predicate.b: "},
		{`"b":"é<"`, `"b":"\u003c","d":"<"`, "predicate."},
		{`"b":"é<"`, `"b":"\ud800"`, "predicate.b: "},
		{`"b":"é<"`, "\"b\":\"\xff\"", "predicate.b: "},
		{`"b":"é<"`, `"b":"\/"`, "predicate.b: "},
		{`"b":"é<"`, `"b":"\u0001","d":"\u001F"`, "predicate.d: "},
		{`"b":"é<",`, `"b":"é<", `, "not in the canonical encoding"},
		{`"c":{}`, `"c":` + strings.Repeat("[", 20) + strings.Repeat("]", 20), "nested deeper"},
		{`"c":{}`, `"c":[` + strings.Repeat("0,", 50000) + `0]`, "more than 50000"},
	})
	refusals(t, dsseStatement, func(s string) []byte { return envelope(s) }, []refusal{
		{`"predicateType":"https://example.com/t","predicate":{"a":1.5,"b":"é<","c":{}}`,
			`"predicate":{},"predicateType":"t"`, "names in the order"},
		{`"subject":[{"name":"app","digest":{"sha256":"` + testHash + `"},"annotations":{"x":"1"}}]`,
			`"subject":{}`, "subject: no subject"},
	})
}
