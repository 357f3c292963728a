package report

import (
	"encoding/csv"
	"encoding/hex"
	"io"
	"strconv"
	"strings"
)

// columns are the columns of a report in CSV.
var columns = []string{"what", "exception", "time", "key", "rule", "digest", "format", "media_type", "repository",
	"approved_by", "requested_by", "reason", "person", "credential", "policy", "config", "epoch", "from_index", "request",
	"retry", "payload", "signature", "certificate", "rule_digest", "index", "leaf_hash"}

// WriteCSV writes a report as CSV (RFC 4180). Its first row, whose what is "report", has the period and the checkpoint.
// Cells that a spreadsheet would take for a formula begin with an apostrophe.
func (r *Report) WriteCSV(w io.Writer) error {
	to := csv.NewWriter(w)
	to.UseCRLF = true
	_ = to.Write(columns) // an error stays until Flush
	about := map[string]string{"what": "report", "time": r.About.From + "/" + r.About.To, "index": number(r.About.Size),
		"reason": r.About.Checkpoint}
	_ = to.Write(cells(about))
	for l, err := range r.Lines() {
		if err != nil {
			return err
		}
		if err := to.Write(cells(r.row(l))); err != nil {
			return err
		}
	}
	to.Flush()
	return to.Error()
}

// row returns the cells of a line by their columns.
func (r *Report) row(l *Line) map[string]string {
	proof := l.Proof[len(l.Proof)-1]
	row := map[string]string{"what": l.What, "exception": l.Exception, "time": l.Time, "key": l.Key, "rule": l.Rule,
		"digest": l.Digest, "format": l.Format, "repository": l.Repository, "reason": l.Reason, "person": r.name(l.Person),
		"credential": l.Credential, "policy": l.Policy, "config": l.Config, "request": l.Request, "payload": l.Payload,
		"signature": l.Signature, "certificate": l.Certificate, "rule_digest": l.RuleDigest, "index": number(l.Index),
		"leaf_hash": hex.EncodeToString(proof.Hash), "requested_by": l.requester()}
	if l.Told != nil {
		row["media_type"] = l.Told.MediaType
	}
	if l.Epoch > 0 {
		row["epoch"] = number(l.Epoch)
	}
	if l.What == Void {
		row["from_index"] = number(l.From)
	}
	if l.Retry {
		row["retry"] = "true"
	}
	var approvers []string
	for _, a := range l.Approvals {
		approvers = append(approvers, r.name(a.Approver)+" at "+a.Time)
	}
	row["approved_by"] = strings.Join(approvers, "; ")
	return row
}

// name returns the name of a person, and the id if there is none.
func (r *Report) name(id string) string {
	if name := r.About.Names[id]; name != "" {
		return name
	}
	return id
}

// requester returns who made the request of a line: as the broker told it, or else the pseudonym.
func (l *Line) requester() string {
	if l.Told == nil || l.Told.Subject == "" {
		return l.Requester
	}
	return l.Told.Subject + " (" + l.Told.Issuer + ")"
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// cells returns a row in the order of the columns.
func cells(row map[string]string) []string {
	all := make([]string, len(columns))
	for i, column := range columns {
		all[i] = safe(row[column])
	}
	return all
}

// safe returns a cell that no spreadsheet takes for a formula.
func safe(cell string) string {
	if cell != "" && strings.ContainsRune("=+-@\t\r\n＝＋－＠", []rune(cell)[0]) {
		return "'" + cell
	}
	return cell
}
