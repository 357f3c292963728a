package verification

import (
	"fmt"
	"io"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/gate"
)

// PrintDecisions prints a paragraph for each image.
func PrintDecisions(w io.Writer, decisions []gate.Decision) error {
	for i, d := range decisions {
		if i > 0 {
			fmt.Fprintln(w)
		}
		rows := [][]string{{"  digest", cli.OrDash(d.Digest)}, {"  policy", cli.OrDash(d.Policy)}}
		if d.Policy != "" {
			rows[1][1] += " (" + d.Level + ")"
		}
		if d.Tag != nil {
			rows = append(rows, []string{"  tag", d.Tag.String()})
		}
		if s := d.Signature; s != nil {
			rows = append(rows, []string{"  signer", s.Subject}, []string{"  issuer", s.Issuer},
				[]string{"  fingerprint", "sha256:" + s.Fingerprint},
				[]string{"  signed", cli.FormatTime(s.SigningTime)}, []string{"  expires", cli.FormatTime(s.Expiry)},
				[]string{"  timestamp", formatTimestamp(s.Timestamp)})
		}
		rows = append(rows, approvalRows(d.Approvals)...)
		for _, s := range d.Refused {
			rows = append(rows, []string{"  refused", s.Digest + ": " + s.String()})
		}
		for _, warning := range d.Warnings {
			rows = append(rows, []string{"  warning", warning})
		}
		if d.Reason != "" {
			rows = append(rows, []string{"  reason", d.Reason})
		}
		if err := cli.PrintTable(w, []string{d.Reference + ": " + d.Verdict}, rows); err != nil {
			return err
		}
	}
	return nil
}

// approvalRows returns the rows about approvals, none for nil.
func approvalRows(a *gate.Approvals) (rows [][]string) {
	if a == nil {
		return nil
	}
	for _, p := range a.Approvers {
		text := fmt.Sprintf("by %s, %s, %s", p, cli.OrDash(p.Kind), cli.FormatTime(&p.Time))
		if !p.Counts {
			text += " (does not count)"
		}
		rows = append(rows, []string{"  approved", text})
	}
	rule := a.Rule
	if a.BreakGlass {
		rule += " (for an emergency)"
	}
	request := a.Request + ", key " + a.Key
	if a.Reason != "" {
		request += ": " + a.Reason
	}
	rows = append(rows, []string{"  request", request}, []string{"  rule", cli.OrDash(rule)},
		[]string{"  log", fmt.Sprintf("%s, entry %d, %s", a.Log, a.Index, cli.FormatTime(&a.Signed))})
	if len(a.Witnesses) > 0 {
		rows = append(rows, []string{"  witnesses", strings.Join(a.Witnesses, ", ")})
	}
	return rows
}

// formatTimestamp returns the time of a timestamp and whether it was verified, or a dash for nil.
func formatTimestamp(t *gate.Timestamp) string {
	switch {
	case t == nil:
		return "-"
	case t.Verified:
		return cli.FormatTime(&t.Time) + " (verified)"
	}
	return cli.FormatTime(&t.Time) + " (not verified: the trust policy does not ask for it)"
}
