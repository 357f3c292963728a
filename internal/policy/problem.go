package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is a mistake in a policy, or a warning.
type Problem struct {
	Line int    // in the file, counted from 1; 0 if it belongs to no line
	Path string // of the value, such as keys.release.use[0].when; "" for the file
	What string
	Hint string // one instruction; may be empty
}

// String returns the problem in one line.
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.What)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// maxProblems is the number of mistakes that are reported.
const maxProblems = 100

// Problems are all mistakes of a policy, in the order of lines. It is the cause of the failure of Parse.
type Problems []Problem

// Error returns the mistakes, one a line.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// sorted returns the problems in the order of lines.
func sorted(problems []Problem) []Problem {
	slices.SortStableFunc(problems, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return problems
}
