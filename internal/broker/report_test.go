package broker

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/report"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// reportOf returns the report of a period of the fixture's log, in JSON, and its lines.
func (f *fixture) reportOf(from, to time.Time) (data []byte, lines []*report.Line) {
	f.t.Helper()
	f.publishAll()
	made, err := report.New(f.t.Context(), f.Log().File, f.verifiers(), report.Options{From: from, To: to})
	if err != nil {
		f.t.Fatal(err)
	}
	defer made.Close()
	for line, err := range made.Lines() {
		if err != nil {
			f.t.Fatal(err)
		}
		lines = append(lines, line)
	}
	var out bytes.Buffer
	if err := made.WriteJSON(&out); err != nil {
		f.t.Fatal(err)
	}
	return out.Bytes(), lines
}

func (f *fixture) verifiers() []*translog.Verifier {
	f.t.Helper()
	v, err := translog.NewVerifier("broker.example.com/log", f.log.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	return []*translog.Verifier{v}
}

// TestReport makes a report of a broker's log: who agreed, and what was an exception.
func TestReport(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.policy = strings.Replace(f.policy, "    block:", "    - {name: emergency, when: caller.subject == \"pipeline\", "+
		"break-glass: true, approvals: [{group: security, quorum: 1}]}\n    block:", 1)
	f.start()
	began := f.clock.now()
	f.later(time.Hour)
	from := f.clock.now()
	r := f.waits("pipeline", 1)
	f.approves(r.ID, "alice", "bob", "dave")
	if _, err := f.decide("bob", r.ID, approval.Withdraw); err != nil {
		t.Fatal(err)
	}
	f.approves(r.ID, "carol", "bob")
	f.signs("pipeline", 1)
	n := newTarget(2)
	n.Rule, n.Reason = "emergency", "=production is down"
	urgent, err := f.Create(t.Context(), caller("pipeline"), n)
	if err != nil {
		t.Fatal(err)
	}
	f.approves(urgent.ID, "dave")
	f.signs("pipeline", 2)
	f.signs("ci", 3)
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeBlock, Key: "release"}); err != nil {
		t.Fatal(err)
	}
	change, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangePolicy,
		Policy: []byte(strings.Replace(f.policy, "timeout: 72h", "timeout: 71h", 1))})
	if err != nil {
		t.Fatal(err)
	}
	f.approves(change.ID, "alice", "bob")
	if now, err := f.Wait(t.Context(), caller("admin"), change.ID, time.Minute); err != nil || now.State !=
		brokerapi.Signed {
		t.Fatalf("%+v, %v", now, err)
	}
	data, lines := f.reportOf(from, f.clock.now().Add(time.Second))
	var found []string
	for _, l := range lines {
		var people []string
		for _, a := range l.Approvals {
			people = append(people, f.inForce.Load().names[a.Approver])
		}
		slices.Sort(people)
		found = append(found, strings.TrimSpace(l.What+" "+l.Exception+" "+l.Rule+" "+strings.Join(people, ",")))
	}
	want := []string{"signature break-glass emergency dave", "signature no-approvals nightly", "block block anyone",
		"policy policy managers alice,bob", "signature  release alice,bob,carol,dave"}
	if !slices.Equal(found, want) {
		t.Errorf("%q", found)
	}
	if lines[0].Reason != n.Reason || lines[4].Digest != newTarget(1).Artifact.Digest || lines[4].Request != r.ID {
		t.Errorf("%+v %+v", lines[0], lines[4])
	}
	if strings.Contains(string(data), "alice") {
		t.Error("the report has a name that the log does not have")
	}
	f.checkReport(data, lines)
	_, before := f.reportOf(began.Add(-time.Hour), from)
	if len(before) != 6 || before[0].What != report.Opened || before[1].What != report.Enrol {
		t.Errorf("%+v", before)
	}
}

// checkReport checks that a report verifies, and that none does that was changed.
func (f *fixture) checkReport(data []byte, lines []*report.Line) {
	f.t.Helper()
	verifiers := f.verifiers()
	v, err := report.Verify(bytes.NewReader(data), verifiers)
	if err != nil || v.About.Signatures != 3 || v.About.Exceptions != 4 || v.Complete {
		f.t.Fatalf("%+v, %v", v, err)
	}
	v, err = report.VerifyWith(f.t.Context(), bytes.NewReader(data), f.Log().File, verifiers)
	if err != nil || !v.Complete {
		f.t.Fatalf("%+v, %v", v, err)
	}
	text := strings.Split(string(data), "\n")
	changed := func(name string, change func([]string) []string) {
		text := strings.Join(change(slices.Clone(text)), "\n")
		if text == string(data) {
			f.t.Errorf("%s: nothing was changed", name)
		}
		if _, err := report.Verify(strings.NewReader(text), verifiers); err == nil || failure.From(err).Kind !=
			failure.Conflict {
			f.t.Errorf("%s: %v", name, err)
		}
	}
	edit := func(n int, was, is string) func([]string) []string {
		return func(text []string) []string {
			text[n] = strings.Replace(text[n], was, is, 1)
			return text
		}
	}
	last := lines[4]
	changed("a digest", edit(5, last.Digest, newTarget(9).Artifact.Digest))
	changed("an approver", edit(5, `"approver":"`+last.Approvals[0].Approver, `"approver":"`+last.Approvals[1].Approver))
	changed("a time", edit(5, `"time":"`+last.Time, `"time":"2026-11-27T13:00:00.001Z`))
	changed("a reason", edit(1, `"reason":"=production is down"`, `"reason":"=production is up"`))
	changed("an exception", edit(2, `"exception":"no-approvals",`, ""))
	changed("a member twice", edit(5, `"what":`, `"what":"lost","what":`))
	changed("white space", edit(5, `"what":`, `"what": `))
	changed("another order", func(text []string) []string {
		text[2], text[3] = text[3], text[2]
		return text
	})
	changed("a line twice", func(text []string) []string { return slices.Insert(text, 5, text[4]) })
	changed("a line missing", func(text []string) []string { return slices.Delete(text, 4, 5) })
	changed("the end", func(text []string) []string { return text[:5] })
	changed("the period", edit(0, `"from":"2026-11-27T13:00:00.000Z"`, `"from":"2026-11-27T14:00:00.000Z"`))
	for _, proof := range last.Proof {
		entry := base64.StdEncoding.EncodeToString(proof.Entry)
		changed("an entry", edit(5, `{"entry":"`+entry, `{"entry":"`+strings.Replace(entry, "eyJ", "eyB", 1)))
	}
	// Without the log, nobody sees that a line is missing if the counts fit. With the log, one does.
	short := slices.Delete(slices.Clone(text), 4, 5)
	short[0] = strings.Replace(short[0], `"exceptions":4`, `"exceptions":3`, 1)
	missing := strings.Join(short, "\n")
	if _, err := report.Verify(strings.NewReader(missing), verifiers); err != nil {
		f.t.Error(err)
	}
	_, err = report.VerifyWith(f.t.Context(), strings.NewReader(missing), f.Log().File, verifiers)
	failsWith(f.t, err, failure.Conflict, "the log makes another line here")
	other, err := translog.NewVerifier("broker.example.com/log", generate(f.t).Public())
	if err != nil {
		f.t.Fatal(err)
	}
	_, err = report.Verify(bytes.NewReader(data), []*translog.Verifier{other})
	failsWith(f.t, err, failure.Denied, "cannot verify the log's checkpoint")
}
