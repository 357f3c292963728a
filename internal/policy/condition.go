package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// Bounds of a condition. A unit of cost is about one comparison, or ten bytes of a text.
const (
	maxCondition = 4096 // bytes
	maxDepth     = 32   // nesting
	maxCost      = 100_000
	maxProgram   = 1000 // instructions of a regular expression
)

// variable is what a condition can read.
type variable struct {
	name string
	kind *cel.Type
	use  bool // only in rules of use, where there is an artifact
}

var variables = []variable{
	{"caller.issuer", cel.StringType, false},
	{"caller.subject", cel.StringType, false},
	{"caller.claims", cel.MapType(cel.StringType, cel.DynType), false},
	{"key", cel.StringType, false},
	{"now", cel.TimestampType, false},
	{"artifact.format", cel.StringType, true},
	{"artifact.media_type", cel.StringType, true},
	{"artifact.digest", cel.StringType, true},
	{"artifact.size", cel.IntType, true},
	{"artifact.annotations", cel.MapType(cel.StringType, cel.StringType), true},
	{"artifact.repository", cel.StringType, true},
	{"artifact.name", cel.StringType, true},
	{"artifact.expiry", cel.IntType, true},
}

// environments returns the CEL environments, of rules of use and of others.
var environments = sync.OnceValues(func() (both [2]*cel.Env, err error) {
	for i, use := range []bool{true, false} {
		if both[i], err = environment(use); err != nil {
			return both, err
		}
	}
	return both, nil
})

// environment returns a CEL environment: the standard library without what depends on the machine (time zones, which
// come from its files) or has no bound that is worth it (the macros map, filter and exists_one), and the variables.
func environment(use bool) (*cel.Env, error) {
	var zones []*env.Function
	for function, overload := range map[string]string{
		overloads.TimeGetFullYear:     overloads.TimestampToYearWithTz,
		overloads.TimeGetMonth:        overloads.TimestampToMonthWithTz,
		overloads.TimeGetDayOfYear:    overloads.TimestampToDayOfYearWithTz,
		overloads.TimeGetDate:         overloads.TimestampToDayOfMonthOneBasedWithTz,
		overloads.TimeGetDayOfMonth:   overloads.TimestampToDayOfMonthZeroBasedWithTz,
		overloads.TimeGetDayOfWeek:    overloads.TimestampToDayOfWeekWithTz,
		overloads.TimeGetHours:        overloads.TimestampToHoursWithTz,
		overloads.TimeGetMinutes:      overloads.TimestampToMinutesWithTz,
		overloads.TimeGetSeconds:      overloads.TimestampToSecondsWithTz,
		overloads.TimeGetMilliseconds: overloads.TimestampToMillisecondsWithTz,
	} {
		zones = append(zones, &env.Function{Name: function, Overloads: []*env.Overload{{ID: overload}}})
	}
	options := []cel.EnvOption{
		cel.StdLib(cel.StdLibSubset(&env.LibrarySubset{
			IncludeMacros: []string{operators.Has, operators.All, operators.Exists}, ExcludeFunctions: zones,
		})),
		cel.CrossTypeNumericComparisons(true), cel.DefaultUTCTimeZone(true),
		cel.ParserRecursionLimit(maxDepth), cel.ParserErrorRecoveryLimit(1), cel.ParserExpressionSizeLimit(maxCondition),
		cel.RegexProgramSizeLimit(maxProgram),
	}
	for _, v := range variables {
		if use || !v.use {
			options = append(options, cel.Variable(v.name, v.kind))
		}
	}
	return cel.NewCustomEnv(options...)
}

// condition is a compiled condition.
type condition struct {
	program      cel.Program
	repositories []string // texts that artifact.repository is compared with
	issuer       bool     // it reads caller.issuer
	annotations  []string // names that it reads of artifact.annotations
}

// compiling lets one condition at a time be compiled: an environment lists its names when it first reports an unknown
// one, and does not lock them.
var compiling sync.Mutex

// compile compiles a condition of an action. It fails with the mistake and a hint.
func compile(action Action, text string) (*condition, string, error) {
	compiling.Lock()
	defer compiling.Unlock()
	both, err := environments()
	if err != nil {
		return nil, "", err
	}
	e := both[1]
	if action == Use {
		e = both[0]
	}
	compiled, issues := e.Compile(text)
	if err := issues.Err(); err != nil {
		what, hint := mistake(action, text, issues)
		return nil, hint, fmt.Errorf("%s", what)
	}
	if compiled.OutputType() != cel.BoolType {
		return nil, "compare it with something", fmt.Errorf("its result is a %s, not true or false", compiled.OutputType())
	}
	c := &condition{}
	if hint, err := c.inspect(compiled.NativeRep()); err != nil {
		return nil, hint, err
	}
	const simpler = "simplify the condition, or make several rules of it"
	estimate, err := e.EstimateCost(compiled, sizes{})
	if err != nil {
		return nil, simpler, fmt.Errorf("its cost cannot be estimated: %w", err)
	}
	if estimate.Max > maxCost {
		return nil, simpler, fmt.Errorf("its cost is up to %d, more than %d", estimate.Max, maxCost)
	}
	c.program, err = e.Program(compiled, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost))
	if err != nil {
		return nil, "", fmt.Errorf("%s", oneLine(err.Error()))
	}
	return c, "", nil
}

var reads = regexp.MustCompile(`\b(?:caller|artifact)\.[A-Za-z_][A-Za-z0-9_]*`)

// mistake returns what CEL says of the first mistake in a condition, and a hint.
func mistake(action Action, text string, issues *cel.Issues) (what, hint string) {
	first := issues.Errors()[0]
	what = strings.ReplaceAll(oneLine(first.Message), " (in container '')", "")
	var known []string
	for _, v := range variables {
		if action == Use || !v.use {
			known = append(known, v.name)
		}
	}
	if !strings.HasPrefix(what, "undeclared reference to") {
		return place(text, first.Location.Line(), first.Location.Column()+1) + what, ""
	}
	hint = "known variables are " + strings.Join(known, ", ")
	for _, name := range reads.FindAllString(text, -1) {
		if slices.Contains(known, name) {
			continue
		}
		if strings.HasPrefix(name, "artifact.") && action != Use {
			hint = "only rules of use can read the artifact"
		}
		return "unknown variable " + name, hint
	}
	return what, hint
}

// place names where a mistake is in a condition, and is "" if CEL names no column (from 1).
func place(text string, line, column int) string {
	switch {
	case column <= 0:
		return ""
	case strings.Contains(strings.TrimSpace(text), "\n"):
		return fmt.Sprintf("line %d, column %d of the condition: ", line, column)
	}
	return fmt.Sprintf("column %d of the condition: ", column)
}

// oneLine returns the first 300 bytes of a text, without line breaks.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "..."
	}
	return text
}

// inspect notes what a condition reads. It fails for what costs more than the size of its input allows: a comprehension
// within another, and a regular expression that a caller could choose.
func (c *condition) inspect(tree *ast.AST) (hint string, err error) {
	fail := func(how, what string) {
		if err == nil {
			hint, err = how, fmt.Errorf("%s", what)
		}
	}
	var visit func(e ast.Expr, within bool)
	visit = func(e ast.Expr, within bool) {
		switch e.Kind() {
		case ast.IdentKind:
			c.issuer = c.issuer || refersTo(tree, e, "caller.issuer")
		case ast.SelectKind:
			if refersTo(tree, e.AsSelect().Operand(), "artifact.annotations") {
				c.annotations = append(c.annotations, e.AsSelect().FieldName())
			}
			visit(e.AsSelect().Operand(), within)
		case ast.CallKind:
			call := e.AsCall()
			if call.FunctionName() == overloads.Matches && call.Args()[len(call.Args())-1].Kind() != ast.LiteralKind {
				fail("write the pattern in the policy", "the pattern of matches is not a text")
			}
			c.noteOperands(tree, call)
			if call.IsMemberFunction() {
				visit(call.Target(), within)
			}
			for _, arg := range call.Args() {
				visit(arg, within)
			}
		case ast.ListKind:
			for _, item := range e.AsList().Elements() {
				visit(item, within)
			}
		case ast.MapKind:
			for _, item := range e.AsMap().Entries() {
				visit(item.AsMapEntry().Key(), within)
				visit(item.AsMapEntry().Value(), within)
			}
		case ast.ComprehensionKind:
			if within {
				fail("make several rules of it", "all or exists is within another all or exists")
			}
			loop := e.AsComprehension()
			visit(loop.IterRange(), within)
			visit(loop.LoopCondition(), true)
			visit(loop.LoopStep(), true)
			visit(loop.Result(), true)
		default: // literals; structs do not type-check without types
		}
	}
	visit(tree.Expr(), false)
	return hint, err
}

// refersTo reports whether an expression is a variable. The checker replaces the name of one by an identifier.
func refersTo(tree *ast.AST, e ast.Expr, name string) bool {
	reference := tree.ReferenceMap()[e.ID()]
	return reference != nil && reference.Name == name
}

// noteOperands notes the texts that a call compares artifact.repository with, and those that index annotations.
func (c *condition) noteOperands(tree *ast.AST, call ast.CallExpr) {
	operands := call.Args()
	if call.IsMemberFunction() {
		operands = append([]ast.Expr{call.Target()}, operands...)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(operands, func(e ast.Expr) bool { return refersTo(tree, e, name) })
	}
	switch {
	case has("artifact.repository"):
		c.repositories = append(c.repositories, texts(operands)...)
	case has("artifact.annotations"):
		c.annotations = append(c.annotations, texts(operands)...)
	}
}

// texts returns the texts among expressions, also those in lists.
func texts(operands []ast.Expr) (all []string) {
	for _, operand := range operands {
		values := []ast.Expr{operand}
		if operand.Kind() == ast.ListKind {
			values = operand.AsList().Elements()
		}
		for _, value := range values {
			if value.Kind() != ast.LiteralKind {
				continue
			}
			if text, ok := value.AsLiteral().(types.String); ok && text != "" {
				all = append(all, string(text))
			}
		}
	}
	return all
}

// sizes tells CEL how long the values of variables are, for its estimate: as long as large ones in practice. With the
// bounds in claims.go, it would refuse harmless conditions. The cost of each evaluation is bounded as well.
type sizes struct{}

// EstimateSize returns the number of characters or elements of a variable or a part of it.
func (sizes) EstimateSize(cost.AstNode) *cost.SizeEstimate {
	return &cost.SizeEstimate{Min: 0, Max: 512}
}

// EstimateCallCost leaves the costs of functions as they are.
func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// activation gives the variables to a condition.
type activation struct {
	in     *Input
	claims ref.Val
}

// ResolveName returns the value of a variable.
func (a *activation) ResolveName(name string) (any, bool) {
	artifact := &a.in.Artifact
	switch name {
	case "caller.issuer":
		return types.String(a.in.Caller.Issuer), true
	case "caller.subject":
		return types.String(a.in.Caller.Subject), true
	case "caller.claims":
		return a.claims, true
	case "key":
		return types.String(a.in.Key), true
	case "now":
		return types.Timestamp{Time: a.in.Time.UTC()}, true
	case "artifact.format":
		return types.String(artifact.Format), true
	case "artifact.media_type":
		return types.String(artifact.MediaType), true
	case "artifact.digest":
		return types.String(artifact.Digest), true
	case "artifact.size":
		return types.Int(artifact.Size), true
	case "artifact.annotations":
		return types.NewStringStringMap(types.DefaultTypeAdapter, artifact.Annotations), true
	case "artifact.repository":
		return types.String(artifact.Repository), true
	case "artifact.name":
		return types.String(artifact.Name), true
	case "artifact.expiry":
		return types.Int(artifact.Expiry), true
	}
	return nil, false
}

// Parent returns nil: there are no other variables.
func (*activation) Parent() cel.Activation { return nil }

// holds evaluates the condition. If it does not hold, why says why not.
func (c *condition) holds(a *activation) (ok bool, why string) {
	result, _, err := c.program.Eval(a)
	switch {
	case err == nil && result == types.True:
		return true, ""
	case err == nil:
		return false, "the condition is false"
	}
	text := oneLine(err.Error())
	if name, found := strings.CutPrefix(text, "no such key: "); found {
		if _, exists := a.in.Artifact.Annotations[name]; !exists && slices.Contains(c.annotations, name) {
			return false, fmt.Sprintf("the artifact has no annotation %q", name)
		}
		return false, fmt.Sprintf("the caller has no claim %q", name)
	}
	if strings.Contains(text, "cost limit exceeded") {
		return false, fmt.Sprintf("the condition costs more than %d to evaluate", maxCost)
	}
	return false, "the condition cannot be evaluated: " + text
}
