package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/migrate"
)

// printPlan prints a plan in parts: what Notary has, and what becomes of it.
func printPlan(w io.Writer, p *migrate.Plan) error {
	var rows [][]string
	for _, r := range p.Roles {
		rows = append(rows, []string{r.Name, fmt.Sprintf("%d of %d", r.Threshold, len(r.Keys)), quoted(r.Paths),
			fmt.Sprint(r.Version), expiry(r.Expires, r.Expired), fmt.Sprint(r.Tags), notaryKeys(r)})
	}
	fmt.Fprintf(w, "%s in Notary:\n", p.GUN)
	if err := cli.PrintTable(w, []string{"ROLE", "KEYS", "PATHS", "VERSION", "EXPIRES", "TAGS", "KEY IDS (* SIGNED)"},
		rows); err != nil {
		return err
	}
	rows = nil
	for _, m := range slices.Concat(p.Top, p.Signers) {
		rows = append(rows, []string{m.Name, m.From, cli.OrDash(strings.Join(m.Paths, ", ")), fmt.Sprint(m.Threshold),
			fmt.Sprint(m.Tags), map[bool]string{true: "exists", false: "new"}[m.Exists],
			cli.OrDash(strings.Join(m.Keys, ", "))})
	}
	fmt.Fprintf(w, "\n%s here:\n", p.Repository)
	if err := cli.PrintTable(w, []string{"ROLE", "FROM", "PATHS", "THRESHOLD", "TAGS", "STATE", "NEW KEYS"},
		rows); err != nil {
		return err
	}
	rows = nil
	for _, t := range p.Tags {
		rows = append(rows, []string{t.Tag, t.Digest.String(), strings.Join(t.From, ", "), t.Role,
			map[bool]string{true: "signed", false: "new"}[t.Signed]})
	}
	fmt.Fprintln(w)
	if err := cli.PrintTable(w, []string{"TAG", "DIGEST", "SIGNED IN NOTARY BY", "ROLE", "STATE"}, rows); err != nil {
		return err
	}
	rows = nil
	for _, l := range p.Left {
		rows = append(rows, []string{l.What, l.Reason})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		if err := cli.PrintTable(w, []string{"LEFT OUT", "REASON"}, rows); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	for _, n := range p.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	fmt.Fprintf(w, "plan: %d tags to sign, %d signed already, %d lost; "+
		"%d Notation signatures, but for those that are there\n",
		p.Todo(), len(p.Tags)-p.Todo(), p.Lost(), p.Signatures)
	return nil
}

// quoted returns the paths of a role of Notary, which nobody has checked.
func quoted(paths []string) string {
	var all []string
	for _, path := range paths {
		all = append(all, fmt.Sprintf("%.140q", path))
	}
	return cli.OrDash(strings.Join(all, ", "))
}

// expiry returns when something expires, and whether it has.
func expiry(at time.Time, expired bool) string {
	switch {
	case at.IsZero():
		return "-"
	case expired:
		return at.Format(time.DateOnly) + " (expired)"
	}
	return at.Format(time.DateOnly)
}

// notaryKeys lists the keys of a role; those that signed its metadata are marked.
func notaryKeys(r migrate.Role) string {
	var all []string
	for _, k := range r.Keys {
		text := k.ID[:min(len(k.ID), 12)]
		if slices.Contains(r.SignedBy, k.ID) {
			text += "*"
		}
		switch {
		case k.Unusable != "":
			text += " (unusable)"
		case k.Expired:
			text += " (certificate expired)"
		}
		all = append(all, text)
	}
	return cli.OrDash(strings.Join(all, ", "))
}
