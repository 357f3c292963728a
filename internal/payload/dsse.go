package payload

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"sync"
)

// statementType is the only payload type that is signed: an in-toto statement.
const statementType = "application/vnd.in-toto+json"

// maxPredicate is the length of the longest predicate that an artifact shows, in bytes.
const maxPredicate = 4 << 10

// The versions of a statement.
var statementVersions = map[string]string{
	"https://in-toto.io/Statement/v0.1": "in-toto Statement v0.1",
	"https://in-toto.io/Statement/v1":   "in-toto Statement v1",
}

// The orders in which encoders write the names of a statement and of a subject: those of the protocol buffer, of
// in-toto's older Go library, and sorted.
var (
	statementOrders = [][]string{
		{"_type", "subject", "predicateType", "predicate"},
		{"_type", "predicateType", "subject", "predicate"},
		{"_type", "predicate", "predicateType", "subject"},
	}
	subjectOrders = [][]string{
		{"name", "digest"}, {"digest"}, {"name", "digest", "annotations"}, {"digest", "annotations"},
		{"digest", "name"}, {"annotations", "digest", "name"}, {"annotations", "digest"},
	}
)

var dsseVersion = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^DSSEv[0-9]{1,9} `)
})

// readDSSE reads the pre-authentication encoding (PAE) of a Dead Simple Signing Envelope with an in-toto statement, as
// cosign and other encoders write it: without white space, with the escapes of encoding/json or with those that JSON
// demands, and with numbers as RFC 8785 writes them. Only a space after each comma is allowed, since some builds of
// cosign write it.
//
// The artifact's encoding is the version of the statement, and its media type is the payload type. Its name and digest
// are those of the subject if there is one; its annotations are predicateType, what else the subjects say, by place,
// such as `subject[0].digest.sha512`, and predicate: the JSON text itself, or, if it is longer than maxPredicate, its
// SHA-256 as "sha256:HEX".
func readDSSE(data []byte) (*Artifact, error) {
	if !dsseVersion().Match(data) {
		return nil, errOther
	}
	head := fmt.Sprintf("DSSEv1 %d %s ", len(statementType), statementType)
	rest, found := bytes.CutPrefix(data, []byte(head))
	if !found {
		return nil, fmt.Errorf("version and payload type: %.60q instead of %q", data, head)
	}
	length, body, found := bytes.Cut(rest, []byte(" "))
	if !found || string(length) != strconv.Itoa(len(body)) {
		return nil, fmt.Errorf("length of the payload: %.20q instead of %d", length, len(body))
	}
	a, err := readStatement(body)
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	return a, nil
}

func readStatement(body []byte) (*Artifact, error) {
	v, err := parseJSON(body)
	if err != nil {
		return nil, err
	}
	if err := v.checkNames("", statementOrders...); err != nil {
		return nil, err
	}
	style, err := v.checkEncoding(body, plainStyle, spacedStyle, htmlStyle)
	if err != nil {
		return nil, err
	}
	version, _ := v.members["_type"].string()
	if statementVersions[version] == "" {
		return nil, fmt.Errorf("_type: %.60s is not a version of the in-toto statement", printable(v.members["_type"].text))
	}
	predicateType, _ := v.members["predicateType"].string()
	if predicateType == "" {
		return nil, fmt.Errorf("predicateType: %.60s is not a type", printable(v.members["predicateType"].text))
	}
	predicate, err := v.members["predicate"].encode(nil, style)
	if err != nil {
		return nil, err
	}
	if predicate[0] != '{' && predicate[0] != '"' { // cosign has a string for SPDX in the format tag-value
		return nil, fmt.Errorf("predicate: %.60s is not an object or a string", printable(string(predicate)))
	}
	a := &Artifact{Format: DSSE, Encoding: statementVersions[version], MediaType: statementType,
		Annotations: map[string]string{"predicateType": predicateType, "predicate": string(predicate)}}
	if len(predicate) > maxPredicate {
		sum := sha256.Sum256(predicate)
		a.Annotations["predicate"] = "sha256:" + hex.EncodeToString(sum[:])
	}
	return a, a.addSubjects(v.members["subject"])
}

// addSubjects adds the subjects of a statement.
func (a *Artifact) addSubjects(subjects *jsonValue) error {
	if len(subjects.items) == 0 {
		return errors.New("subject: no subject")
	}
	for i, subject := range subjects.items {
		path := fmt.Sprintf("subject[%d]", i)
		if err := checkSubject(path, subject); err != nil {
			return err
		}
		subject.flatten(path, a.Annotations)
		if a.Annotations[path+".annotations"] == "{}" { // as cosign writes none
			delete(a.Annotations, path+".annotations")
		}
	}
	if len(subjects.items) > 1 {
		return nil
	}
	a.Name = a.take("subject[0].name")
	for _, algorithm := range []string{"sha256", "sha384", "sha512"} {
		if digest := a.take("subject[0].digest." + algorithm); digest != "" {
			a.Digest = algorithm + ":" + digest
			break
		}
	}
	return nil
}

// take removes an annotation and returns its value, or "".
func (a *Artifact) take(name string) string {
	value := a.Annotations[name]
	delete(a.Annotations, name)
	return value
}

// checkSubject fails unless a value is a subject with at least one digest.
func checkSubject(path string, subject *jsonValue) error {
	if err := subject.checkNames(path, subjectOrders...); err != nil {
		return err
	}
	if name := subject.members["name"]; name != nil {
		if text, ok := name.string(); !ok || text == "" {
			return at(path, "name: %.60s is not a name", printable(name.text))
		}
	}
	digests := subject.members["digest"]
	if err := digests.checkSorted(path + ".digest"); err != nil {
		return err
	}
	if len(digests.names) == 0 {
		return at(path, "digest: no digest")
	}
	for _, algorithm := range digests.names {
		hexadecimal, _ := digests.members[algorithm].string()
		if digest := algorithm + ":" + hexadecimal; !isDigest(digest) {
			return notDigest(join(path+".digest", algorithm), digest)
		}
	}
	annotations := subject.members["annotations"]
	if annotations == nil {
		return nil
	}
	if err := annotations.checkSorted(path + ".annotations"); err != nil {
		return err
	}
	for _, name := range annotations.names {
		if _, ok := annotations.members[name].string(); !ok {
			return at(join(path+".annotations", name), "%.60s is not a string",
				printable(annotations.members[name].text))
		}
	}
	return nil
}
