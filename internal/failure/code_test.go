package failure_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/plugin"
)

const (
	root   = "../.."
	module = "github.com/notation-hsm/notation-hsm/"
)

// code is what go/types knows of the packages below internal and cmd. Packages of others are empty to it, so types are
// missing; what it is asked for is which function an expression names, and the value of constant strings.
type code struct {
	files    *token.FileSet
	packages map[string]*types.Package // by import path
	syntax   map[string][]*ast.File
	info     types.Info
	wrappers map[types.Object]wrapper
}

// A wrapper is a function with a parameter that it passes on as the format of a message, or as the end of one.
type wrapper struct {
	parameter int
	prefix    string // of the format
}

func loadCode(t *testing.T) *code {
	t.Helper()
	c := &code{
		files: token.NewFileSet(), packages: map[string]*types.Package{"unsafe": types.Unsafe},
		syntax: map[string][]*ast.File{}, wrappers: map[types.Object]wrapper{},
		info: types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{},
			Defs: map[*ast.Ident]types.Object{}},
	}
	for _, dir := range []string{"internal", "cmd"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() || strings.HasSuffix(path, "test") { // the last are tests' parts
				return err
			}
			relative, err := filepath.Rel(root, path)
			if err == nil {
				_, err = c.Import(module + filepath.ToSlash(relative))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	c.wrappers[c.packages[module+"internal/failure"].Scope().Lookup("New")] = wrapper{parameter: 1}
	c.findWrappers()
	return c
}

// Import type-checks a package of the module, and the packages that it imports.
func (c *code) Import(path string) (*types.Package, error) {
	if known := c.packages[path]; known != nil {
		return known, nil
	}
	relative, own := strings.CutPrefix(path, module)
	if !own {
		empty := types.NewPackage(path, filepath.Base(path))
		empty.MarkComplete()
		c.packages[path] = empty
		return empty, nil
	}
	dir := filepath.Join(root, relative)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if name := entry.Name(); strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
			const mode = parser.SkipObjectResolution | parser.ParseComments
			file, err := parser.ParseFile(c.files, filepath.Join(dir, name), nil, mode)
			if err != nil {
				return nil, err
			}
			c.syntax[path] = append(c.syntax[path], file)
		}
	}
	ignore := func(error) {}
	check := types.Config{Importer: c, FakeImportC: true, Error: ignore}
	c.packages[path], _ = check.Check(path, c.files, c.syntax[path], &c.info)
	return c.packages[path], nil
}

// called returns the function, method or variable that a call names; nil if it is not known.
func (c *code) called(call *ast.CallExpr) types.Object {
	switch fun := call.Fun.(type) {
	case *ast.Ident:
		return c.info.Uses[fun]
	case *ast.SelectorExpr:
		return c.info.Uses[fun.Sel]
	}
	return nil
}

// findWrappers finds the functions, methods and closures that pass a parameter on as the format of a message.
func (c *code) findWrappers() {
	for found := true; found; {
		found = false
		note := func(function *ast.Ident, kind *ast.FuncType, body *ast.BlockStmt) {
			object := c.info.Defs[function]
			if _, known := c.wrappers[object]; known || object == nil || body == nil {
				return
			}
			parameters := map[types.Object]int{}
			for _, field := range kind.Params.List {
				for _, name := range field.Names {
					parameters[c.info.Defs[name]] = len(parameters)
				}
			}
			c.eachMessage(body, func(_ *ast.CallExpr, prefix string, format ast.Expr, _ []ast.Expr) {
				more, variable := c.split(format)
				if i, ok := parameters[variable]; ok && variable != nil {
					c.wrappers[object], found = wrapper{i, prefix + more}, true
				}
			})
		}
		for path, files := range c.syntax {
			if path == module+"internal/failure" {
				continue
			}
			for _, file := range files {
				ast.Inspect(file, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.FuncDecl:
						note(n.Name, n.Type, n.Body)
					case *ast.AssignStmt:
						name, ok := n.Lhs[0].(*ast.Ident)
						if closure, is := n.Rhs[0].(*ast.FuncLit); ok && is {
							note(name, closure.Type, closure.Body)
						}
					}
					return true
				})
			}
		}
	}
}

// eachMessage finds the calls below a node that make a message.
func (c *code) eachMessage(below ast.Node,
	do func(call *ast.CallExpr, prefix string, format ast.Expr, args []ast.Expr)) {
	ast.Inspect(below, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if w, ok := c.wrappers[c.called(call)]; ok && w.parameter < len(call.Args) {
				do(call, w.prefix, call.Args[w.parameter], call.Args[w.parameter+1:])
			}
		}
		return true
	})
}

// messages returns the messages by the name of their package, or of their executable: the formats of failures, and the
// texts of calls that begin with "warning: ". It fails for a failure whose format is not constant.
func (c *code) messages(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for path, files := range c.syntax {
		if path == module+"internal/failure" {
			continue
		}
		name := filepath.Base(path)
		for _, file := range files {
			found[name] = append(found[name], c.warnings(file)...)
			c.eachMessage(file, func(call *ast.CallExpr, prefix string, format ast.Expr, args []ast.Expr) {
				text, ok := c.text(format)
				if !ok {
					if _, variable := c.split(format); variable == nil {
						t.Errorf("%s: the format of a message is not constant", c.files.Position(call.Pos()))
					}
					return
				}
				if message := c.withPlaceholders(prefix+text, args); regexp.MustCompile(`[a-z]`).MatchString(message) {
					found[name] = append(found[name], message)
				}
			})
		}
	}
	return found
}

// warnings returns the texts below a node that begin with "warning: ".
func (c *code) warnings(below ast.Node) (found []string) {
	ast.Inspect(below, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			for i, arg := range call.Args {
				if text, ok := c.text(arg); ok && strings.HasPrefix(text, "warning: ") {
					found = append(found, strings.TrimSpace(c.withPlaceholders(text, call.Args[i+1:])))
				}
			}
		}
		return true
	})
	return found
}

// split returns the variable of a format that is one, as in a wrapper, or that ends with one after a constant prefix.
func (c *code) split(format ast.Expr) (prefix string, variable types.Object) {
	switch format := format.(type) {
	case *ast.Ident:
		if v, ok := c.info.Uses[format].(*types.Var); ok {
			variable = v
		}
	case *ast.BinaryExpr:
		if text, ok := c.text(format.X); ok {
			more, variable := c.split(format.Y)
			return text + more, variable
		}
	}
	return "", variable
}

// text returns the value of a constant string.
func (c *code) text(e ast.Expr) (string, bool) { return stringOf(c.info.Types[e].Value) }

func stringOf(value constant.Value) (string, bool) {
	if value == nil || value.Kind() != constant.String {
		return "", false
	}
	return constant.StringVal(value), true
}

// element returns the value of a constant string in a literal whose type is not known.
func (c *code) element(pkg *types.Package, e ast.Expr) (string, bool) {
	value, err := types.Eval(c.files, pkg, token.NoPos, types.ExprString(e))
	if err != nil {
		return "", false
	}
	return stringOf(value.Value)
}

var verb = regexp.MustCompile(`%[-+# 0-9.]*[a-zA-Z%]`)

// withPlaceholders returns a message with N for numbers, "..." for causes, and NAME for the rest.
func (c *code) withPlaceholders(format string, args []ast.Expr) string {
	i := -1
	return verb.ReplaceAllStringFunc(format, func(v string) string {
		kind := v[len(v)-1]
		if kind == '%' {
			return "%"
		}
		if i++; i < len(args) {
			if text, ok := c.text(args[i]); ok && kind == 'q' {
				return strconv.Quote(text)
			} else if ok {
				return text
			}
		}
		switch kind {
		case 'w':
			return "..."
		case 'd', 'o':
			return "N"
		case 'q':
			return `"NAME"`
		}
		return "NAME"
	})
}

// returnValues returns the rows of the table of PKCS#11 return values: those in "meanings" of internal/pkcs11.
func (c *code) returnValues(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	out.WriteString("| return value | kind | what it means, or what to do |\n| --- | --- | --- |\n")
	rows := 0
	for _, file := range c.syntax[module+"internal/pkcs11"] {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || spec.Names[0].Name != "meanings" {
				return true
			}
			for _, element := range spec.Values[0].(*ast.CompositeLit).Elts { //nolint:forcetypeassert // a map
				pair := element.(*ast.KeyValueExpr)       //nolint:forcetypeassert // of return values
				meaning := pair.Value.(*ast.CompositeLit) //nolint:forcetypeassert // and their meaning
				hint, ok := c.element(c.packages[module+"internal/pkcs11"], meaning.Elts[1])
				if !ok {
					t.Errorf("%s: the hint is not constant", c.files.Position(meaning.Pos()))
				}
				hint, _, _ = strings.Cut(hint, ";")
				fmt.Fprintf(&out, "| `%s` | %s | %s |\n", name(pair.Key), name(meaning.Elts[0]), hint)
				rows++
			}
			return false
		})
	}
	if rows == 0 {
		t.Error("internal/pkcs11 has no return values with a meaning")
	}
	return out.String()
}

// kinds returns the rows of the table of kinds: the constants of this package with their comments.
func (c *code) kinds(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	out.WriteString("| kind | exit code | `errorCode` | meaning |\n| --- | --- | --- | --- |\n")
	for _, file := range c.syntax[module+"internal/failure"] {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || spec.Comment == nil {
				return true
			}
			for _, name := range spec.Names {
				constant, ok := c.info.Defs[name].(*types.Const)
				if !ok {
					continue
				}
				value, _ := strconv.Atoi(constant.Val().String())
				exit, code := edges(t, failure.Kind(value))
				fmt.Fprintf(&out, "| %s | %d | `%s` | %s |\n", name.Name, exit, code, strings.TrimSpace(spec.Comment.Text()))
			}
			return false
		})
	}
	return out.String()
}

// edges returns the exit code of commands and the error code of the plugin for a kind.
func edges(t *testing.T, kind failure.Kind) (exit int, errorCode string) {
	t.Helper()
	err := failure.New(kind, "an error of the test TestErrorPage")
	command := &cobra.Command{SilenceErrors: true, SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error { return err }}
	command.SetArgs(nil)
	var answer struct {
		Code string `json:"errorCode"`
	}
	if err := json.Unmarshal(plugin.FormatError(err), &answer); err != nil {
		t.Fatal(err)
	}
	return cli.Run(t.Context(), command), answer.Code
}

// name returns the last part of a qualified name.
func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
