package payload

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
)

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestTUF(t *testing.T) {
	got, err := Read(readFile(t, "tuf-timestamp.json"))
	want := &Artifact{Format: TUF, Name: "timestamp", Expiry: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC),
		Annotations: map[string]string{"spec_version": "1.0.31", "version": "1", `meta["snapshot.json"].version`: "2",
			`meta["snapshot.json"].length`: "300", `meta["snapshot.json"].hashes.sha256`: strings.Repeat("07", 32)}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for file, some := range map[string]map[string]string{
		"tuf-targets.json": {`targets["app \"1\"\\x"].custom`: `{"a":"<x>\n","b":[1,"two",null,true]}`,
			`targets["app \"1\"\\x"].length`: "7", "delegations.roles[0].paths[0]": "team/*",
			"delegations.roles[0].terminating": "true", "version": "1"},
		"tuf-root.json": {"version": "3", "roles.root.threshold": "1", "consistent_snapshot": "true",
			"keys.25ac0f0814646397ca778b5ccad13eef592ad0bfbcde7bab55de457503c17501.keyval.public": "" +
				"-----BEGIN PUBLIC KEY-----\n" +
				"MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEH/jwo0rNyQTLIfsqkc6JM4iUWqbn\n" +
				"bVeFczhwT5RfGxJHdugF23cbXG0RmmBAtdnixCRDdefHWLq/g1y00mxK0g==\n-----END PUBLIC KEY-----\n"},
		"tuf-targets-succinct.json": {"targets": "{}", "delegations.succinct_roles.bit_length": "4"},
	} {
		got, err := Read(readFile(t, file))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		for place, value := range some {
			if got.Annotations[place] != value {
				t.Errorf("%s: %s is %q", file, place, got.Annotations[place])
			}
		}
	}
}

// tufTargetsDocument has each part that targets can have.
const tufTargetsDocument = `{"_type":"targets","delegations":{"keys":{"k1":{"keytype":"ed25519","keyval":` +
	`{"public":"00"},"scheme":"ed25519"}},"roles":[{"keyids":["k1"],"name":"team","paths":["team/*"],` +
	`"terminating":true,"threshold":1}]},` +
	`"expires":"2027-01-02T03:04:05Z","spec_version":"1.0.31","targets":{"a":{"custom":{"n":[1,"\\",null],"o":"` + "\n" +
	`"},"hashes":{"sha256":"` + testHash + `"},"length":7}},"version":1}`

func TestTUFTargetsRefuses(t *testing.T) {
	refusals(t, tufTargetsDocument, same, []refusal{
		{`{"_type"`, ` {"_type"`, "byte 0"},
		{`"version":1}`, `"version":1}` + "\n", "not in the canonical encoding"},
		{`"version":1}`, `"version":1}{}`, "follows"},
		{`"version":1}`, `"version":1,"zz":2}`, `unknown name "zz"`},
		{`"version":1}`, `"Version":1}`, `unknown name "Version"`},
		{`"version":1}`, `"version":1.0}`, "version"},
		{`"version":1}`, `"version":1e0}`, "version"},
		{`"version":1}`, `"version":-0}`, "version"},
		{`"version":1}`, `"version":0}`, "version: 0 is not from 1"},
		{`"version":1}`, `"version":9007199254740992}`, "version: 9007199254740992 is not from 1"},
		{`"version":1}`, `"version":"1"}`, "version"},
		{`"version":1}`, `"version":1,"version":1}`, `duplicate name "version"`},
		{`,"version":1}`, `}`, `name "version" is missing`},
		{`"_type":"targets"`, `"_type":"https://in-toto.io"`, "_type: "},
		{`"_type":"targets"`, `"_type":"Targets"`, "_type: "},
		{`"_type":"targets"`, `"_type":"snapshot"`, `unknown name "delegations"`},
		{`"_type":"targets",`, `"_type":"targets", `, "byte 19"},
		{`05Z`, `05.5Z`, "expires: "},
		{`05Z`, `05+00:00`, "expires: "},
		{`2027-01-02`, `2027-02-30`, "expires: "},
		{`1.0.31`, `2.0.0`, "spec_version: "},
		{`1.0.31`, `1.0.31 `, "spec_version: "},
		{`"targets":{"a"`, `"targets":null,"targe":{"a"`, "unknown name"},
		{`"\\"`, `"\n"`, "an escape that canonical JSON does not have"},
		{`"\\"`, `"\u0041"`, "an escape that canonical JSON does not have"},
		{`"\\"`, "\"\xff\"", "not UTF-8"},
		{`[1,`, `[1.5,`, `targets.a.custom.n[0]: 1.5 is not an integer`},
		{`[1,`, `[1e3,`, `targets.a.custom.n[0]: 1e3 is not an integer`},
		{`[1,`, `[-0,`, `targets.a.custom.n[0]: -0 is not an integer`},
		{`[1,`, `[9007199254740993,`, `targets.a.custom.n[0]: 9007199254740993 is not an integer`},
		{`[1,`, `[01,`, "not JSON"},
		{`"custom":{"n":`, `"custom":{"p":`, `targets.a.custom: name "p" where "o" belongs`},
		{`"custom":{"n":`, `"custom":3,"hash":{"n":`, "custom"},
		{`"hashes":{"sha256":"` + testHash + `"}`, `"hashes":{}`, "targets.a.hashes: no hash"},
		{`"hashes":{"sha256":"` + testHash + `"}`, `"hashes":null`, "targets.a.hashes: no hash"},
		{`"sha256":"9f`, `"sha256":"9F`, "targets.a.hashes.sha256"},
		{`"sha256":"9f`, `"md5":"9f`, "targets.a.hashes.md5"},
		{`"length":7`, `"length":-1`, "targets.a.length: -1"},
		{`"keyids":["k1"]`, `"keyids":["k2"]`, `delegations.roles[0].keyids[0]: no key`},
		{`"keyids":["k1"]`, `"keyids":["k1","k1"]`, `delegations.roles[0].keyids[1]: the id "k1" twice`},
		{`"keyids":["k1"]`, `"keyids":null`, `delegations.roles[0].threshold: 1 of 0`},
		{`"threshold":1`, `"threshold":2`, "delegations.roles[0].threshold: 2 of 1"},
		{`"threshold":1`, `"threshold":0`, "delegations.roles[0].threshold: 0"},
		{`"paths":["team/*"],`, ``, "delegations.roles[0]: not one of paths"},
		{`"paths"`, `"path_hash_prefixes":[],"paths"`, "delegations.roles[0]: not one of paths"},
		{`"scheme":"ed25519"`, `"scheme":"ed25519","x-own":1`, `delegations.keys.k1: unknown name "x-own"`},
		{`"public":"00"`, `"private":"","public":"00"`, `delegations.keys.k1.keyval: unknown name "private"`},
		{`"roles":[{`, `"roles":null,"role":[{`, `delegations: unknown name "roles"`},
		{`"delegations":{`, `"delegations":null,"delegation":{`, "unknown name"},
	})
}

// TestTUFCustomName checks a target whose name is that of a value that applications define.
func TestTUFCustomName(t *testing.T) {
	a, err := Read([]byte(strings.Replace(tufTargetsDocument, `"targets":{"a":`, `"targets":{"custom":`, 1)))
	if err != nil || a.Annotations["targets.custom.length"] != "7" || a.Annotations["targets.custom.custom"] == "" {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestTUFNull refuses null, which stands in no place but in what applications define.
func TestTUFNull(t *testing.T) {
	for _, place := range []string{"targets", "delegations.keys"} {
		from, to := `"targets":{"a":`, `"targets":null,"x":{"a":`
		document := strings.Replace(tufTargetsDocument, from, to, 1)
		document = document[:strings.Index(document, `,"x":`)] + `,"version":1}`
		if place == "delegations.keys" {
			document = `{"_type":"targets","delegations":{"keys":null,"roles":[]},"expires":"2027-01-02T03:04:05Z",` +
				`"spec_version":"1.0.31","targets":{},"version":1}`
		}
		if a, err := Read([]byte(document)); err == nil || !strings.Contains(err.Error(), place+": null") {
			t.Errorf("%s: %+v, %v", place, a, err)
		}
	}
}

func TestTUFRootRefuses(t *testing.T) {
	root := string(readFile(t, "tuf-root.json"))
	refusals(t, root, same, []refusal{
		{`"consistent_snapshot":true`, `"consistent_snapshot":null`, `unknown name "consistent_snapshot"`},
		{`"consistent_snapshot":true`, `"consistent_snapshot":1`, "consistent_snapshot"},
		{`"timestamp":{`, `"timestam":{`, `roles: unknown name "timestam"`},
		{`"roles":{"root"`, `"roles":{"mirrors":{},"root"`, `roles: unknown name "mirrors"`},
		{`"root":{"keyids":["2`, `"root":{"keyids":["3`, "roles.root.keyids[0]: no key"},
		{`"threshold":1},"targets"`, `"threshold":2},"targets"`, "roles.snapshot.threshold: 2 of 1"},
		{"-----BEGIN", `\n-----BEGIN`, "an escape"},
	})
}

func TestTUFSnapshotRefuses(t *testing.T) {
	refusals(t, string(readFile(t, "tuf-snapshot.json")), same, []refusal{
		{`{"version":4}`, `{"version":0}`, `meta.team.json.version: 0`},
		{`{"version":4}`, `{"length":0,"version":4}`, `meta.team.json: unknown name "length"`},
		{`{"version":4}`, `{"length":-1,"version":4}`, `meta.team.json.length: -1`},
		{`"team.json"`, `"a.json"`, "meta: "},
	})
	refusals(t, string(readFile(t, "tuf-timestamp.json")), same, []refusal{
		{`"snapshot.json"`, `"targets.json"`, "meta: "},
		{`"meta":{`, `"meta":{"a":{"version":1},`, "meta: "},
	})
}

// TestTUFCanonical reads as canonical just what go-securesystemslib encodes, for texts with all kinds of characters.
func TestTUFCanonical(t *testing.T) {
	for _, text := range []string{"", "a", "\x00\x01\n\r\t\b\f\x1f\x7f", "\"\\", "<>&", "\u2028\u2029\ufffd", "é😀", `\n`} {
		document, err := cjson.EncodeCanonical(map[string]any{"_type": "targets", "expires": "2027-01-02T03:04:05Z",
			"spec_version": "1.0.31", "version": 1, "targets": map[string]any{
				"t" + text: map[string]any{"custom": map[string]any{text: text}, "hashes": map[string]any{"sha256": testHash},
					"length": 1}}})
		if err != nil {
			t.Fatal(err)
		}
		a, err := Read(document)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		want := plainStyle.appendString(nil, text)
		want = bytes.Join([][]byte{{'{'}, want, {':'}, want, {'}'}}, nil)
		if got := a.Annotations[placeOf("targets", "t"+text)+".custom"]; got != string(want) {
			t.Errorf("%q: custom is %q", text, got)
		}
	}
}
