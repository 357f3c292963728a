// Package docs tests what the pages of this folder claim about the code.
package docs

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	page   = "architecture.md"
	module = "github.com/notation-hsm/notation-hsm/"
)

// storeys are the rooms from the top to the ground. A room imports rooms of lower storeys alone, never one of its own.
var storeys = []struct {
	name  string
	rooms []string
}{
	{"commands", []string{"cmd/notation-hsm", "cmd/hsm-image", "cmd/docker-hsm", "cmd/hsm-broker",
		"cmd/sigstore-kms-hsm"}},
	{"commands that verify", []string{"verification", "logflags"}},
	{"parts of commands", []string{"cli", "backends", "publisher", "migrate", "brokerfile"}},
	{"jobs", []string{"plugin", "custody", "keyprovider", "kms", "image", "gate", "dockercli", "agent", "broker/api",
		"broker/web", "notice", "approver", "tags", "audit", "monitor", "report"}},
	{"below the jobs", []string{"ca", "trust/demand", "signer", "layerkey", "broker", "attach", "tuf", "tufstore",
		"notaryv1"}},
	{"proofs and trust", []string{"proof", "trust"}},
	{"parts of the broker", []string{"httpapi", "held", "policy", "translog", "translog/feed", "identity",
		"broker/session", "broker/logins", "repository", "store/sqlite", "store/postgres"}},
	{"backends", []string{"pkcs11", "nethsm", "worker", "remote"}},
	{"keys and certificates", []string{"keystore", "certs", "brokerapi", "store"}},
	{"settings and files", []string{"config", "pin", "state", "payload", "telemetry", "registry", "webhook",
		"approval/sshkey"}},
	{"above the ground", []string{"key", "folders", "ownership", "deadline", "sandbox", "approval", "broker/entry",
		"fair"}},
	{"the ground", []string{"failure", "bound", "scope", "lock", "harden", "peercred", "stdio", "crashreport"}},
}

// drawn is the number of storeys whose arrows the graph shows; below them, the table lists what a room uses.
const drawn = 9

// testRooms hold what tests need, and no other package imports them.
var testRooms = []string{"bound/boundtest", "brokerapi/brokerapitest", "identity/identitytest",
	"store/storetest", "nethsm/nethsmtest", "keystore/keystoretest", "proof/prooftest",
	"translog/witnesstest", "trust/trusttest"}

// TestArrows checks that imports point down, and that the page draws every arrow there is and no other. With
// UPDATE_DOCS=1 it draws them.
func TestArrows(t *testing.T) {
	t.Parallel()
	arrows := imports(t)
	storey := map[string]int{}
	for i, s := range storeys {
		for _, room := range s.rooms {
			storey[room] = i
			if _, exists := arrows[room]; !exists {
				t.Errorf("there is no room %s", room)
			}
		}
	}
	for room, uses := range arrows {
		from, known := storey[room]
		if !known {
			t.Errorf("the room %s is on no storey: add it to this test and to %s", room, page)
			continue
		}
		for _, used := range uses {
			if to, known := storey[used]; !known || to <= from {
				t.Errorf("%s imports %s, which is not below it", room, used)
			}
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	want := replace(t, string(text), "graph", graph(arrows, storey))
	want = replace(t, want, "ground", table(arrows, storey))
	if want == string(text) {
		return
	}
	if os.Getenv("UPDATE_DOCS") == "" {
		t.Fatalf("%s does not draw the arrows that there are: run UPDATE_DOCS=1 go test ./docs/", page)
	}
	if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// imports returns which rooms each room imports, in its code and not in its tests, whatever the build tags.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	arrows := map[string][]string{}
	for _, top := range []string{"../cmd", "../internal"} {
		err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			room := roomOf(strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../"))
			if slices.Contains(testRooms, room) {
				return nil
			}
			arrows[room] = append(arrows[room], nil...)
			for _, spec := range file.Imports {
				imported, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					return err
				}
				if used, ours := strings.CutPrefix(imported, module); ours {
					if used = roomOf(used); used != room && !slices.Contains(arrows[room], used) {
						arrows[room] = append(arrows[room], used)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, uses := range arrows {
		slices.Sort(uses)
	}
	return arrows
}

// roomOf returns the name of the room that a package path of this module is.
func roomOf(path string) string { return strings.TrimPrefix(path, "internal/") }

// graph draws the arrows of the upper storeys.
func graph(arrows map[string][]string, storey map[string]int) string {
	var g strings.Builder
	g.WriteString("```mermaid\nflowchart TD\n")
	for i, s := range storeys[:drawn] {
		fmt.Fprintf(&g, "    subgraph s%d[\"%s\"]\n", i, s.name)
		for _, room := range s.rooms {
			fmt.Fprintf(&g, "        %s\n", node(room))
		}
		g.WriteString("    end\n")
	}
	for _, s := range storeys[:drawn] {
		for _, room := range s.rooms {
			for _, used := range arrows[room] {
				if storey[used] < drawn {
					fmt.Fprintf(&g, "    %s --> %s\n", node(room), node(used))
				}
			}
		}
	}
	g.WriteString("```\n")
	return g.String()
}

func node(room string) string { return strings.TrimPrefix(room, "cmd/") }

// table lists the rooms of the lower storeys that each room uses.
func table(arrows map[string][]string, storey map[string]int) string {
	var g strings.Builder
	g.WriteString("| room | uses of the storeys below |\n| --- | --- |\n")
	for _, s := range storeys {
		for _, room := range s.rooms {
			var names []string
			for _, used := range arrows[room] {
				if storey[used] >= drawn {
					names = append(names, "`"+used+"`")
				}
			}
			if len(names) > 0 {
				fmt.Fprintf(&g, "| `%s` | %s |\n", node(room), strings.Join(names, ", "))
			}
		}
	}
	return g.String()
}

// replace returns the page with other text between the markers of a part.
func replace(t *testing.T, text, part, with string) string {
	t.Helper()
	begin, end := "<!-- "+part+": written by UPDATE_DOCS=1 go test ./docs/ -->\n", "<!-- end of "+part+" -->\n"
	before, rest, found := strings.Cut(text, begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has no part %q", page, part)
	}
	return before + begin + with + end + after
}
