package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const examplePolicy = `version: 1
groups: {security: [dave, erin]}
keys:
  release:
    key: nethsm:release
    formats: [notation]
    use:
    - {name: ci, when: 'caller.issuer == "unix"', limit: 5 per hour}
    - {name: people, approvals: [{group: security, quorum: 2}], timeout: 72h}
    modify: [{approvals: [{group: security, quorum: 1}]}]
`

// policyRun runs a policy command in a folder with files, and returns its standard output and standard error.
func policyRun(t *testing.T, files map[string]string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	folder := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, arg := range args {
		if strings.Contains(arg, ".") {
			args[i] = filepath.Join(folder, arg)
		}
	}
	var out, errors bytes.Buffer
	c := command()
	c.SetArgs(append([]string{"policy"}, args...))
	c.SetOut(&out)
	c.SetErr(&errors)
	err = c.Execute()
	return strings.ReplaceAll(out.String(), folder+"/", ""), strings.ReplaceAll(errors.String(), folder+"/", ""), err
}

func TestPolicyCheck(t *testing.T) {
	t.Parallel()
	out, warnings, err := policyRun(t, map[string]string{"p.yaml": examplePolicy}, "check", "p.yaml")
	if err != nil || !strings.HasPrefix(out, "p.yaml: valid; keys: 1; sha256:") || warnings != "" {
		t.Error(out, warnings, err)
	}
	out, warnings, err = policyRun(t, map[string]string{"p.yaml": strings.Replace(examplePolicy,
		`, when: 'caller.issuer == "unix"'`, "", 1)}, "check", "p.yaml")
	if err != nil || !strings.Contains(warnings, "warning: p.yaml: line 8: keys.release.use[0]: any caller may sign") {
		t.Error(out, warnings, err)
	}
	_, _, err = policyRun(t, map[string]string{"p.yaml": strings.Replace(strings.Replace(examplePolicy, "quorum: 2",
		"quorum: 3", 1), "per hour", "per week", 1)}, "check", "p.yaml")
	if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), "2 mistakes:\nline 8: ") ||
		!strings.Contains(err.Error(), "\nline 9: ") {
		t.Error(err)
	}
	if _, _, err = policyRun(t, nil, "check", "p.yaml"); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
}

func TestPolicyTest(t *testing.T) {
	t.Parallel()
	const request = `{"key": "release", "caller": {"issuer": "mtls"}, "artifact": {"format": "notation"}}`
	files := map[string]string{
		"p.yaml": examplePolicy, "r.json": request, "other.json": strings.Replace(request, "release", "other", 1),
		"wrong.json": `{"keys": 1}`,
	}
	out, _, err := policyRun(t, files, "test", "p.yaml", "--request", "r.json")
	if want := "RULE    APPLIES  DEMANDS OR REASON\npeople  yes      approvals by 2 of security; timeout 72h\n" +
		"ci      no       the condition is false\n"; err != nil || out != want {
		t.Error(out, err)
	}
	out, _, err = policyRun(t, files, "test", "p.yaml", "--request", "r.json", "--json")
	var got outcome
	if err != nil || json.Unmarshal([]byte(out), &got) != nil || len(got.Rules) != 1 || got.Rules[0].Rule != "people" ||
		len(got.Rules[0].Digest) != 64 || len(got.Refused) != 1 || got.Refused[0].Reason != "the condition is false" {
		t.Error(out, err)
	}
	if out, _, err = policyRun(t, files, "test", "p.yaml", "--request", "other.json"); !failure.Is(err, failure.Denied) ||
		!strings.Contains(out, `the policy has no key "other"`) {
		t.Error(out, err)
	}
	if _, _, err = policyRun(t, files, "test", "p.yaml", "--request", "wrong.json"); !failure.Is(err, failure.Invalid) {
		t.Error(err)
	}
	if _, _, err = policyRun(t, files, "test", "p.yaml"); err == nil || !strings.Contains(err.Error(),
		"--request is required") {
		t.Error(err)
	}
}

func TestPolicyDiff(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"old.yaml": examplePolicy, "new.yaml": strings.Replace(examplePolicy, "5 per hour", "9 per hour", 1),
		"frozen.yaml": examplePolicy[:strings.Index(examplePolicy, "    modify:")],
	}
	out, _, err := policyRun(t, files, "diff", "old.yaml", "old.yaml")
	if err != nil || out != "the policies have the same effect\n" {
		t.Error(out, err)
	}
	out, _, err = policyRun(t, files, "diff", "old.yaml", "new.yaml")
	if want := `WHERE                      CHANGE
keys.release.use.ci.limit  5 per hour becomes 9 per hour

MODIFY RULES OF  ANY OF    DEMANDS
release          modify-1  always applies; approvals by 1 of security
`; err != nil || out != want {
		t.Error(out, err)
	}
	out, _, err = policyRun(t, files, "diff", "frozen.yaml", "new.yaml")
	if err != nil || !strings.Contains(out, "nothing allows the change: there is no modify rule") {
		t.Error(out, err)
	}
}
