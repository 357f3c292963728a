package report

import (
	"bufio"
	"io"

	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// A report in JSON is one object. Its text has a line for what it says of itself and one for each of its lines, each in
// canonical form (RFC 8785), so that readers need no more memory for a longer report.
const (
	jsonFirst = `{"about":`
	jsonLines = `,"lines":[`
	jsonLast  = `]}`
)

// WriteJSON writes a report as JSON, each line with the inclusion proofs of its entries.
func (r *Report) WriteJSON(w io.Writer) error {
	to := bufio.NewWriter(w)
	about, err := translog.Canonical(r.About)
	if err != nil {
		return err
	}
	_, _ = to.WriteString(jsonFirst + string(about) + jsonLines) // an error stays until Flush
	first := true
	for line, err := range r.Lines() {
		if err != nil {
			return err
		}
		if err := r.prove(line); err != nil {
			return err
		}
		data, err := translog.Canonical(line)
		if err != nil {
			return err
		}
		_ = to.WriteByte('\n')
		if !first { // at the beginning, so that a line of the text does not depend on what follows
			_ = to.WriteByte(',')
		}
		first = false
		_, _ = to.Write(data)
	}
	_, _ = to.WriteString("\n" + jsonLast + "\n")
	return to.Flush()
}
